"""uvicorn's HTTP/1.1 connection, with limits on idle and greedy clients."""

import asyncio
import json
import secrets
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from serving.http.errors import bad_request

INVALID = bad_request('The request is not valid HTTP.')
# The request is complete, the answer is not: uvicorn stops reading when more
# arrives.
ANSWERING = (
  h11.DONE,
  h11.MIGHT_SWITCH_PROTOCOL,  # pyright: ignore[reportPrivateImportUsage]
)


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
    self._head_timeout = head_timeout
    self._ahead = ahead
    self._head_timer: asyncio.TimerHandle | None = None

  def connection_made(self, transport: Any) -> None:
    super().connection_made(transport)
    self.app_state = {**self.app_state, 'abort': transport.abort}
    self._await_head()

  def connection_lost(self, exc: Exception | None) -> None:
    self._stop_timer()
    super().connection_lost(exc)

  def data_received(self, data: bytes) -> None:
    super().data_received(data)
    if self.cycle is None or self.cycle.response_complete:
      self._await_head()
    else:
      self._stop_timer()
      self._read_on()

  def send_400_response(self, msg: str) -> None:
    """uvicorn's answer to invalid HTTP, in our shape.

    If a request is under way already, its scope['state']['refused'] becomes
    true.
    """
    cycle = self.cycle
    if cycle is not None and not cycle.response_complete:
      state: Any = cycle.scope.get('state')
      state['refused'] = cycle.disconnected = True
      cycle.message_event.set()
    if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
      headers = [
        ('content-type', 'application/json'),
        ('connection', 'close'),
        ('x-request-id', secrets.token_hex(8)),
        ('x-content-type-options', 'nosniff'),
      ]
      body = json.dumps(INVALID.body()).encode()
      for event in (
        h11.Response(status_code=INVALID.status, headers=headers),
        h11.Data(data=body),
        h11.EndOfMessage(),
      ):
        self.transport.write(self.conn.send(event))
    self.transport.close()

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
