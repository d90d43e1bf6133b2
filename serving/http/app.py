"""The table of routes, and the ASGI app around it."""

import dataclasses
import functools

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.http import (
  embeddings,
  plain_schemas,
  response_events,
  response_request,
  responses,
  schemas,
  tokenizing,
)
from serving.http.cors import Cors
from serving.http.encoding import dumps, encoded_response
from serving.http.errors import ApiError, not_found
from serving.http.gate import Gate
from serving.http.generate import GenerateRoutes
from serving.http.info import InfoRoutes, package_version
from serving.http.openapi import Operation, document
from serving.http.record import Recorder
from serving.http.tokenizing import TokenRoutes
from serving.metrics import CONTENT_TYPE
from serving.service import Service

# Statuses of routes that read a body, and of those that use the engine.
READING = (400, 403, 408, 413)
GENERATING = (*READING, 500, 503, 504)


def operations(service: Service) -> list[Operation]:
  """Everything the server answers, but for GET /openapi.json."""
  text, info = GenerateRoutes(service), InfoRoutes(service)
  tokens = TokenRoutes(service)
  openai = [
    Operation(
      'POST',
      '/completions',
      text.completions,
      responses.Completion,
      schemas.CompletionRequest,
      chunk=responses.Completion,
      errors=(*GENERATING, 404),
    ),
    Operation(
      'POST',
      '/chat/completions',
      text.chat,
      responses.ChatCompletion,
      schemas.ChatRequest,
      chunk=responses.ChatCompletionChunk,
      errors=(*GENERATING, 404),
    ),
    Operation(
      'POST',
      '/responses',
      text.responses,
      response_events.ResponseObject,
      response_request.ResponseRequest,
      chunk=response_events.ResponseEvent,
      errors=(*GENERATING, 404),
    ),
    Operation(
      'POST',
      '/embeddings',
      text.embeddings,
      embeddings.Embeddings,
      embeddings.EmbeddingRequest,
      errors=(*GENERATING, 404),
    ),
    Operation('GET', '/models', info.models, responses.ModelList),
    Operation(
      'GET', '/models/{id:path}', info.model, responses.Model, errors=(404,)
    ),
  ]
  return [
    Operation('GET', '/', info.page, 'text/html'),
    Operation(
      'POST',
      '/',
      text.randy,
      responses.RandyCompletion,
      plain_schemas.RandyRequest,
      errors=(*GENERATING, 404),
    ),
    *(dataclasses.replace(op, path=f'/v1{op.path}') for op in openai),
    *openai,
    Operation(
      'POST',
      '/microgpt/v1/generate',
      text.micro_generate,
      responses.Samples,
      plain_schemas.MicroGenerateRequest,
      errors=(*GENERATING, 404),
    ),
    Operation(
      'POST',
      '/microgpt/v1/chat',
      text.micro_chat,
      responses.MicroChatAnswer,
      plain_schemas.MicroChatRequest,
      errors=(*GENERATING, 404),
    ),
    Operation(
      'POST',
      '/tokenize',
      tokens.tokenize,
      tokenizing.Tokens,
      tokenizing.TokenizeRequest,
      errors=(*READING, 504),
    ),
    Operation(
      'POST',
      '/detokenize',
      tokens.detokenize,
      tokenizing.Content,
      tokenizing.DetokenizeRequest,
      errors=(*READING, 504),
    ),
    Operation(
      'POST',
      '/apply-template',
      tokens.apply_template,
      tokenizing.TemplatedPrompt,
      tokenizing.TemplateRequest,
      errors=(*READING, 504),
    ),
    Operation('GET', '/props', info.props, responses.Props),
    Operation('GET', '/slots', info.slots, responses.Slot, many=True),
    Operation('GET', '/health', info.health, responses.Health, unready=True),
    Operation('GET', '/livez', info.livez, responses.Health),
    Operation('GET', '/version', info.version, responses.Version),
    Operation('GET', '/metrics', info.metrics, CONTENT_TYPE),
    Operation(
      'POST', '/reload', info.reload, responses.ReloadAnswer, errors=(403, 503)
    ),
  ]


class Endpoint:
  """All methods of one path: an ASGI app, so that 405 lists them together."""

  def __init__(self) -> None:
    self.methods: dict[str, Operation] = {}

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    method = 'GET' if scope['method'] == 'HEAD' else scope['method']
    request = Request(scope, receive, send)
    response = await self.methods[method].endpoint(request)
    await response(scope, receive, send)


def create_app(service: Service) -> ASGIApp:
  """The ASGI app around a Service."""
  table = operations(service)

  @functools.cache
  def described() -> bytes:
    keys = bool(service.options.keys)
    return dumps(document(table, package_version(), keys))

  async def openapi(request: Request) -> Response:
    """This document."""
    return encoded_response(described())

  table.append(Operation('GET', '/openapi.json', openapi, 'application/json'))
  endpoints: dict[str, Endpoint] = {}
  for operation in table:
    endpoint = endpoints.setdefault(operation.path, Endpoint())
    endpoint.methods[operation.method] = operation
    service.metrics.baseline_route(operation.template, operation.method)
  router = Router(
    [
      Route(path, endpoint, methods=list(endpoint.methods))
      for path, endpoint in endpoints.items()
    ],
    redirect_slashes=False,
  )

  async def app(scope: Scope, receive: Receive, send: Send) -> None:
    # With an app in its scope, the router raises what it cannot answer.
    scope['app'] = app
    try:
      await router(scope, receive, send)
    except HTTPException as e:
      raise unroutable(scope, e) from e

  def template(path: str) -> str | None:
    models = ('/v1/models/', '/models/')
    if path not in endpoints and path.startswith(models):
      return path[: path.index('models/')] + 'models/{id}'
    return path if path in endpoints else None

  gate: ASGIApp = Gate(app, service.options, service.metrics)
  if service.options.cors_origins:
    gate = Cors(gate, service.options.cors_origins)
  return Recorder(gate, service.metrics, template)


def unroutable(scope: Scope, error: HTTPException) -> ApiError:
  """The router's 404 and 405 in our shape."""
  path, method = scope['path'][:80], scope['method']
  if error.status_code == 405:
    allow = (error.headers or {}).get('Allow')
    return ApiError(405, f'{method} is not allowed for {path}.', allow=allow)
  return not_found(f'There is nothing at {path}.')
