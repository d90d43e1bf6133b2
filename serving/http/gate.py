"""The checks every request passes on its way in, and errors on the way out."""

import collections
import logging
from collections.abc import Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from serving.engine.errors import ClientGone, RequestFailed
from serving.http import access, errors
from serving.http.body import Body, drain
from serving.http.encoding import json_response
from serving.http.errors import ApiError
from serving.http.record import Record
from serving.metrics import Metrics
from serving.options import Options

log = logging.getLogger('rgpt.serve')

CLIENT_CLOSED_REQUEST = 499  # nginx's status for the log; nobody receives it


class Gate:
  """ASGI middleware: Host, origins of pages, keys, limits, errors."""

  def __init__(self, app: ASGIApp, options: Options, metrics: Metrics) -> None:
    self._app = app
    self._options = options
    self._metrics = metrics
    self._keys = access.Keys(options.keys)
    self._in_flight: collections.Counter[str] = collections.Counter()

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    headers = {
      k.decode('latin-1'): v.decode('latin-1') for k, v in scope['headers']
    }
    path, method = scope['path'], scope['method']
    record: Record = scope['rgpt']
    client = None
    try:
      self._check_origin(method, path, headers)
      key = self._check_key(method, path, headers)
      if not access.is_public(method, path):
        client = self._enter(key or (scope.get('client') or ('',))[0])
      body = Body(receive, headers, self._options)
      await self._app(scope, body.receive, send)
    except ClientGone:
      refused = scope['state'].get('refused')  # See serving/http/protocol.py.
      record.status = 400 if refused else CLIENT_CLOSED_REQUEST
    except RequestFailed as e:
      await self._answer(errors.translate(e), scope, receive, send)
    except ApiError as e:
      await self._answer(e, scope, receive, send)
    except Exception as e:
      log.error('id=%s failed', record.id, exc_info=e)
      await self._answer(errors.internal(), scope, receive, send)
    finally:
      if client is not None:
        self._leave(client)

  def _check_origin(
    self, method: str, path: str, headers: Mapping[str, str]
  ) -> None:
    options = self._options
    known = access.host_allowed(headers.get('host'), options.allowed_hosts)
    if not known and path not in access.PROBES:
      raise errors.bad_request(
        'The Host header names another server; --allowed_hosts adds names.',
        code='invalid_host',
      )
    origins = ('*', headers.get('origin', ''))
    if (
      method not in ('GET', 'HEAD', 'OPTIONS')
      and access.is_cross_origin(headers)
      and not any(origin in options.cors_origins for origin in origins)
    ):
      raise ApiError(
        403,
        'Pages of other origins may not use this server; --cors_origins '
        'allows some.',
        'permission_error',
        code='cross_site',
      )

  def _check_key(
    self, method: str, path: str, headers: Mapping[str, str]
  ) -> str | None:
    if not self._keys or access.is_public(method, path):
      return None
    key = access.given_key(headers)
    if key is None:
      raise errors.unauthorized(
        'An API key is required: Authorization: Bearer KEY.'
      )
    if not self._keys.accept(key):
      raise errors.unauthorized('The API key is not known.')
    return key

  def _enter(self, client: str) -> str:
    limit = self._options.max_per_client
    if limit and self._in_flight[client] >= limit:
      raise ApiError(
        429,
        f'You have {limit} requests in flight, the most allowed.',
        'rate_limit_error',
        code='rate_limit_exceeded',
        retry_after=1,
        reason='client_limit',
      )
    self._in_flight[client] += 1
    return client

  def _leave(self, client: str) -> None:
    self._in_flight[client] -= 1
    if not self._in_flight[client]:
      del self._in_flight[client]

  async def _answer(
    self, error: ApiError, scope: Scope, receive: Receive, send: Send
  ) -> None:
    """Sends an error, unless a response has begun already."""
    if error.reason:
      self._metrics.rejected.labels(error.reason).inc()
    record: Record = scope['rgpt']
    if record.status:
      return
    headers = error.headers()
    if error.status in (408, 413):
      # The rest of the body would be taken for the next request.
      headers['Connection'] = 'close'
    # A body announced with Expect is not sent, so there is nothing to drain.
    expects = any(name == b'expect' for name, _ in scope['headers'])
    if error.status == 413 and not expects:
      await drain(receive)
    response = json_response(error.body_for(record.path), error.status, headers)
    await response(scope, receive, send)
