"""Types of request fields that pydantic has no constraint for.

Each is an Annotated type: a reader that checks and converts the JSON value, its
JSON Schema, and its description for error messages.
"""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, PlainValidator, ValidationInfo
from pydantic import WithJsonSchema as JsonSchema

from serving.http.encoding import json_type
from serving.http.validation import (
  Wanted,
  not_supported,
  refused,
  shorten,
  wrong,
)

MAX_PROMPTS = 512  # and choices of all prompts together
MAX_STOPS = 16
MAX_STOP_LENGTH = 1000
MAX_TOKENS = 1_000_000
MAX_INT32, MAX_INT64 = 2**31 - 1, 2**63 - 1


def read_text(value: Any) -> str:
  """Any string: pydantic's own str rejects lone surrogates."""
  if not isinstance(value, str):
    raise wrong(json_type(value))
  return value


def read_token_ids(value: Any, info: ValidationInfo) -> tuple[int, ...]:
  vocab_size = info.context['vocab_size'] if info.context else MAX_INT32
  if not isinstance(value, list):
    raise wrong(json_type(value))
  for id in value:
    if type(id) is not int or not 0 <= id < vocab_size:
      given = shorten(id) if isinstance(id, int) else json_type(id)
      raise refused(
        f'must hold integers from 0 to {vocab_size - 1}, not {given}.'
      )
  return tuple(value)


def read_prompts(
  value: Any, info: ValidationInfo, most: int = MAX_PROMPTS
) -> tuple[Any, ...]:
  """One string, one list of token ids, or several of either: all prompts."""
  if isinstance(value, str):
    return (value,)
  if not isinstance(value, list) or not value:
    raise wrong('empty' if value == [] else json_type(value))
  if not any(isinstance(p, str | list) for p in value):
    return (read_token_ids(value, info),)
  if len(value) > most:
    raise refused(f'has {len(value)} entries; at most {most} are allowed.')
  if not all(isinstance(p, str | list) for p in value):
    raise wrong('a mixture with single token ids')
  return tuple(
    p if isinstance(p, str) else read_token_ids(p, info) for p in value
  )


def read_stop(value: Any) -> tuple[str, ...]:
  stops = [value] if isinstance(value, str) else value
  if (
    not isinstance(stops, list)
    or len(stops) > MAX_STOPS
    or not all(isinstance(s, str) and s for s in stops)
  ):
    raise refused(f'must be a non-empty string or up to {MAX_STOPS} of them.')
  longest = max(map(len, stops), default=0)
  if longest > MAX_STOP_LENGTH:
    raise refused(
      f'has a string of {longest} characters; at most {MAX_STOP_LENGTH} are '
      'allowed.'
    )
  return tuple(dict.fromkeys(stops))


def read_logit_bias(value: Any, info: ValidationInfo) -> dict[int, float]:
  vocab_size = info.context['vocab_size'] if info.context else MAX_INT32
  if not isinstance(value, dict):
    raise wrong(json_type(value))
  out = {}
  for key, bias in value.items():
    known = key.isascii() and key.isdigit() and len(key) < 10
    if not known or int(key) >= vocab_size:
      raise refused(
        f'has the key {shorten(key)!r}, which is not a token id from 0 to '
        f'{vocab_size - 1}.'
      )
    numeric = isinstance(bias, int | float) and not isinstance(bias, bool)
    if not numeric or not -100 <= bias <= 100:
      raise refused('values must be numbers from -100 to 100.')
    out[int(key)] = float(bias)
  return out


def read_content(value: Any, info: ValidationInfo) -> str:
  """A message's text; parts are joined. Only an assistant's may be absent."""
  if isinstance(value, str):
    return value
  if value is None and info.data.get('role') == 'assistant':
    return ''
  if not isinstance(value, list):
    raise wrong(json_type(value))
  for part in value:
    if not isinstance(part, dict) or part.get('type') != 'text':
      raise wrong('other parts')
    if not isinstance(part.get('text'), str):
      raise wrong('a part without text')
  return ''.join(part['text'] for part in value)


def refuse_any(value: Any) -> Any:
  """Accepts only values that ask for nothing."""
  if value not in ('', []):
    raise not_supported('is not supported.')
  return value


def refuse_zero(value: int) -> int:
  if not value:
    raise wrong('0')
  return value


def max_tokens_of(value: int) -> int:
  """The tokens that a max_tokens allows; the context ends those of -1."""
  return MAX_TOKENS if value < 0 else value


STRING = {'type': 'string'}
SOME = {'type': 'array', 'minItems': 1}
TOKEN = {'type': 'integer', 'minimum': 0}
TOKENS = {'type': 'array', 'items': TOKEN}
EITHER = {'anyOf': [STRING, TOKENS]}

PROMPTS = 'a string, token ids, or an array of strings and arrays of token ids'


def prompts_schema(most: int) -> dict[str, Any]:
  """The JSON Schema of up to `most` prompts."""
  several = {**SOME, 'items': EITHER, 'maxItems': most}
  return {'anyOf': [STRING, {**SOME, 'items': TOKEN}, several]}


Text = Annotated[str, PlainValidator(read_text), JsonSchema(STRING)]
TokenIds = Annotated[
  tuple[int, ...],
  PlainValidator(read_token_ids),
  JsonSchema(TOKENS),
  Wanted('an array of token ids'),
]
Prompts = Annotated[
  tuple[Any, ...],
  PlainValidator(read_prompts),
  JsonSchema(prompts_schema(MAX_PROMPTS)),
  Wanted(PROMPTS),
]
Stop = Annotated[
  tuple[str, ...],
  PlainValidator(read_stop),
  JsonSchema(
    {
      'anyOf': [
        {**STRING, 'minLength': 1, 'maxLength': MAX_STOP_LENGTH},
        {
          'type': 'array',
          'items': {**STRING, 'minLength': 1, 'maxLength': MAX_STOP_LENGTH},
          'maxItems': MAX_STOPS,
        },
      ]
    }
  ),
]
LogitBias = Annotated[
  dict[int, float],
  PlainValidator(read_logit_bias),
  JsonSchema(
    {
      'type': 'object',
      'propertyNames': {'pattern': '^[0-9]{1,9}$'},
      'additionalProperties': {
        'type': 'number',
        'minimum': -100,
        'maximum': 100,
      },
    }
  ),
  Wanted('an object {token id: bias}'),
]
Content = Annotated[
  str,
  PlainValidator(read_content),
  JsonSchema(
    {
      'anyOf': [
        STRING,
        {
          'type': 'array',
          'items': {
            'type': 'object',
            'properties': {'type': {'const': 'text'}, 'text': STRING},
            'required': ['type', 'text'],
          },
        },
        {'type': 'null'},
      ]
    }
  ),
  Wanted('a string or an array of {type: "text", text}'),
]
MaxTokens = Annotated[
  int,
  Field(ge=-1, le=MAX_TOKENS),
  AfterValidator(refuse_zero),
  JsonSchema(
    {
      'anyOf': [
        {'type': 'integer', 'minimum': 1, 'maximum': MAX_TOKENS},
        {'const': -1},
      ]
    }
  ),
  Wanted(f'an integer from 1 to {MAX_TOKENS}, or -1 for all that fit'),
]
Temperature = Annotated[float, Field(ge=0, le=2)]
Seed = Annotated[
  int,
  Field(
    ge=-MAX_INT64 - 1,
    le=MAX_INT64,
    description='Only the low 32 bits are used. -1, like null, draws one.',
  ),
]
Nothing = Annotated[
  Any,
  PlainValidator(refuse_any),
  JsonSchema(
    {'type': ['array', 'string', 'null'], 'maxItems': 0, 'maxLength': 0}
  ),
  Field(description='Not supported.'),
]
