"""Pydantic's validation errors -> ours: the field, what is allowed, what came.

Validators that check more than a type or a bound raise `wrong`, `refused` or
`not_supported`; `read` words everything else from the field's own constraints.
"""

import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import annotated_types
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from serving.http.encoding import json_type
from serving.http.errors import ApiError, bad_request

M = TypeVar('M', bound=BaseModel)
UNSUPPORTED = 'unsupported_parameter'
MISSING = 'missing_required_parameter'


class Wanted(str):
  """Describes a field's allowed values; metadata of an Annotated type."""


def wrong(given: str) -> PydanticCustomError:
  """The value is not what the field wants; `given` describes it."""
  return PydanticCustomError('wrong', 'wrong', {'given': given})


def refused(text: str, param: str = '') -> PydanticCustomError:
  """`text` continues a sentence that begins with the field's name."""
  return PydanticCustomError('refused', 'refused', {'text': text, 'at': param})


def not_supported(text: str, param: str = '') -> PydanticCustomError:
  """As `refused`, for values that this server has no support for."""
  context = {'text': text, 'at': param}
  return PydanticCustomError(UNSUPPORTED, 'refused', context)


def missing(text: str, param: str) -> PydanticCustomError:
  """As `refused`, for a field that another could stand in for."""
  return PydanticCustomError(MISSING, 'refused', {'text': text, 'at': param})


def read(model: type[M], body: Mapping[str, Any], vocab_size: int) -> M:
  """A validated model of a request body. Raises ApiError (400)."""
  try:
    return model.model_validate(body, context={'vocab_size': vocab_size})
  except ValidationError as e:
    errors = e.errors(include_url=False)
  # A field that is not supported explains the request best.
  first = min(errors, key=lambda error: error['type'] != UNSUPPORTED)
  raise explain(first, model)


def explain(error: ErrorDetails, model: type[BaseModel]) -> ApiError:
  """Our error for one of pydantic's."""
  context = error.get('ctx', {})
  loc = error['loc'] or tuple(context['at'].split('.'))
  path, kind = path_of(loc), error['type']
  param = path if '[' in path else str(loc[0])
  if 'text' in context:
    code = kind if kind in (UNSUPPORTED, MISSING) else None
    return bad_request(f'{path} {context["text"]}', param, code)
  if kind == 'too_short':
    return bad_request(f'{path} must not be empty.', param)
  wanted = wanted_at(model, loc)
  if kind == 'missing' and len(loc) == 1:
    return bad_request(f'{path} is required: {wanted}.', param, MISSING)
  given = context.get('given') or describe(error)
  return bad_request(f'{path} must be {wanted}, not {given}.', param)


def path_of(loc: tuple[int | str, ...]) -> str:
  """('messages', 0, 'role') -> 'messages[0].role'."""
  parts = (f'[{x}]' if isinstance(x, int) else f'.{x}' for x in loc)
  return ''.join(parts).removeprefix('.')


def describe(error: ErrorDetails) -> str:
  """The given value, by its type where that is at fault."""
  kind, value = error['type'], error['input']
  if kind == 'missing':
    return 'null'
  if kind == 'literal_error':
    text = isinstance(value, str)
    return shorten(repr(value)) if text else json_type(value)
  # Integers too large for a float fail as float_type, fractions as int_type.
  number = kind in ('float_type', 'int_type') and type(value) in (int, float)
  if number or not kind.endswith('_type'):
    return shorten(value)
  return json_type(value)


def wanted_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> str:
  """Allowed values of the field at `loc`, e.g. 'an integer from 1 to 8'."""
  name, *rest = loc
  field = model.model_fields[str(name)]
  nested = nested_model(field.annotation)
  if rest and nested is not None:
    names = tuple(x for x in rest if isinstance(x, str))
    return wanted_at(nested, names) if names else 'an object'
  return wanted(field)


def wanted(field: FieldInfo) -> str:
  for item in flat(field):
    if isinstance(item, Wanted):
      return item
  kinds = set(members(field.annotation))
  if bool in kinds:
    return 'true or false'
  if int in kinds:
    low, high, _ = bounds(field)
    return f'an integer from {low} to {high}'
  if float in kinds:
    low, high, above = bounds(field)
    return f'a number {"above" if above else "from"} {low:g} to {high:g}'
  choices = [c for c in kinds if typing.get_origin(c) is Literal]
  if choices:
    return 'one of ' + ', '.join(typing.get_args(choices[0]))
  return 'a string'


def bounds(field: FieldInfo) -> tuple[Any, Any, bool]:
  """(lower bound, upper bound, whether the lower one is excluded)."""
  low = high = None
  above = False
  for item in flat(field):
    if isinstance(item, annotated_types.Ge):
      low = item.ge
    elif isinstance(item, annotated_types.Gt):
      low, above = item.gt, True
    elif isinstance(item, annotated_types.Le):
      high = item.le
  return low, high, above


def flat(field: FieldInfo) -> list[Any]:
  """A field's metadata, and that of the members of its union."""
  out = list(field.metadata)
  for kind in typing.get_args(field.annotation):
    for item in getattr(kind, '__metadata__', ()):
      out += item.metadata if isinstance(item, FieldInfo) else [item]
  return out


def members(annotation: Any) -> list[Any]:
  """The types of a union, without their metadata."""
  if typing.get_origin(annotation) in (typing.Union, types.UnionType):
    return [m for a in typing.get_args(annotation) for m in members(a)]
  if hasattr(annotation, '__metadata__'):
    return members(typing.get_args(annotation)[0])
  return [annotation]


def nested_model(annotation: Any) -> type[BaseModel] | None:
  """The model inside `Model | None` or `list[Model]`."""
  if isinstance(annotation, type) and issubclass(annotation, BaseModel):
    return annotation
  found = map(nested_model, typing.get_args(annotation))
  return next((model for model in found if model is not None), None)


def shorten(value: Any) -> str:
  text = str(value)
  return text if len(text) <= 40 else text[:40] + '...'
