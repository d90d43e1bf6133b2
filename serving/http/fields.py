"""Typed values out of a JSON object, or an error that names the field."""

import json
import secrets

from serving.http.errors import ApiError, bad_request

REQUIRED = object()


def parse_json(body: bytes) -> dict:
  """The object in a request body. Raises ApiError (400)."""

  def refuse(name):
    raise ValueError(f'{name} is not JSON')

  try:
    value = json.loads(body, parse_constant=refuse)
  except (ValueError, RecursionError) as e:
    text = str(e) or type(e).__name__
    raise bad_request(f'The body is not valid JSON: {text[:200]}') from e
  if not isinstance(value, dict):
    raise bad_request(
      f'The body must be a JSON object, not {json_type(value)}.'
    )
  return value


def json_type(value) -> str:
  names = {
    bool: 'a boolean',
    int: 'a number',
    float: 'a number',
    str: 'a string',
    list: 'an array',
    dict: 'an object',
    type(None): 'null',
  }
  return names[type(value)]


class Fields:
  """Reads typed values from a JSON object; null counts as absent."""

  def __init__(self, body: dict):
    self.body = body

  def get(self, name, kind, default, wanted: str):
    value = self.body.get(name)
    if value is None:
      if default is REQUIRED:
        raise bad_request(
          f'{name} is required: {wanted}.', name, 'missing_required_parameter'
        )
      return default
    # In JSON 1.0 is 1, but true is not.
    if kind is int and isinstance(value, float) and value.is_integer():
      value = int(value)
    kinds = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or (
      isinstance(value, bool) and kind is not bool
    ):
      raise wrong(name, wanted, json_type(value))
    return value

  def boolean(self, name, default=False) -> bool:
    return self.get(name, bool, default, 'true or false')

  def text(self, name, default=REQUIRED):
    return self.get(name, str, default, 'a string')

  def integer(self, name, default, low, high) -> int | None:
    wanted = f'an integer from {low} to {high}'
    value = self.get(name, int, default, wanted)
    if value is not None and not low <= value <= high:
      raise wrong(name, wanted, shorten(value))
    return value

  def number(self, name, default, low, high, above=False) -> float:
    """`above`: the lower bound itself is not allowed."""
    wanted = f'a number {"above" if above else "from"} {low:g} to {high:g}'
    value = self.get(name, float, default, wanted)
    if not low <= value <= high or (above and value == low):
      raise wrong(name, wanted, shorten(value))
    return float(value)

  def choice(self, name, default, allowed) -> str:
    wanted = 'one of ' + ', '.join(allowed)
    value = self.get(name, str, default, wanted)
    if value not in allowed:
      raise wrong(name, wanted, shorten(repr(value)))
    return value

  def seed(self, default=None) -> int:
    """uint32; null and -1 (llama.cpp's and vLLM's null) draw one."""
    value = self.integer('seed', default, -(2**63), 2**63 - 1)
    if value is None or value == -1:
      return secrets.randbits(32)
    return value & 0xFFFFFFFF


def wrong(name: str, wanted: str, given) -> ApiError:
  return bad_request(f'{name} must be {wanted}, not {given}.', name)


def shorten(value) -> str:
  try:
    text = str(value)
  except ValueError:  # an integer of more than 4300 digits
    return 'a huge number'
  return text if len(text) <= 40 else text[:40] + '...'
