"""Server-sent events: a response that is written as it is generated."""

import asyncio
import json
import logging

from serving.http import errors
from serving.http.errors import ApiError, ClientGone

log = logging.getLogger('rgpt.serve')

GRACE = 1.0  # seconds to write why a request has timed out
HEADERS = [
  (b'content-type', b'text/event-stream; charset=utf-8'),
  (b'cache-control', b'no-cache'),
  # Else nginx collects the events before it passes them on.
  (b'x-accel-buffering', b'no'),
]


class EventStream:
  """An ASGI response over a Generation that has been entered.

  Args:
    generation: its context is left when the stream ends, however it does.
    reply: turns events into chunks.
    events: its events, the first of which have been taken.
    first: those.
  """

  def __init__(self, generation, reply, events, first):
    self._generation = generation
    self._reply = reply
    self._events = events
    self._first = first

  async def __call__(self, scope, receive, send):
    # A reader that stands still blocks `send`, and nothing else.
    try:
      async with asyncio.timeout(self._generation.time_left() + GRACE):
        await send(
          {'type': 'http.response.start', 'status': 200, 'headers': HEADERS}
        )
        end = await self._write_events(scope['rgpt'].id, send)
        await send({'type': 'http.response.body', 'body': end})
    except TimeoutError:
      log.warning('id=%s the stream is not read', scope['rgpt'].id)
      scope['state']['abort']()
      await send({'type': 'http.response.body'})  # Returns once it is gone.
    finally:
      await self._generation.__aexit__(None, None, None)

  async def _write_events(self, request_id: str, send) -> bytes:
    """Streams everything; gives the last event."""

    async def write(make, *args):

      def encoded():
        return b''.join(map(event, make(*args)))

      # An echo may be as long as a request: not on the event loop.
      echo = self._generation.job.sampling.echo
      data = await self._generation.in_thread(encoded) if echo else encoded()
      if data:
        await send(
          {'type': 'http.response.body', 'body': data, 'more_body': True}
        )

    try:
      await write(self._reply.chunks, self._first)
      async for batch in self._events:
        await write(self._reply.chunks, batch)
      await write(self._reply.last_chunks)
      return b'data: [DONE]\n\n'
    except ApiError as e:
      return event(e.body())
    except (ClientGone, TimeoutError):
      raise
    except Exception as e:
      log.error('id=%s failed', request_id, exc_info=e)
      return event(errors.internal().body())


def event(value: dict) -> bytes:
  return b'data: %s\n\n' % dumps(value)


def dumps(value) -> bytes:
  return json.dumps(value, allow_nan=False, separators=(',', ':')).encode(
    'ascii'
  )
