"""A request's body, counted and timed while it is read."""

import asyncio
from collections.abc import Mapping

from starlette.types import Message, Receive

from serving.engine.errors import ClientGone
from serving.http.errors import ApiError
from serving.options import Options

# How much of a body that is too large is read, so that the answer arrives:
# closing at once would reset the connection.
DRAIN_BYTES, DRAIN_SECONDS = 16 << 20, 1.0


class Body:
  """Passes a request's messages on, up to the operator's limits."""

  def __init__(
    self, receive: Receive, headers: Mapping[str, str], options: Options
  ) -> None:
    self._receive = receive
    self._left = options.body_limit
    self._limit = options.body_limit
    self._seconds = options.body_timeout
    self._deadline: float | None = None
    self._declared = headers.get('content-length', '')
    self._done = False

  async def receive(self) -> Message:
    """The next ASGI message. Raises ApiError (413, 408) or ClientGone."""
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


async def drain(receive: Receive) -> None:
  """Reads and discards the rest of a body for a moment."""
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


async def client_gone(receive: Receive) -> None:
  """Returns once the client has disconnected; the body has been read."""
  while (await receive())['type'] != 'http.disconnect':
    pass
