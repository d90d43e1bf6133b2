"""The request bodies of all routes, as pydantic models.

They are checked strictly: true is not 1 and '5' is not 5, but 1.0 is 1, as in
JSON. null counts as absent. Unknown fields are ignored, as OpenAI's clients
expect; fields that would change the answer but are not supported are errors.
serving/http/validation.py turns pydantic's errors into ours.
"""

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
  BaseModel,
  ConfigDict,
  Field,
  GetJsonSchemaHandler,
  model_validator,
)
from pydantic_core import CoreSchema

from serving.engine.sampling import MAX_TOP_LOGPROBS, Overflow, Sampling
from serving.http import unsupported
from serving.http.fields import (
  MAX_INT32,
  MAX_PROMPTS,
  MAX_TOKENS,
  Content,
  LogitBias,
  MaxTokens,
  Nothing,
  Prompts,
  Seed,
  Stop,
  Temperature,
  Text,
  TokenIds,
  max_tokens_of,
)
from serving.http.structured import StructuredFields
from serving.http.tools import ToolCalls, ToolFields
from serving.http.validation import Wanted, not_supported, refused

MAX_CHOICES = 8
DEFAULT_TOKENS = 256

Role = Literal['system', 'developer', 'user', 'assistant', 'tool']


class Body(BaseModel):
  """A JSON object of a request."""

  model_config = ConfigDict(extra='ignore', strict=True)

  @model_validator(mode='before')
  @classmethod
  def as_json(cls, body: Any) -> Any:
    """Drops nulls and turns integral numbers, such as 1.0, into integers."""
    if not isinstance(body, dict):
      return body
    return {
      name: int(v) if isinstance(v, float) and v.is_integer() else v
      for name, v in body.items()
      if v is not None
    }

  @classmethod
  def __get_pydantic_json_schema__(
    cls, schema: CoreSchema, handler: GetJsonSchemaHandler
  ) -> dict[str, Any]:
    described = handler(schema)
    inside = handler.resolve_ref_schema(described)
    needed, fields = inside.get('required', ()), inside['properties']
    inside['properties'] = {
      name: field if name in needed else or_null(field)
      for name, field in fields.items()
    }
    return described


def or_null(schema: dict[str, Any]) -> dict[str, Any]:
  """A JSON Schema that also allows null, which counts as absent."""
  null = {'type': 'null'}
  kinds = schema.get('anyOf')
  if kinds is not None:
    return schema if null in kinds else {**schema, 'anyOf': [*kinds, null]}
  about = {k: v for k, v in schema.items() if k in ('default', 'description')}
  rest = {k: v for k, v in schema.items() if k not in about}
  return {'anyOf': [rest, null], **about}


class Generating(Body):
  """A body that asks for text.

  Attributes:
    foreign: fields of other APIs -> the values that ask for nothing; others
      are refused.
  """

  foreign: ClassVar[Mapping[str, tuple[Any, ...]]] = unsupported.NEUTRAL

  model: Annotated[
    Text | None,
    Field(
      description='The name of an adapter or of the model. Any name is the '
      "model's, unless the server has adapters or runs with --strict_model."
    ),
  ] = None

  @model_validator(mode='before')
  @classmethod
  def refuse_foreign(cls, body: Any) -> Any:
    neutral = {
      name: values
      for name, values in cls.foreign.items()
      if name not in cls.model_fields
    }
    found = isinstance(body, dict) and unsupported.find(body, neutral)
    if found:
      name, text = found
      raise not_supported(text, name)
    return body

  @classmethod
  def __get_pydantic_json_schema__(
    cls, schema: CoreSchema, handler: GetJsonSchemaHandler
  ) -> dict[str, Any]:
    described = super().__get_pydantic_json_schema__(schema, handler)
    inside = handler.resolve_ref_schema(described)
    foreign = unsupported.properties(cls.foreign)
    fields = {**foreign, **inside['properties']}
    for name in unsupported.STRUCTURED.keys() & cls.model_fields.keys():
      nothing = {'enum': [*unsupported.STRUCTURED[name]]}
      fields[name] = {
        **fields[name],
        'anyOf': [*fields[name]['anyOf'], nothing],
      }
    inside['properties'] = fields
    return described


class Message(Body):
  """One turn of a conversation; `developer` is an alias of `system`."""

  role: Annotated[Role, Wanted('system, developer, user, assistant or tool')]
  content: Content = Field(default=None, validate_default=True)
  tool_calls: Annotated[
    ToolCalls | None, Field(description="An assistant's calls.")
  ] = None
  tool_call_id: Annotated[
    Text | None, Field(description='The call that a tool message answers.')
  ] = None
  name: Text | None = None

  def as_turn(self) -> dict[str, Any]:
    role = 'system' if self.role == 'developer' else self.role
    turn: dict[str, Any] = {'role': role, 'content': self.content}
    if role == 'assistant' and self.tool_calls:
      turn['tool_calls'] = self.tool_calls
    if role == 'tool':
      given = {'tool_call_id': self.tool_call_id, 'name': self.name}
      turn |= {k: v for k, v in given.items() if v is not None}
    return turn


Messages = Annotated[
  list[Message],
  Field(min_length=1),
  Wanted('an array of {role, content}'),
]


class StreamOptions(Body):
  include_usage: Annotated[
    bool,
    Field(description='End the stream with a chunk that holds the usage.'),
  ] = False


class OpenAIRequest(Generating, StructuredFields):
  """The fields that both OpenAI routes share."""

  max_completion_tokens: Annotated[
    MaxTokens | None, Field(description='Wins over max_tokens.')
  ] = None
  max_tokens: Annotated[
    MaxTokens | None,
    Field(
      description=f'Default: {DEFAULT_TOKENS}; -1: to the end of the context.'
    ),
  ] = None
  temperature: Annotated[
    Temperature, Field(description='0 takes the most probable token.')
  ] = 0.8
  top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
  top_k: Annotated[
    int, Field(ge=-1, le=MAX_INT32, description='0 and -1 turn it off.')
  ] = 0
  min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
  repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
  frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
  presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
  logit_bias: LogitBias = Field(default_factory=dict)
  stop: Annotated[Stop, Field(description='Strings that end the text.')] = ()
  stop_token_ids: TokenIds = ()
  ignore_eos: Annotated[
    bool, Field(description='Continue past the end of the text.')
  ] = False
  n: Annotated[
    int, Field(ge=1, le=MAX_CHOICES, description='Choices per prompt.')
  ] = 1
  seed: Seed | None = None
  context_overflow: Annotated[
    Overflow | None,
    Field(
      description='At the end of the context: move the window by half or by '
      'one token, end the text, or refuse the request. Default: '
      '--context_overflow.'
    ),
  ] = None
  stream: Annotated[bool, Field(description='Send server-sent events.')] = False
  stream_options: Annotated[StreamOptions | None, Wanted('an object')] = None
  functions: Nothing = None
  suffix: Nothing = None
  best_of: Annotated[
    int | None, Field(ge=1, le=20, description='Must equal n.')
  ] = None
  min_tokens: Annotated[
    int,
    Field(ge=0, le=MAX_TOKENS, description='No end of the text before them.'),
  ] = 0
  allowed_token_ids: Annotated[
    TokenIds | None,
    Field(description='Nothing else is sampled, not even the end of the text.'),
  ] = None
  include_stop_str_in_output: Annotated[
    bool, Field(description='The text ends with the stop string or token.')
  ] = False
  truncate_prompt_tokens: Annotated[
    int | None,
    Field(
      ge=-1,
      le=MAX_INT32,
      description='Keep the last so many tokens of a prompt, or the last turns '
      'of a chat; -1: as many as the context holds.',
    ),
  ] = None
  prompt_logprobs: Annotated[
    int | None,
    Field(
      ge=0,
      le=MAX_TOP_LOGPROBS,
      description='Score the prompt with so many alternatives, as vLLM does.',
    ),
  ] = None
  return_progress: Annotated[
    bool,
    Field(description='Report `prompt_progress` in a stream, as llama.cpp.'),
  ] = False
  timings_per_token: Annotated[
    bool, Field(description='`timings` in every chunk, not in the last alone.')
  ] = False

  @model_validator(mode='after')
  def usage_needs_a_stream(self) -> Self:
    if self.stream_options is not None and not self.stream:
      raise refused(
        'is only allowed with stream: true.', param='stream_options'
      )
    return self

  @model_validator(mode='after')
  def fields_agree(self) -> Self:
    if self.best_of not in (None, self.n):
      raise not_supported(
        f'must equal n, which is {self.n}: choices are not ranked.', 'best_of'
      )
    if self.prompt_logprobs is not None and self.stream:
      raise refused('is not allowed with stream: true.', 'prompt_logprobs')
    if self.truncate_prompt_tokens == 0:
      raise refused(
        'must be -1 or at least 1, not 0.', 'truncate_prompt_tokens'
      )
    if self.min_tokens > max_tokens_of(self.limit):
      raise refused(
        f'must not be above max_tokens, which is {self.limit}.', 'min_tokens'
      )
    if self.min_tokens and self.structure:
      raise not_supported(
        'is not supported beside a format: that decides where it ends.',
        'min_tokens',
      )
    moving = self.context_overflow not in (None, 'stop')
    if self.limit < 0 and moving:
      raise refused(
        'must be stop where max_tokens is -1, the rest of the context.',
        'context_overflow',
      )
    return self

  @property
  def limit(self) -> int:
    """The most tokens of a choice; -1: to the end of the context."""
    asked = (self.max_completion_tokens, self.max_tokens, DEFAULT_TOKENS)
    return next(n for n in asked if n is not None)

  @property
  def include_usage(self) -> bool:
    return self.stream_options is not None and self.stream_options.include_usage

  def sampling(self, overflow: str) -> Sampling:
    """Settings for the engine; `overflow` is the operator's default."""
    if self.limit < 0:
      overflow = 'stop'
    return Sampling(
      max_tokens=max_tokens_of(self.limit),
      min_tokens=self.min_tokens,
      temperature=self.temperature,
      top_p=self.top_p,
      top_k=max(0, self.top_k),
      # The sampler requires min_p < 1; this is greedy all the same.
      min_p=min(self.min_p, 0.999999),
      repetition=self.repetition_penalty,
      frequency=self.frequency_penalty,
      presence=self.presence_penalty,
      logit_bias=self.logit_bias,
      stop=self.stop,
      stop_token_ids=self.stop_token_ids,
      include_stop=self.include_stop_str_in_output,
      ignore_eos=self.ignore_eos,
      allowed_token_ids=self.allowed_token_ids or (),
      truncate_prompt=self.truncate_prompt_tokens,
      prompt_logprobs=self.prompt_logprobs,
      n=self.n,
      seed=draw_seed(self.seed),
      overflow=self.context_overflow or overflow,
      **self.reporting(),
    )

  def reporting(self) -> dict[str, Any]:
    """The fields of Sampling that the two routes spell differently."""
    raise NotImplementedError


class CompletionRequest(OpenAIRequest):
  """POST /v1/completions."""

  prompt: Prompts
  max_completion_tokens: Annotated[
    int | None,
    Field(ge=-1, le=MAX_TOKENS, description='Wins over max_tokens.'),
  ] = None
  max_tokens: Annotated[
    int | None,
    Field(
      ge=-1,
      le=MAX_TOKENS,
      description=f'Default: {DEFAULT_TOKENS}; -1: to the end of the context.',
    ),
  ] = None
  logprobs: Annotated[
    int | None,
    Field(
      ge=0,
      le=MAX_TOP_LOGPROBS,
      description='Alternatives to report with each token.',
    ),
  ] = None
  echo: Annotated[
    bool,
    Field(
      description='Begin the text with the prompt; with logprobs, score it.'
    ),
  ] = False

  @model_validator(mode='after')
  def few_choices(self) -> Self:
    choices = len(self.prompt) * self.n
    if choices > MAX_PROMPTS:
      raise refused(
        f'asks for {choices} choices; at most {MAX_PROMPTS} are allowed: send '
        'fewer prompts or lower n.',
        'prompt',
      )
    return self

  def reporting(self) -> dict[str, Any]:
    return {'logprobs': self.logprobs, 'echo': self.echo}


class ChatRequest(OpenAIRequest, ToolFields):
  """POST /v1/chat/completions."""

  foreign = {
    name: values
    for name, values in unsupported.NEUTRAL.items()
    if name not in ('tool_choice', 'tools')
  }

  messages: Messages
  logprobs: bool = False
  top_logprobs: Annotated[int | None, Field(ge=0, le=MAX_TOP_LOGPROBS)] = None

  @model_validator(mode='after')
  def alternatives_need_logprobs(self) -> Self:
    if self.top_logprobs and not self.logprobs:
      raise refused(
        'is only allowed with logprobs: true.', param='top_logprobs'
      )
    return self

  def reporting(self) -> dict[str, Any]:
    return {'logprobs': (self.top_logprobs or 0) if self.logprobs else None}


def draw_seed(seed: int | None) -> int:
  """uint32; None and -1 (llama.cpp's and vLLM's null) draw one."""
  if seed is None or seed == -1:
    return secrets.randbits(32)
  return seed & 0xFFFFFFFF
