"""The OpenAPI 3.1 document, assembled from the table of routes.

https://spec.openapis.org/oas/v3.1.0
"""

import dataclasses
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.types import ASGIApp

from serving.http import access
from serving.http.responses import Error, ErrorText

REF = '#/components/schemas/{model}'
EVENT_STREAM = 'text/event-stream'


@dataclasses.dataclass(frozen=True)
class Operation:
  """One method of one path.

  Attributes:
    path: in Starlette's notation.
    endpoint: gives the response; its docstring is the summary.
    request: model of the JSON body, if it has one.
    response: TypedDict of the JSON answer, or a media type.
    chunk: TypedDict of an event's data, where the answer can be streamed.
    errors: statuses of JSON errors.
    unready: the response also comes with status 503.
    many: the answer is an array of `response`.
  """

  method: str
  path: str
  endpoint: Callable[[Request], Awaitable[ASGIApp]]
  response: type | str
  request: type[BaseModel] | None = None
  chunk: type | None = None
  errors: tuple[int, ...] = ()
  unready: bool = False
  many: bool = False

  @property
  def template(self) -> str:
    """The path in OpenAPI's notation."""
    return self.path.replace(':path', '')


def document(
  operations: Iterable[Operation], version: str, keys: bool
) -> dict[str, Any]:
  """The document.

  Args:
    keys: the server asks for API keys.
  """
  operations = list(operations)
  schemas = components(operations)
  paths: dict[str, dict] = {}
  for operation in operations:
    methods = paths.setdefault(operation.template, {})
    methods[operation.method.lower()] = describe(operation, keys)
  return {
    'openapi': '3.1.0',
    'info': {
      'title': 'rgpt',
      'version': version,
      'description': 'A small GPT behind the APIs of OpenAI, RandyGPT and '
      'microgpt.',
    },
    'paths': paths,
    'components': {
      'schemas': schemas,
      'securitySchemes': {
        'bearer': {'type': 'http', 'scheme': 'bearer'},
        'header': {'type': 'apiKey', 'in': 'header', 'name': 'X-Api-Key'},
      },
    },
  }


def components(operations: list[Operation]) -> dict[str, Any]:
  """JSON Schemas of all bodies, by name."""
  out: dict[str, Any] = {}
  requests = {op.request for op in operations if op.request is not None}
  _, schema = models_json_schema(
    [(model, 'validation') for model in requests], ref_template=REF
  )
  out |= schema.get('$defs', {})
  answers = {op.response for op in operations} | {op.chunk for op in operations}
  for kind in {Error, ErrorText, *answers}:
    if isinstance(kind, type):
      schema = TypeAdapter(kind).json_schema(ref_template=REF)
      out |= schema.pop('$defs', {})
      out[kind.__name__] = schema
  return dict(sorted(out.items()))


def describe(operation: Operation, keys: bool) -> dict[str, Any]:
  """The Operation Object."""
  name = operation.endpoint.__name__
  if operation.path.startswith('/v1/'):
    name += '_v1'
  doc = operation.endpoint.__doc__ or ''
  public = access.is_public(operation.method, operation.path)
  out: dict[str, Any] = {
    'operationId': name,
    'summary': doc.strip().rstrip('.'),
    'responses': responses(operation, keys and not public),
    'security': [{'bearer': []}, {'header': []}] if keys and not public else [],
  }
  if '{' in operation.template:
    parameter = operation.template.partition('{')[2].rstrip('}')
    out['parameters'] = [
      {
        'name': parameter,
        'in': 'path',
        'required': True,
        'schema': {'type': 'string'},
      }
    ]
  if operation.request is not None:
    out['requestBody'] = {
      'required': True,
      'content': {'application/json': {'schema': ref(operation.request)}},
    }
  return out


def responses(operation: Operation, keyed: bool) -> dict[str, Any]:
  """The Responses Object: the answer, and errors in the one shape."""
  if isinstance(operation.response, str):
    content: dict[str, Any] = {operation.response: {}}
  else:
    schema: dict[str, Any] = ref(operation.response)
    if operation.many:
      schema = {'type': 'array', 'items': schema}
    content = {'application/json': {'schema': schema}}
  good = 'OK'
  if operation.chunk is not None:
    content[EVENT_STREAM] = {'schema': server_sent(ref(operation.chunk))}
    good = 'OK. The schema of a stream is that of each of its events.'
  out = {'200': {'description': good, 'content': content}}
  statuses = {*operation.errors}
  if keyed:
    statuses |= {401, 429}
  plain = operation.path == '/' or operation.path.startswith('/microgpt/')
  error = {'application/json': {'schema': ref(ErrorText if plain else Error)}}
  for status in sorted(statuses):
    out[str(status)] = {'description': REASONS[status], 'content': error}
  if operation.unready:
    out['503'] = {'description': REASONS[503], 'content': content}
  return out


def server_sent(data: dict[str, Any]) -> dict[str, Any]:
  """The schema of an event with such JSON as its data; the last is [DONE]."""
  text = {
    'type': 'string',
    'contentMediaType': 'application/json',
    'contentSchema': data,
  }
  return {
    'type': 'object',
    'properties': {
      'event': {'type': 'string'},
      'data': {'anyOf': [text, {'const': '[DONE]'}]},
    },
    'required': ['data'],
  }


def ref(kind: type) -> dict[str, str]:
  return {'$ref': REF.format(model=kind.__name__)}


REASONS = {
  400: 'A field is wrong, missing or not supported',
  401: 'The API key is missing or unknown',
  403: 'A page of another origin sent the request',
  404: 'There is no such model',
  408: 'The body did not arrive in time',
  413: 'The body is too large',
  429: 'The client has too many requests in flight',
  500: 'The server failed; its log has the details',
  503: 'Loading, overloaded or shutting down; see Retry-After',
  504: 'The request took too long',
}
