"""uvicorn's HTTP/1.1 connection, with limits on idle and greedy clients."""

import asyncio
import json
import secrets
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from serving.http.body import DRAIN_BYTES, DRAIN_SECONDS
from serving.http.errors import ApiError, bad_request

HEAD_BYTES = 64 << 10
INVALID = bad_request('The request is not valid HTTP.')
TWO_LENGTHS = bad_request(
  'Content-Length and Transfer-Encoding must not come together: they may '
  'disagree on where the request ends.'
)
LARGE_HEAD = ApiError(
  431,
  f'The head of the request is larger than {HEAD_BYTES} bytes, the most '
  'allowed.',
  code='headers_too_large',
)
# The request is complete, the answer is not: uvicorn stops reading when more
# arrives.
ANSWERING = (
  h11.DONE,
  h11.MIGHT_SWITCH_PROTOCOL,  # pyright: ignore[reportPrivateImportUsage]
)


class Connection(h11.Connection):
  """h11's parser, which also refuses a body with two lengths.

  h11 would go by Transfer-Encoding, a proxy in front of the server perhaps by
  Content-Length: what one takes for a body is a request to the other (RFC 9112,
  6.1).

  Attributes:
    problem: the answer to the last violation.
  """

  problem = INVALID

  def next_event(self) -> Any:
    try:
      event = super().next_event()
    except h11.RemoteProtocolError as e:
      # A chunk's header may be too large as well, after the answer has begun.
      large = e.error_status_hint == 431 and self.our_state is h11.IDLE
      self.problem = LARGE_HEAD if large else INVALID
      raise
    if isinstance(event, h11.Request):
      names = {name for name, _ in event.headers}
      if {b'content-length', b'transfer-encoding'} <= names:
        self.problem = TWO_LENGTHS
        raise h11.RemoteProtocolError(str(self.problem))
    return event


class Protocol(H11Protocol):
  """Ends connections that send no request, or too much ahead of an answer.

  scope['state']['abort'] of a request closes its connection, whatever is still
  to be written.

  Args:
    head_timeout: seconds for a request's head to arrive.
    ahead: bytes a client may send before it has the answer to a request.
  """

  def __init__(self, head_timeout: float, ahead: int, **kwargs: Any) -> None:
    super().__init__(**kwargs)
    self.conn: Any = Connection(h11.SERVER, HEAD_BYTES)
    self._head_timeout = head_timeout
    self._ahead = ahead
    self._head_timer: asyncio.TimerHandle | None = None
    self._discard: int | None = None  # bytes, once the answer is an error

  def connection_made(self, transport: Any) -> None:
    super().connection_made(transport)
    self.app_state = {
      **self.app_state,
      'abort': transport.abort,
      'unsent': transport.get_write_buffer_size,
    }
    self._await_head()

  def connection_lost(self, exc: Exception | None) -> None:
    self._stop_timer()
    super().connection_lost(exc)

  def data_received(self, data: bytes) -> None:
    if self._discard is not None:
      self._discard -= len(data)
      if self._discard < 0:
        self.transport.abort()
      return
    super().data_received(data)
    if self._discard is not None:
      return
    if self.cycle is None or self.cycle.response_complete:
      self._await_head()
    else:
      self._stop_timer()
      self._read_on()

  def send_400_response(self, msg: str) -> None:
    """The answer to invalid HTTP, in our shape; then the connection ends.

    If a request is under way already, its scope['state']['refused'] becomes
    true.
    """
    cycle = self.cycle
    if cycle is not None and not cycle.response_complete:
      state: Any = cycle.scope.get('state')
      state['refused'] = cycle.disconnected = True
      cycle.message_event.set()
    if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
      problem: ApiError = self.conn.problem
      body = json.dumps(problem.body()).encode()
      headers = [
        ('content-type', 'application/json'),
        ('content-length', str(len(body))),
        ('connection', 'close'),
        ('x-request-id', secrets.token_hex(8)),
        ('x-content-type-options', 'nosniff'),
      ]
      for event in (
        h11.Response(status_code=problem.status, headers=headers),
        h11.Data(data=body),
        h11.EndOfMessage(),
      ):
        self.transport.write(self.conn.send(event))
    self._linger()

  def _linger(self) -> None:
    """Closes the connection once its client has had time to read the answer.

    Closing at once, with something unread, would reset it.
    """
    self._stop_timer()
    self._discard = DRAIN_BYTES
    if self.transport.can_write_eof():
      self.transport.write_eof()
    self.flow.resume_reading()
    self.loop.call_later(DRAIN_SECONDS, self.transport.close)

  def _should_upgrade(self) -> bool:
    return False  # Silently: such requests are answered as plain HTTP.

  def _await_head(self) -> None:
    if self._head_timer is None:
      self._head_timer = self.loop.call_later(
        self._head_timeout, self.transport.abort
      )

  def _stop_timer(self) -> None:
    if self._head_timer is not None:
      self._head_timer.cancel()
      self._head_timer = None

  def _read_on(self) -> None:
    """Reads ahead of the answer, or a disconnect would go unnoticed."""
    if self.conn.their_state not in ANSWERING or self.transport.is_closing():
      return
    if len(self.conn.trailing_data[0]) > self._ahead:
      self.transport.abort()
    else:
      self.flow.resume_reading()
