"""The request of POST /v1/responses: OpenAI's Responses API, without state.

https://platform.openai.com/docs/api-reference/responses
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainValidator, PrivateAttr, model_validator
from pydantic import WithJsonSchema as JsonSchema

from gpt.decoding.grammars import Source
from serving.engine.sampling import MAX_TOP_LOGPROBS, Sampling
from serving.http import unsupported
from serving.http.encoding import json_type
from serving.http.fields import (
  MAX_INT32,
  STRING,
  MaxTokens,
  Seed,
  Stop,
  Temperature,
  Text,
  max_tokens_of,
)
from serving.http.plain_schemas import BEYOND
from serving.http.schemas import DEFAULT_TOKENS, Generating, draw_seed
from serving.http.structured import OBJECT, read_format, read_schema
from serving.http.unsupported import OFF
from serving.http.validation import Wanted, not_supported, refused, wrong

ROLES = ('user', 'assistant', 'system', 'developer')
PARTS = ('input_text', 'output_text', 'text')
LOGPROBS = 'message.output_text.logprobs'
Turn = dict[str, str]


def read_input(value: Any) -> list[Turn]:
  """A user's text, or messages; as turns {role, content}."""
  if isinstance(value, str):
    return [{'role': 'user', 'content': value}]
  if not isinstance(value, list) or not value:
    raise wrong('empty' if value == [] else json_type(value))
  return [read_item(item, f'[{i}]') for i, item in enumerate(value)]


def read_item(item: Any, at: str) -> Turn:
  if not isinstance(item, dict):
    raise wrong(f'{json_type(item)} at {at}')
  kind = item.get('type', 'message')
  if kind != 'message':
    raise not_supported(
      f'holds {str(kind)[:40]!r} at {at}; only messages are supported.', 'input'
    )
  role = item.get('role')
  if role not in ROLES:
    raise refused(f'needs a role at {at}: {", ".join(ROLES)}.', 'input')
  return {
    'role': 'system' if role == 'developer' else str(role),
    'content': read_content(item.get('content'), at),
  }


def read_content(content: Any, at: str) -> str:
  if isinstance(content, str):
    return content
  if not isinstance(content, list):
    raise refused(f'needs text as the content at {at}.', 'input')
  texts = []
  for part in content:
    fits = isinstance(part, dict) and part.get('type') in PARTS
    if not fits or not isinstance(part.get('text'), str):
      raise not_supported(
        f'has a part at {at} that is not {{type: input_text, text}}.', 'input'
      )
    texts.append(part['text'])
  return ''.join(texts)


MESSAGE = {
  'type': 'object',
  'properties': {
    'type': {'const': 'message'},
    'role': {'enum': list(ROLES)},
    'content': {
      'anyOf': [
        STRING,
        {
          'type': 'array',
          'items': {
            'type': 'object',
            'properties': {'type': {'enum': list(PARTS)}, 'text': STRING},
            'required': ['type', 'text'],
          },
        },
      ]
    },
  },
  'required': ['role', 'content'],
}
TEXT_FORMAT = {
  'anyOf': [
    {'type': 'null'},
    {
      'type': 'object',
      'properties': {'type': {'enum': ['text', 'json_object']}},
      'required': ['type'],
    },
    {
      'type': 'object',
      'properties': {'type': {'const': 'json_schema'}, 'schema': OBJECT},
      'required': ['type', 'schema'],
    },
  ]
}
Input = Annotated[
  list[Turn],
  PlainValidator(read_input),
  JsonSchema(
    {'anyOf': [STRING, {'type': 'array', 'items': MESSAGE, 'minItems': 1}]}
  ),
  Wanted('a string or an array of messages {role, content}'),
]


class ResponseRequest(Generating):
  """POST /v1/responses."""

  foreign = {
    **BEYOND,
    'background': OFF,
    'context_management': OFF,
    'conversation': (),
    'max_tokens': (),
    'previous_response_id': (),
    'prompt': (),
    'response_format': (),
    'store': (False,),
    'tool_choice': ('none', 'auto'),
    **dict.fromkeys(unsupported.STRUCTURED, ()),
  }

  input: Input
  instructions: Annotated[
    Text | None, Field(description='A system message before the input.')
  ] = None
  max_output_tokens: Annotated[
    MaxTokens | None, Field(description=f'Default: {DEFAULT_TOKENS}.')
  ] = None
  temperature: Temperature = 0.8
  top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
  top_k: Annotated[int, Field(ge=-1, le=MAX_INT32)] = 0
  min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
  repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
  frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
  presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
  seed: Seed | None = None
  stop: Annotated[Stop, Field(description='Strings that end the text.')] = ()
  stream: Annotated[bool, Field(description='Send server-sent events.')] = False
  truncation: Annotated[
    Literal['auto', 'disabled'],
    Field(description='Drop the oldest turns that do not fit, or refuse.'),
  ] = 'auto'
  top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] = 0
  include: Annotated[
    list[Any],
    JsonSchema({'type': 'array', 'items': {'const': LOGPROBS}}),
    Wanted(f'an array that may hold {LOGPROBS}'),
  ] = []  # noqa: RUF012
  text: Annotated[
    dict[str, Any],
    JsonSchema({'type': 'object', 'properties': {'format': TEXT_FORMAT}}),
    Wanted('an object {format}'),
  ] = {}  # noqa: RUF012
  metadata: Annotated[
    dict[str, Any],
    JsonSchema({'type': 'object'}),
    Field(description='Returned as it is.'),
    Wanted('an object'),
  ] = {}  # noqa: RUF012
  _structure: Source | None = PrivateAttr(None)

  @model_validator(mode='after')
  def read_format_and_includes(self) -> Self:
    for name in self.include:
      if name != LOGPROBS:
        raise not_supported(f'may hold {LOGPROBS!r} alone.', 'include')
    wanted = self.text.get('format')
    if isinstance(wanted, dict) and wanted.get('type') == 'json_schema':
      # Flat here, unlike in chats.
      self._structure = read_schema(wanted.get('schema'), 'text.format.schema')
    elif wanted is not None:
      self._structure = read_format(wanted, 'text.format')
    return self

  @property
  def structure(self) -> Source | None:
    """What the text must look like, or None."""
    return self._structure

  def turns(self) -> list[Turn]:
    """The conversation, with the instructions as its system message."""
    if self.instructions is None:
      return self.input
    return [{'role': 'system', 'content': self.instructions}, *self.input]

  def sampling(self, overflow: str) -> Sampling:
    """Settings for the engine; `overflow` is the operator's default."""
    limit = self.max_output_tokens
    limit = DEFAULT_TOKENS if limit is None else limit
    if self.truncation == 'disabled':
      overflow = 'error'
    elif limit < 0:
      overflow = 'stop'
    scored = LOGPROBS in self.include or self.top_logprobs
    return Sampling(
      max_tokens=max_tokens_of(limit),
      temperature=self.temperature,
      top_p=self.top_p,
      top_k=max(0, self.top_k),
      min_p=min(self.min_p, 0.999999),
      repetition=self.repetition_penalty,
      frequency=self.frequency_penalty,
      presence=self.presence_penalty,
      stop=self.stop,
      seed=draw_seed(self.seed),
      logprobs=self.top_logprobs if scored else None,
      overflow=overflow,
    )
