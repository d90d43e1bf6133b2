"""JSON in and out."""

import json
import sys
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from serving.http.errors import ApiError, bad_request

JSON_TYPES = {
  bool: 'a boolean',
  int: 'a number',
  float: 'a number',
  str: 'a string',
  list: 'an array',
  dict: 'an object',
  type(None): 'null',
}


def parse_object(body: bytes) -> dict[str, Any]:
  """The JSON object in a request body. Raises ApiError (400)."""

  def refuse(name: str):
    raise invalid_json(f'{name} is not JSON')

  try:
    value = json.loads(body, parse_constant=refuse)
  except json.JSONDecodeError as e:
    raise invalid_json(str(e)) from e
  except UnicodeDecodeError as e:
    raise invalid_json('it is not UTF-8') from e
  except RecursionError as e:
    raise invalid_json('it is nested too deeply') from e
  except ValueError as e:  # Python's own limit, with advice for programmers.
    digits = sys.get_int_max_str_digits()
    raise invalid_json(
      f'a number has more than {digits} digits, the most allowed'
    ) from e
  if not isinstance(value, dict):
    raise bad_request(
      f'The body must be a JSON object, not {json_type(value)}.'
    )
  return value


def invalid_json(problem: str) -> ApiError:
  return bad_request(f'The body is not valid JSON: {problem[:200]}.')


def json_type(value: Any) -> str:
  """The JSON type of a parsed value, with its article."""
  return JSON_TYPES[type(value)]


def dumps(value: Any) -> bytes:
  """Compact ASCII JSON."""
  return json.dumps(value, allow_nan=False, separators=(',', ':')).encode(
    'ascii'
  )


def json_response(
  value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
  return encoded_response(dumps(value), status, headers)


def encoded_response(
  data: bytes, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
  """A response whose body is already JSON."""
  return Response(data, status, headers, 'application/json')
