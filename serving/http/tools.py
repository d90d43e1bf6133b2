"""Functions that a chat model may call, as OpenAI's clients describe them."""

import json
import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
  BaseModel,
  Field,
  PlainValidator,
  PrivateAttr,
  model_validator,
)
from pydantic import WithJsonSchema as JsonSchema

from gpt.decoding.calls import MOST_CALLS
from gpt.tokenizers.tool_format import Tool
from serving.http.encoding import json_type
from serving.http.validation import Wanted, refused

MAX_TOOLS = 128
NAME = re.compile(r'[a-zA-Z0-9_.-]{1,64}')
FUNCTION = {
  'type': 'object',
  'properties': {
    'name': {'type': 'string', 'pattern': f'^{NAME.pattern}$'},
    'description': {'type': ['string', 'null']},
    'parameters': {'type': ['object', 'null']},
  },
  'required': ['name'],
}
TOOLS = {
  'type': 'array',
  'maxItems': MAX_TOOLS,
  'items': {
    'type': 'object',
    'properties': {'type': {'const': 'function'}, 'function': FUNCTION},
    'required': ['type', 'function'],
  },
}
CHOICE = {
  'anyOf': [
    {'enum': ['none', 'auto', 'required']},
    {
      'type': 'object',
      'properties': {
        'type': {'const': 'function'},
        'function': {
          'type': 'object',
          'properties': {'name': {'type': 'string'}},
          'required': ['name'],
        },
      },
      'required': ['type', 'function'],
    },
  ]
}
CALLS = {
  'type': 'array',
  'items': {
    'type': 'object',
    'properties': {
      'id': {'type': 'string'},
      'type': {'const': 'function'},
      'function': {
        'type': 'object',
        'properties': {
          'name': {'type': 'string'},
          'arguments': {'type': 'string'},
        },
        'required': ['name', 'arguments'],
      },
    },
    'required': ['id', 'function'],
  },
}


def read_tool(value: Any, field: str) -> Tool:
  """One function. Raises a validation error that names `field`."""
  if not isinstance(value, dict) or value.get('type') != 'function':
    raise refused('must be {type: "function", function}.', field)
  function = value.get('function')
  if not isinstance(function, dict):
    given = json_type(function)
    raise refused(f'must be an object, not {given}.', f'{field}.function')
  name, parameters = function.get('name'), function.get('parameters')
  if not isinstance(name, str) or not NAME.fullmatch(name):
    raise refused(
      'must have 1 to 64 letters, digits, _, - or dots.',
      f'{field}.function.name',
    )
  if not isinstance(parameters, dict | None):
    raise refused(
      f'must be a JSON Schema, an object, not {json_type(parameters)}.',
      f'{field}.function.parameters',
    )
  if not isinstance(function.get('description'), str | None):
    raise refused('must be a string.', f'{field}.function.description')
  kept = ('name', 'description', 'parameters')
  shown = {k: function[k] for k in kept if function.get(k) is not None}
  return {'type': 'function', 'function': shown}


def read_calls(value: Any) -> list[dict[str, Any]]:
  """Earlier calls, whose arguments become objects where they are JSON."""
  if not isinstance(value, list):
    raise refused(f'must be an array, not {json_type(value)}.')
  calls = []
  for call in value:
    function = call.get('function') if isinstance(call, dict) else None
    if not isinstance(function, dict):
      raise refused('must hold {id, type, function: {name, arguments}}.')
    name, arguments = function.get('name'), function.get('arguments')
    if not isinstance(name, str) or not isinstance(arguments, str):
      raise refused('must hold functions with a name and arguments, as text.')
    try:
      parsed = json.loads(arguments or '{}')
    except (ValueError, RecursionError):
      parsed = arguments
    arguments = parsed if isinstance(parsed, dict) else arguments
    calls.append(
      {
        'id': str(call.get('id', '')),
        'type': 'function',
        'function': {'name': name, 'arguments': arguments},
      }
    )
  return calls


class ToolFields(BaseModel):
  """The part of a chat request about functions.

  Its private attributes hold what `read_tools` has found.
  """

  tools: Annotated[
    Any,
    JsonSchema(TOOLS),
    Field(description='Functions that the model may call.'),
  ] = None
  tool_choice: Annotated[
    Any,
    JsonSchema(CHOICE),
    Field(
      description='Whether the reply calls functions: no, perhaps, surely, or '
      'this one. Default: auto.'
    ),
  ] = None
  parallel_tool_calls: Annotated[
    bool,
    Field(description=f'Allow up to {MOST_CALLS} calls instead of one.'),
  ] = True
  _shown: list[Tool] = PrivateAttr(default_factory=list)
  _callable: list[Tool] = PrivateAttr(default_factory=list)
  _mode: Literal['none', 'auto', 'required'] = PrivateAttr('none')

  @model_validator(mode='after')
  def read_tools(self) -> Self:
    """Checks the functions and the choice among them."""
    given = self.tools or []
    if not isinstance(given, list) or len(given) > MAX_TOOLS:
      raise refused(f'must be an array of up to {MAX_TOOLS} tools.', 'tools')
    tools = [read_tool(x, f'tools[{i}]') for i, x in enumerate(given)]
    names = [tool['function']['name'] for tool in tools]
    if len(set(names)) < len(names):
      raise refused('must have distinct names.', 'tools')
    self._shown = tools
    choice = self.tool_choice or None
    if choice is not None and choice != 'none' and not tools:
      if choice == 'auto':
        return self
      raise refused('is only allowed with tools.', 'tool_choice')
    match choice:
      case None | 'auto':
        self._mode = 'auto' if tools else 'none'
      case 'none' | 'required':
        self._mode = choice
      case {'type': 'function', 'function': {'name': str(name)}}:
        if name not in names:
          raise refused(
            f'names {name[:64]!r}, which is not among the tools.', 'tool_choice'
          )
        self._mode, self.parallel_tool_calls = 'required', False
        tools = [tools[names.index(name)]]
      case _:
        raise refused(
          'must be none, auto, required or {type: "function", function: '
          '{name}}.',
          'tool_choice',
        )
    if self._mode == 'none':
      self._shown = tools = []
    self._callable = tools
    return self

  @property
  def shown_tools(self) -> list[Tool]:
    """The functions that the model is told of."""
    return self._shown

  @property
  def callable_tools(self) -> list[Tool]:
    """The functions that the reply may call."""
    return self._callable

  @property
  def call_is_optional(self) -> bool:
    return self._mode == 'auto'

  @property
  def most_calls(self) -> int:
    return MOST_CALLS if self.parallel_tool_calls else 1


ToolCalls = Annotated[
  Any,
  PlainValidator(read_calls),
  JsonSchema(CALLS),
  Wanted('an array of {id, type, function}'),
]
