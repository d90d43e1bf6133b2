"""Fields that constrain the text, as OpenAI, llama.cpp and vLLM spell them.

A request may hold one of them; it becomes a `Source` of gpt.decoding.grammars.
"""

import json
from collections.abc import Callable
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, PrivateAttr, model_validator
from pydantic import WithJsonSchema as JsonSchema

from gpt.decoding.grammars import Source
from serving.http.encoding import json_type
from serving.http.unsupported import STRUCTURED
from serving.http.validation import not_supported, refused

MAX_CHOICES = 1000
TEXT = {'type': 'string'}
NULL = {'type': 'null'}
OBJECT = {'type': 'object'}
SCHEMA = {'anyOf': [OBJECT, TEXT]}
CHOICE = {
  'type': 'array',
  'items': TEXT,
  'minItems': 1,
  'maxItems': MAX_CHOICES,
}
FORMAT = {
  'anyOf': [
    {
      'type': 'object',
      'properties': {'type': {'const': 'text'}},
      'required': ['type'],
    },
    {
      'type': 'object',
      'properties': {'type': {'const': 'json_object'}, 'schema': OBJECT},
      'required': ['type'],
    },
    {
      'type': 'object',
      'properties': {
        'type': {'const': 'json_schema'},
        'json_schema': {
          'type': 'object',
          'properties': {'schema': OBJECT},
          'required': ['schema'],
        },
      },
      'required': ['type', 'json_schema'],
    },
  ]
}
OUTPUTS = {
  'type': 'object',
  'properties': {
    'json': {'anyOf': [OBJECT, TEXT, NULL]},
    'regex': {'anyOf': [TEXT, NULL]},
    'choice': {'anyOf': [CHOICE, NULL]},
    'grammar': {'anyOf': [TEXT, NULL]},
    'json_object': {'type': ['boolean', 'null']},
  },
  'additionalProperties': False,
}


def read_schema(value: Any, field: str) -> Source:
  """A JSON Schema: an object, or its JSON as a string."""
  if isinstance(value, str):
    try:
      value = json.loads(value)
    except (ValueError, RecursionError) as e:
      raise refused('is not valid JSON.', field) from e
  if not isinstance(value, dict):
    given = json_type(value)
    raise refused(f'must be a JSON Schema, an object, not {given}.', field)
  return Source('json_schema', json.dumps(value), field)


def read_text(kind: str) -> Callable[[Any, str], Source]:
  """A reader of regular expressions or grammars."""

  def read(value: Any, field: str) -> Source:
    if not isinstance(value, str) or not value:
      given = 'empty' if value == '' else json_type(value)
      raise refused(f'must be a non-empty string, not {given}.', field)
    return Source(kind, value, field)

  return read


def read_choice(value: Any, field: str) -> Source:
  fits = isinstance(value, list) and 0 < len(value) <= MAX_CHOICES
  if not fits or not all(isinstance(x, str) and x for x in value):
    raise refused(
      f'must be an array of 1 to {MAX_CHOICES} non-empty strings.', field
    )
  return Source('choice', json.dumps(value), field)


def read_any_object(value: Any, field: str) -> Source:
  if value is not True:
    raise refused(f'must be true or false, not {json_type(value)}.', field)
  return read_schema(OBJECT, field)


# vLLM's names: entries of structured_outputs, fields guided_NAME.
READERS: dict[str, Callable[[Any, str], Source]] = {
  'json': read_schema,
  'regex': read_text('regex'),
  'choice': read_choice,
  'grammar': read_text('grammar'),
  'json_object': read_any_object,
}


def read_outputs(value: Any, field: str) -> Source:
  """vLLM's structured_outputs: an object with one of several entries."""
  if not isinstance(value, dict):
    raise refused(f'must be an object, not {json_type(value)}.', field)
  known = ', '.join(READERS)
  given = {k: x for k, x in value.items() if x is not None and x is not False}
  for name in given:
    if name not in READERS:
      raise not_supported(
        f'has the entry {name[:40]!r}; supported are {known}.',
        field,
      )
  if len(given) != 1:
    raise refused(f'must have exactly one entry of {known}.', field)
  ((name, inner),) = given.items()
  return READERS[name](inner, f'{field}.{name}')


def read_format(value: Any, field: str) -> Source | None:
  """OpenAI's response_format, and llama.cpp's {type: json_object, schema}."""
  if not isinstance(value, dict):
    raise refused(f'must be an object, not {json_type(value)}.', field)
  match value.get('type'):
    case 'text':
      return None
    case 'json_object':
      schema = value.get('schema')
      return read_schema(
        OBJECT if schema is None else schema, f'{field}.schema'
      )
    case 'json_schema':
      inner = value.get('json_schema')
      if not isinstance(inner, dict) or inner.get('schema') is None:
        raise refused(
          'must be an object {name, schema}.', f'{field}.json_schema'
        )
      return read_schema(inner['schema'], f'{field}.json_schema.schema')
  raise not_supported(
    'must have the type text, json_object or json_schema.', field
  )


class StructuredFields(BaseModel):
  """The part of a request that says what the text must look like."""

  response_format: Annotated[
    Any,
    JsonSchema(FORMAT),
    Field(description='OpenAI: text, any JSON object, or a JSON Schema.'),
  ] = None
  structured_outputs: Annotated[
    Any, JsonSchema(OUTPUTS), Field(description='vLLM: one of its entries.')
  ] = None
  grammar: Annotated[
    Any,
    JsonSchema(TEXT),
    Field(description="A grammar in llguidance's Lark notation, or GBNF."),
  ] = None
  regex: Annotated[
    Any,
    JsonSchema(TEXT),
    Field(description='A regular expression that the whole text matches.'),
  ] = None
  json_schema: Annotated[
    Any, JsonSchema(SCHEMA), Field(description='llama.cpp: a JSON Schema.')
  ] = None
  guided_json: Annotated[
    Any, JsonSchema(SCHEMA), Field(description='vLLM: a JSON Schema.')
  ] = None
  guided_json_object: Annotated[
    Any,
    JsonSchema({'type': 'boolean'}),
    Field(description='vLLM: any JSON object.'),
  ] = None
  guided_regex: Annotated[
    Any, JsonSchema(TEXT), Field(description='vLLM: as regex.')
  ] = None
  guided_choice: Annotated[
    Any, JsonSchema(CHOICE), Field(description='vLLM: one of these texts.')
  ] = None
  guided_grammar: Annotated[
    Any, JsonSchema(TEXT), Field(description='vLLM: as grammar.')
  ] = None
  _structure: Source | None = PrivateAttr(None)

  @model_validator(mode='after')
  def read_structure(self) -> Self:
    """Reads the one field that is given."""
    readers: dict[str, Callable[[Any, str], Source | None]] = {
      'response_format': read_format,
      'structured_outputs': read_outputs,
      'json_schema': read_schema,
      'grammar': READERS['grammar'],
      'regex': READERS['regex'],
      **{f'guided_{name}': read for name, read in READERS.items()},
    }
    found = {}
    for field, read in readers.items():
      value = getattr(self, field)
      absent = value is None or value in STRUCTURED[field]
      source = None if absent else read(value, field)
      if source is not None:
        found[field] = source
    if len(found) > 1:
      first, second, *_ = found
      raise refused(f'cannot be combined with {first}.', second)
    self._structure = next(iter(found.values()), None)
    return self

  @property
  def structure(self) -> Source | None:
    """What the text must look like, or None."""
    return self._structure
