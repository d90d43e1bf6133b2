"""The response bodies of all routes: types for our code and for OpenAPI.

TypedDicts, not models: replies are plain dicts, and nothing checks them while
they stream. A test validates real answers against the OpenAPI document.
"""

from typing import Any, Literal, NotRequired

# typing's own TypedDict lacks what pydantic needs before Python 3.12.
from typing_extensions import TypedDict

FinishReason = Literal['stop', 'length', 'tool_calls']


class PromptTokensDetails(TypedDict):
  """Prompt tokens that an earlier request had left computed."""

  cached_tokens: int


class Usage(TypedDict):
  """The prompt counts once, EOS does not count."""

  prompt_tokens: int
  completion_tokens: int
  total_tokens: int
  prompt_tokens_details: PromptTokensDetails


class Notice(TypedDict):
  """What a request lost: characters_dropped or prompt_truncated."""

  code: str
  message: str
  param: str


class Timings(TypedDict):
  """Of prompts, less what was cached, and texts; llama.cpp's form, in ms."""

  cache_n: int
  prompt_n: int
  prompt_ms: float
  prompt_per_token_ms: float
  prompt_per_second: float
  predicted_n: int
  predicted_ms: float
  predicted_per_token_ms: float
  predicted_per_second: float


class PromptProgress(TypedDict):
  """With return_progress, in llama.cpp's form."""

  total: int
  cache: int
  processed: int
  time_ms: float


class PromptLogprob(TypedDict):
  """`rank`: among the reported alternatives; null if it is none of them."""

  logprob: float
  rank: int | None
  decoded_token: str


# For each token, by id: it and its alternatives; null for the first.
PromptLogprobs = list[dict[str, PromptLogprob] | None]


class CompletionLogprobs(TypedDict):
  """Parallel lists over the tokens of a text; offsets count characters."""

  tokens: list[str]
  token_logprobs: list[float | None]
  top_logprobs: list[dict[str, float | None] | None]
  text_offset: list[int]


class CompletionChoice(TypedDict):
  index: int
  text: str
  logprobs: CompletionLogprobs | None
  finish_reason: FinishReason | None
  prompt_logprobs: NotRequired[PromptLogprobs]


class Completion(TypedDict):
  """A whole answer, or a chunk of a stream; usage is null in most chunks.

  `tokens_dropped`: of the beginnings of prompts that do not fit. `warnings`: in
  the first chunk.
  """

  id: str
  object: Literal['text_completion']
  created: int
  model: str
  seed: int
  tokens_dropped: NotRequired[int]
  system_fingerprint: str | None
  warnings: NotRequired[list[Notice]]
  choices: list[CompletionChoice]
  usage: NotRequired[Usage | None]
  timings: NotRequired[Timings]
  prompt_progress: NotRequired[PromptProgress]


class TokenLogprob(TypedDict):
  token: str
  logprob: float | None
  bytes: list[int]


class ChatTokenLogprob(TokenLogprob):
  top_logprobs: list[TokenLogprob]


class ChatLogprobs(TypedDict):
  content: list[ChatTokenLogprob]
  refusal: None


class CalledFunction(TypedDict):
  """`arguments` is JSON."""

  name: str
  arguments: str


class ToolCall(TypedDict):
  id: str
  type: Literal['function']
  function: CalledFunction


class ChatAnswerMessage(TypedDict):
  role: Literal['assistant']
  content: str | None
  refusal: None
  tool_calls: NotRequired[list[ToolCall]]


class ChatChoice(TypedDict):
  index: int
  message: ChatAnswerMessage
  logprobs: ChatLogprobs | None
  finish_reason: FinishReason


class ChatCompletion(TypedDict):
  """`tokens_dropped`: of the oldest turns, where the context was too small."""

  id: str
  object: Literal['chat.completion']
  created: int
  model: str
  seed: int
  tokens_dropped: NotRequired[int]
  system_fingerprint: str | None
  warnings: NotRequired[list[Notice]]
  choices: list[ChatChoice]
  usage: Usage
  timings: Timings
  prompt_logprobs: NotRequired[PromptLogprobs]


class FunctionDelta(TypedDict):
  name: NotRequired[str]
  arguments: str


class ToolCallDelta(TypedDict):
  """`id`, `type` and the name come with the first delta of a call."""

  index: int
  id: NotRequired[str]
  type: NotRequired[Literal['function']]
  function: FunctionDelta


class ChatDelta(TypedDict):
  role: NotRequired[Literal['assistant']]
  content: NotRequired[str]
  tool_calls: NotRequired[list[ToolCallDelta]]


class ChatChunkChoice(TypedDict):
  index: int
  delta: ChatDelta
  logprobs: ChatLogprobs | None
  finish_reason: FinishReason | None


class ChatCompletionChunk(TypedDict):
  id: str
  object: Literal['chat.completion.chunk']
  created: int
  model: str
  seed: int
  tokens_dropped: NotRequired[int]
  system_fingerprint: str | None
  warnings: NotRequired[list[Notice]]
  choices: list[ChatChunkChoice]
  usage: NotRequired[Usage | None]
  timings: NotRequired[Timings]
  prompt_progress: NotRequired[PromptProgress]


class RandyUsage(TypedDict):
  prompt_tokens: int
  completion_tokens: int


class RandyCompletion(TypedDict):
  """`text` is the completion without the prompt."""

  text: str
  model: str
  usage: RandyUsage
  tokens_dropped: NotRequired[int]
  warnings: NotRequired[list[Notice]]


class Samples(TypedDict):
  samples: list[str]


class MicroChatAnswer(TypedDict):
  role: Literal['assistant']
  content: str
  tokens_dropped: int
  warnings: NotRequired[list[Notice]]


class ModelMeta(TypedDict):
  """`val_loss` is in nats per token."""

  name: str
  arch: str
  n_params: int
  n_layer: int
  n_head: int
  n_embd: int
  n_ctx_train: int
  n_vocab: int
  tokenizer: str
  chat: bool
  step: int
  checkpoint: str
  val_loss: float | None
  backend: str
  slots: int


class Model(TypedDict):
  id: str
  object: Literal['model']
  created: int
  owned_by: str
  parent: str | None  # Of an adapter: the id of its base.
  max_model_len: int
  meta: ModelMeta


class ModelList(TypedDict):
  object: Literal['list']
  data: list[Model]


class Generation(TypedDict):
  n_ctx: int
  params: dict[str, Any]


class Props(TypedDict):
  """In llama.cpp's form; `chat_template` is empty for our own format."""

  default_generation_settings: Generation
  total_slots: int
  model_alias: str
  chat_template: str
  bos_token: str
  eos_token: str
  modalities: dict[str, bool]
  build_info: str


class Slot(TypedDict):
  """`n_limit`: most tokens to decode. `seconds`: since the request arrived."""

  id: int
  n_ctx: int
  is_processing: bool
  model: NotRequired[str]
  n_prompt_tokens: NotRequired[int]
  n_decoded: NotRequired[int]
  n_limit: NotRequired[int]
  seconds: NotRequired[float]


class ReloadAnswer(TypedDict):
  status: Literal['ok', 'error']
  model: str
  reloaded: bool
  reason: str


class Health(TypedDict):
  status: Literal['ok', 'loading', 'draining', 'failed']


class Version(TypedDict):
  name: str
  version: str


class ErrorDetail(TypedDict):
  message: str
  type: str
  param: str | None
  code: str | None


class Error(TypedDict):
  """The one shape of errors."""

  error: ErrorDetail


class ErrorText(TypedDict):
  """Errors of RandyGPT's and microgpt's routes."""

  error: str
