"""The outermost layer: request ids, one log line and one count per request.

Prompts are never logged.
"""

import dataclasses
import logging
import re
import secrets
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.engine.jobs import Job
from serving.metrics import Metrics

log = logging.getLogger('rgpt.serve')

# Polled every few seconds by monitors: counted, but not logged.
UNLOGGED = ('/health', '/livez', '/metrics')


@dataclasses.dataclass
class Record:
  """One request while it is served; scope['rgpt'].

  Attributes:
    began: arrival, time.perf_counter().
    route: its template, such as '/v1/models/{id}'.
    status: of the response; 0 until it has begun.
    job: the work it gives the engine, if any.
  """

  id: str
  method: str
  path: str
  began: float
  route: str
  status: int = 0
  job: Job | None = None


class Recorder:
  """ASGI middleware that keeps the Record of each request.

  Args:
    template: path -> route template, or None.
  """

  def __init__(
    self,
    app: ASGIApp,
    metrics: Metrics,
    template: Callable[[str], str | None],
  ) -> None:
    self._app = app
    self._metrics = metrics
    self._template = template

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope['type'] != 'http':
      return  # The lifespan protocol is off; there are no web sockets.
    given = dict(scope['headers']).get(b'x-request-id', b'')
    record = scope['rgpt'] = Record(
      request_id(given.decode('latin-1')),
      scope['method'],
      scope['path'],
      time.perf_counter(),
      self._template(scope['path']) or 'unmatched',
    )
    extra = [
      (b'x-request-id', record.id.encode()),
      (b'x-content-type-options', b'nosniff'),
    ]

    async def send_out(message: Message) -> None:
      if message['type'] == 'http.response.start':
        record.status = message['status']
        message = {**message, 'headers': [*message.get('headers', ()), *extra]}
      await send(message)

    try:
      await self._app(scope, receive, send_out)
    finally:
      self._account(record)

  def _account(self, record: Record) -> None:
    self._metrics.count_response(record.route, record.method, record.status)
    if record.route in UNLOGGED:
      return
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
    log.info('%s finish=%s', text, job.outcome if job else '-')


def request_id(given: str) -> str:
  """The client's own id without what could harm a log, or a new one."""
  clean = re.sub(r'[^A-Za-z0-9._:-]', '', given)[:64]
  return clean or secrets.token_hex(8)


def milliseconds(start: float, end: float | None) -> str:
  return '-' if end is None else f'{(end - start) * 1e3:.1f}'
