"""What every request passes on its way in and out; plain ASGI, nothing hidden.

In: an id, the Host header, cross-site checks, the key, the client's limit, the
body's limit, counted while it is read. Out: errors as JSON, headers, one line
in the log, the count of responses. Prompts are never logged.
"""

import asyncio
import collections
import dataclasses
import json
import logging
import re
import secrets
import time

from serving.http import access, errors
from serving.http.errors import ApiError, ClientGone

log = logging.getLogger('rgpt.serve')

# What is read of a body that is too large, so that the answer is not lost.
DRAIN_BYTES, DRAIN_SECONDS = 16 << 20, 1.0
CLIENT_CLOSED_REQUEST = 499
REQUEST_HEADERS = b'authorization, content-type, x-api-key, x-request-id'


@dataclasses.dataclass
class Record:
  """What is known of one request; scope['rgpt'] while it is served."""

  id: str
  method: str
  path: str
  began: float
  route: str = 'unmatched'
  status: int = 0
  job: object = None
  finish: str = '-'
  waits_to_send: bool = False  # the body, for "100 Continue"


class Gate:
  """ASGI middleware around the routes.

  Args:
    app: the routes. options: Options. metrics: Metrics.
    templates: path -> route template, or None.
  """

  def __init__(self, app, options, metrics, templates):
    self._app = app
    self._options = options
    self._metrics = metrics
    self._template = templates
    self._keys = access.Keys(options.keys)
    self._in_flight = collections.Counter()

  async def __call__(self, scope, receive, send):
    if scope['type'] != 'http':
      return  # The lifespan protocol is off; there are no web sockets.
    headers = {
      k.decode('latin-1'): v.decode('latin-1') for k, v in scope['headers']
    }
    path, method = scope['path'], scope['method']
    record = scope['rgpt'] = Record(
      request_id(headers.get('x-request-id')),
      method,
      path,
      time.perf_counter(),
      self._template(path) or 'unmatched',
      waits_to_send='expect' in headers,
    )
    extra = self._response_headers(record, headers)

    async def send_out(message):
      if message['type'] == 'http.response.start':
        record.status = message['status']
        message = {**message, 'headers': [*message.get('headers', ()), *extra]}
      await send(message)

    client = None
    try:
      if self._is_preflight(method, headers):
        await reply(send_out, 204, b'')
        return
      self._check_origin(method, path, headers)
      key = self._check_key(method, path, headers)
      if not access.is_public(method, path):
        client = self._enter(key or (scope.get('client') or ('',))[0])
      body = Body(receive, headers, self._options)
      await self._app(scope, body.receive, send_out)
    except ClientGone:
      refused = scope['state'].get('refused')  # See serving/http/protocol.py.
      record.status = 400 if refused else CLIENT_CLOSED_REQUEST
    except ApiError as e:
      await self._answer(e, record, send_out, receive)
    except Exception as e:
      log.error('id=%s failed', record.id, exc_info=e)
      await self._answer(errors.internal(), record, send_out, receive)
    finally:
      if client is not None:
        self._leave(client)
      self._account(record)

  def _response_headers(self, record, headers) -> list:
    extra = [
      (b'x-request-id', record.id.encode()),
      (b'x-content-type-options', b'nosniff'),
    ]
    origin = headers.get('origin')
    if origin and self._origin_allowed(origin):
      extra += [
        (b'access-control-allow-origin', origin.encode('latin-1')),
        (b'access-control-expose-headers', b'x-request-id, retry-after'),
        (b'vary', b'origin'),
      ]
      if headers.get('access-control-request-method'):
        extra += [
          (b'access-control-allow-methods', b'GET, POST'),
          (b'access-control-allow-headers', allowed_headers(headers)),
          (b'access-control-max-age', b'600'),
        ]
    return extra

  def _origin_allowed(self, origin: str) -> bool:
    allowed = self._options.cors_origins
    return '*' in allowed or origin in allowed

  def _is_preflight(self, method, headers) -> bool:
    return (
      method == 'OPTIONS'
      and 'access-control-request-method' in headers
      and self._origin_allowed(headers.get('origin', ''))
    )

  def _check_origin(self, method, path, headers) -> None:
    allowed = self._options.allowed_hosts
    known = access.host_allowed(headers.get('host'), allowed)
    if not known and path not in access.PROBES:
      raise errors.bad_request(
        'The Host header names another server; --allowed_hosts adds names.',
        code='invalid_host',
      )
    if (
      method not in ('GET', 'HEAD', 'OPTIONS')
      and access.is_cross_site(headers)
      and not self._origin_allowed(headers.get('origin', ''))
    ):
      raise ApiError(
        403,
        'Pages of other sites may not use this server; --cors_origins '
        'allows some.',
        'permission_error',
        code='cross_site',
      )

  def _check_key(self, method, path, headers) -> str | None:
    if not self._keys or access.is_public(method, path):
      return None
    key = access.given_key(headers)
    if key is None:
      raise errors.unauthorized(
        'An API key is needed: Authorization: Bearer KEY.'
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

  async def _answer(self, error, record, send, receive) -> None:
    """Says what went wrong, unless an answer has begun already."""
    if error.reason:
      self._metrics.rejected.labels(error.reason).inc()
    if record.status:
      return
    headers = list(error.headers().items())
    if error.status in (408, 413):
      # What is left of the body would be taken for the next request.
      headers.append(('Connection', 'close'))
    if error.status == 413 and not record.waits_to_send:
      await drain(receive)
    await reply(
      send,
      error.status,
      json.dumps(error.body_for(record.path)).encode(),
      headers,
    )

  def _account(self, record) -> None:
    """One line and one count for each request."""
    self._metrics.count_response(record.route, record.method, record.status)
    if record.route in ('/health', '/livez', '/metrics'):
      return  # Asked for every few seconds.
    job, now = record.job, time.perf_counter()
    text = (
      f'id={record.id} method={record.method} route={record.route} '
      f'status={record.status}'
    )
    if job is not None:
      text += (
        f' prompt_tokens={job.prompt_tokens}'
        f' completion_tokens={job.completion_tokens}'
        f' queue_ms={milliseconds(record.began, job.started)}'
        f' ttft_ms={milliseconds(record.began, job.first)}'
      )
    text += f' total_ms={milliseconds(record.began, now)}'
    log.info('%s finish=%s', text, record.finish)


class Body:
  """Passes a request's body on, up to its limits."""

  def __init__(self, receive, headers, options):
    self._receive = receive
    self._left = options.body_limit
    self._limit = options.body_limit
    self._seconds = options.body_timeout
    self._deadline = None
    self._declared = headers.get('content-length', '')
    self._done = False

  async def receive(self):
    """The next ASGI message. Raises ApiError (413, 408)."""
    if self._done:
      return await self._receive()
    if self._declared.isdigit() and int(self._declared[:20]) > self._limit:
      raise self._too_large()
    loop = asyncio.get_running_loop()
    if self._deadline is None:
      self._deadline = loop.time() + self._seconds
    try:
      async with asyncio.timeout_at(self._deadline):
        message = await self._receive()
    except TimeoutError as e:
      raise ApiError(
        408,
        f'The body did not arrive within {self._seconds:g} s.',
        'timeout_error',
        code='body_timeout',
      ) from e
    if message['type'] != 'http.request':
      raise ClientGone
    self._left -= len(message.get('body', b''))
    if self._left < 0:
      raise self._too_large()
    self._done = not message.get('more_body')
    return message

  def _too_large(self) -> ApiError:
    return ApiError(
      413,
      f'The body is larger than {self._limit} bytes, the most allowed.',
      code='body_too_large',
      reason='body_too_large',
    )


async def drain(receive) -> None:
  """Reads on for a moment: closing at once would reset the connection."""
  left = DRAIN_BYTES
  try:
    async with asyncio.timeout(DRAIN_SECONDS):
      while left > 0:
        message = await receive()
        left -= len(message.get('body', b''))
        if not message.get('more_body'):
          return
  except TimeoutError:
    pass


async def reply(send, status: int, body: bytes, headers=()) -> None:
  """Sends a whole JSON (or empty) response."""
  fields = [(k.lower().encode(), v.encode()) for k, v in headers]
  if body:
    fields.append((b'content-type', b'application/json'))
  if status != 204:
    fields.append((b'content-length', str(len(body)).encode()))
  await send(
    {'type': 'http.response.start', 'status': status, 'headers': fields}
  )
  await send({'type': 'http.response.body', 'body': body})


def allowed_headers(headers) -> bytes:
  """What a page may send: all it asks for, as clients have their own."""
  asked = headers.get('access-control-request-headers', '')
  clean = re.sub(r"[^A-Za-z0-9!#$%&'*+.^_`|~, -]", '', asked)
  return clean.strip().encode() or REQUEST_HEADERS


def request_id(given: str | None) -> str:
  """The client's own id where it is harmless in a log, else a new one."""
  clean = re.sub(r'[^A-Za-z0-9._:-]', '', given or '')[:64]
  return clean or secrets.token_hex(8)


def milliseconds(start: float, end: float | None) -> str:
  return '-' if end is None else f'{(end - start) * 1e3:.1f}'
