"""Events -> the answer of POST /v1/responses, whole or as typed events.

The order of the events is that of OpenAI's API: a response that is created and
in progress, an item, a part of its content, deltas, and all of it done.
"""

import secrets
import time
from collections.abc import Iterable
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from gpt.tokenizers import Tokenizer
from serving.engine.events import Delta, Event, Finished, Token
from serving.engine.jobs import Job
from serving.http.replies import finite, token_text, warnings_of
from serving.http.response_request import ResponseRequest
from serving.http.responses import ChatTokenLogprob, Notice, TokenLogprob

Status = Literal['in_progress', 'completed', 'incomplete']


class OutputText(TypedDict):
  type: Literal['output_text']
  text: str
  annotations: list[str]  # Always empty.
  logprobs: list[ChatTokenLogprob]


class OutputMessage(TypedDict):
  type: Literal['message']
  id: str
  status: Status
  role: Literal['assistant']
  content: list[OutputText]


class CachedTokens(TypedDict):
  cached_tokens: int


class ReasoningTokens(TypedDict):
  reasoning_tokens: int  # Always 0.


class ResponseUsage(TypedDict):
  input_tokens: int
  input_tokens_details: CachedTokens
  output_tokens: int
  output_tokens_details: ReasoningTokens
  total_tokens: int


class Incomplete(TypedDict):
  reason: Literal['max_output_tokens']


class ResponseObject(TypedDict):
  """`store` is false: nothing is kept, so no later request can refer to it."""

  id: str
  object: Literal['response']
  created_at: int
  completed_at: int | None
  status: Status
  error: None
  incomplete_details: Incomplete | None
  instructions: str | None
  max_output_tokens: int | None
  metadata: dict[str, Any]
  model: str
  output: list[OutputMessage]
  parallel_tool_calls: bool
  previous_response_id: None
  seed: int
  store: Literal[False]
  system_fingerprint: str | None
  temperature: float
  text: dict[str, Any]
  tool_choice: Literal['auto']
  tools: list[str]  # Always empty.
  tokens_dropped: NotRequired[int]
  top_logprobs: int
  top_p: float
  truncation: Literal['auto', 'disabled']
  usage: ResponseUsage | None
  warnings: NotRequired[list[Notice]]


class ResponseEvent(TypedDict):
  """`type` decides which of the other fields there are."""

  type: str
  sequence_number: int
  response: NotRequired[ResponseObject]
  item: NotRequired[OutputMessage]
  item_id: NotRequired[str]
  output_index: NotRequired[int]
  content_index: NotRequired[int]
  part: NotRequired[OutputText]
  delta: NotRequired[str]
  text: NotRequired[str]
  logprobs: NotRequired[list[ChatTokenLogprob]]


class ResponseReply:
  """One object per request, like Reply for the other routes of OpenAI's API.

  Args:
    job: read while it runs; it may still be empty now.
    model: the name to answer with.
  """

  end = b''

  def __init__(
    self, job: Job, model: str, tokenizer: Tokenizer, asked: ResponseRequest
  ) -> None:
    self.job = job
    self._model = model
    self._tokenizer = tokenizer
    self._asked = asked
    self._id = f'resp_{secrets.token_hex(12)}'
    self._item_id = f'msg_{secrets.token_hex(12)}'
    self._created = int(time.time())
    self._numbers = 0
    self._texts: list[str] = []
    self._tokens: list[Token] = []
    self._reason = ''

  def whole(self, events: Iterable[Event]) -> dict[str, Any]:
    """The answer to a request without streaming."""
    self._take(events)
    return self._response()

  def chunks(self, events: Iterable[Event]) -> list[dict[str, Any]]:
    """Events to stream for a batch of the engine's."""
    out = [] if self._numbers else self._opening()
    text, tokens = self._take(events)
    if text:
      out.append(self._inside('output_text.delta', delta=text, logprobs=tokens))
    return out

  def last_chunks(self) -> list[dict[str, Any]]:
    part = self._part()
    inside = self._inside(
      'output_text.done', text=part['text'], logprobs=part['logprobs']
    )
    return [
      inside,
      self._inside('content_part.done', part=part),
      self._event('output_item.done', output_index=0, item=self._item()),
      self._event(self._status, response=self._response()),
    ]

  def _take(
    self, events: Iterable[Event]
  ) -> tuple[str, list[ChatTokenLogprob]]:
    """The text of a batch, and its log-probabilities if they are wanted."""
    texts: list[str] = []
    tokens: list[Token] = []
    for event in events:
      if isinstance(event, Delta):
        texts.append(event.text)
        tokens += [t for t in event.tokens if t.id not in self.job.stop_ids]
      elif isinstance(event, Finished):
        self._reason = event.reason
    self._texts += texts
    self._tokens += tokens
    return ''.join(texts), self._logprobs(tokens)

  @property
  def _status(self) -> Status:
    if not self._reason:
      return 'in_progress'
    return 'incomplete' if self._reason == 'length' else 'completed'

  def _opening(self) -> list[dict[str, Any]]:
    item = {**self._item(), 'content': []}
    return [
      self._event('created', response=self._response()),
      self._event('in_progress', response=self._response()),
      self._event('output_item.added', output_index=0, item=item),
      self._inside('content_part.added', part=self._part()),
    ]

  def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
    number = self._numbers
    self._numbers += 1
    return {'type': f'response.{kind}', 'sequence_number': number, **fields}

  def _inside(self, kind: str, **fields: Any) -> dict[str, Any]:
    """An event about the only part of the only item."""
    return self._event(
      kind, item_id=self._item_id, output_index=0, content_index=0, **fields
    )

  def _part(self) -> OutputText:
    return {
      'type': 'output_text',
      'text': ''.join(self._texts),
      'annotations': [],
      'logprobs': self._logprobs(self._tokens),
    }

  def _item(self) -> OutputMessage:
    return {
      'type': 'message',
      'id': self._item_id,
      'status': self._status,
      'role': 'assistant',
      'content': [self._part()],
    }

  def _logprobs(self, tokens: list[Token]) -> list[ChatTokenLogprob]:
    return [
      {
        **self._entry(t.id, t.logprob),
        'top_logprobs': [self._entry(*pair) for pair in t.top],
      }
      for t in tokens
    ]

  def _entry(self, id: int, logprob: float | None) -> TokenLogprob:
    return {
      'token': token_text(self._tokenizer, id),
      'logprob': finite(logprob),
      'bytes': list(self._tokenizer.token_bytes(id)),
    }

  def _usage(self) -> ResponseUsage:
    job = self.job
    return {
      'input_tokens': job.prompt_tokens,
      'input_tokens_details': {'cached_tokens': job.cached_tokens},
      'output_tokens': job.completion_tokens,
      'output_tokens_details': {'reasoning_tokens': 0},
      'total_tokens': job.prompt_tokens + job.completion_tokens,
    }

  def _response(self) -> dict[str, Any]:
    job, asked, done = self.job, self._asked, bool(self._reason)
    cut = {'reason': 'max_output_tokens'}
    answer = {
      'id': self._id,
      'object': 'response',
      'created_at': self._created,
      'completed_at': int(time.time()) if done else None,
      'status': self._status,
      'error': None,
      'incomplete_details': cut if self._status == 'incomplete' else None,
      'instructions': asked.instructions,
      'max_output_tokens': asked.max_output_tokens,
      'metadata': asked.metadata,
      'model': self._model,
      'output': [self._item()] if done else [],
      'parallel_tool_calls': False,
      'previous_response_id': None,
      'seed': job.sampling.seed,
      'store': False,
      'system_fingerprint': job.weights.fingerprint if job.weights else None,
      'temperature': asked.temperature,
      'text': asked.text or {'format': {'type': 'text'}},
      'tool_choice': 'auto',
      'tools': [],
      'top_logprobs': asked.top_logprobs,
      'top_p': asked.top_p,
      'truncation': asked.truncation,
      'usage': self._usage() if done else None,
    }
    if job.tokens_dropped:
      answer['tokens_dropped'] = job.tokens_dropped
    return answer | warnings_of(job.notices)
