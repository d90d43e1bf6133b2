"""ASGI responses that run a generation and write what comes of it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Protocol

from starlette.types import Receive, Scope, Send

from serving.engine.errors import ClientGone, RequestFailed
from serving.engine.events import Event
from serving.generation import Generation
from serving.http import errors
from serving.http.encoding import dumps, encoded_response

log = logging.getLogger('rgpt.serve')

GRACE = 1.0  # seconds after a request's timeout to write the error
STREAM_HEADERS = [
  (b'content-type', b'text/event-stream; charset=utf-8'),
  (b'cache-control', b'no-cache'),
  # nginx would otherwise collect the events before passing them on.
  (b'x-accel-buffering', b'no'),
]


class Whole(Protocol):
  """What makes the answer of a generation's events."""

  def whole(self, events: Iterable[Event]) -> dict[str, Any]: ...


class Chunks(Protocol):
  """What makes the data of a stream's events; `end` follows the last."""

  end: bytes

  def chunks(self, events: Iterable[Event]) -> list[dict[str, Any]]: ...

  def last_chunks(self) -> list[dict[str, Any]]: ...


class WholeAnswer:
  """The answer as one JSON object."""

  def __init__(self, generation: Generation, reply: Whole) -> None:
    self._generation = generation
    self._reply = reply

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    async with self._generation as generation:
      events = [event async for batch in generation.events() for event in batch]
      # Long answers take time to encode: not on the event loop.
      data = await generation.in_thread(
        lambda: dumps(self._reply.whole(events))
      )
    await encoded_response(data)(scope, receive, send)


class StreamedAnswer:
  """The answer as server-sent events, written as they come.

  The headers are sent once a slot is held: errors before that have a status,
  later ones are an event.
  """

  def __init__(self, generation: Generation, reply: Chunks) -> None:
    self._generation = generation
    self._reply = reply

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    async with self._generation as generation:
      events = generation.events()
      first = await anext(events)
      try:
        # A reader that stalls blocks `send`, and nothing else.
        async with asyncio.timeout(generation.time_left() + GRACE):
          await self._write(first, events, scope, send)
      except TimeoutError:
        log.warning('id=%s the stream is not read', scope['rgpt'].id)
        self._generation.abort()
        # Returns once the connection has closed.
        await send({'type': 'http.response.body'})

  async def _write(
    self,
    first: list[Event],
    events: AsyncIterator[list[Event]],
    scope: Scope,
    send: Send,
  ) -> None:
    await send(
      {
        'type': 'http.response.start',
        'status': 200,
        'headers': STREAM_HEADERS,
      }
    )
    end = self._reply.end
    try:
      await self._send_chunks(self._reply.chunks, send, first)
      async for batch in events:
        await self._send_chunks(self._reply.chunks, send, batch)
      await self._send_chunks(self._reply.last_chunks, send)
    except (ClientGone, TimeoutError):
      raise
    except RequestFailed as e:
      end = sse(errors.translate(e).body())
    except Exception as e:
      log.error('id=%s failed', scope['rgpt'].id, exc_info=e)
      end = sse(errors.internal().body())
    await send({'type': 'http.response.body', 'body': end})

  async def _send_chunks(
    self, make: Callable[..., list], send: Send, *events: list[Event]
  ) -> None:
    def encoded() -> bytes:
      return b''.join(map(sse, make(*events)))

    # An echo may be as long as a request: not on the event loop.
    generation = self._generation
    echo = generation.job.sampling.echo
    data = await generation.in_thread(encoded) if echo else encoded()
    if data:
      generation.sent += len(data)
      await send(
        {'type': 'http.response.body', 'body': data, 'more_body': True}
      )


def sse(value: dict) -> bytes:
  """One server-sent event; its type stands before data that has one."""
  name = b'event: %s\n' % value['type'].encode() if 'type' in value else b''
  return b'%sdata: %s\n\n' % (name, dumps(value))
