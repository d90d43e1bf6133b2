"""Clients that measure a server: asyncio and raw sockets.

The clients share two cores with the server and must not be the bottleneck, so
they only stamp bytes with their arrival and parse them afterwards.
"""

import asyncio
import dataclasses
import json
import random
import time
from collections.abc import Callable

PATH = '/v1/completions'


@dataclasses.dataclass
class Result:
  """One request.

  Attributes:
    status: HTTP status; 0 if the connection broke or was aborted.
    sent: seconds of time.perf_counter().
    pieces: [(seconds, bytes)] of the body, in order of arrival.
    aborted: the client closed the connection early.
  """

  sent: float
  status: int = 0
  pieces: list = dataclasses.field(default_factory=list)
  aborted: bool = False

  def events(self) -> list:
    """[(seconds, object)] of the server-sent events."""
    out, rest = [], b''
    for at, data in self.pieces:
      *lines, rest = (rest + data).split(b'\n')
      out += [
        (at, json.loads(line[6:]))
        for line in lines
        if line.startswith(b'data: {')
      ]
    return out

  def texts(self) -> list:
    """[(seconds, tokens)]: arrivals of text, and its approximate tokens."""
    events = self.events()
    texts = [
      (at, len(choice['text']))
      for at, event in events
      for choice in event.get('choices', ())
      if choice['text']
    ]
    usage = [e['usage'] for _, e in events if e.get('usage')]
    characters = sum(n for _, n in texts)
    if not usage or not characters:
      return texts
    share = usage[-1]['completion_tokens'] / characters
    return [(at, n * share) for at, n in texts]


def request_bytes(body: dict, path: str = PATH) -> bytes:
  """A whole request."""
  data = json.dumps(body).encode()
  head = (
    f'POST {path} HTTP/1.1\r\nHost: localhost\r\n'
    'Content-Type: application/json\r\n'
    f'Content-Length: {len(data)}\r\n\r\n'
  )
  return head.encode() + data


class Client:
  """One connection, kept between requests."""

  def __init__(self, port: int):
    self._port = port
    self._reader = self._writer = None

  async def request(
    self, body: dict, abort_after: float | None = None, path: str = PATH
  ) -> Result:
    """Sends a request and receives the answer.

    Args:
      abort_after: seconds after which the client closes the connection.
    """
    if self._writer is None:
      self._reader, self._writer = await asyncio.open_connection(
        '127.0.0.1', self._port, limit=1 << 20
      )
    data = request_bytes(body, path)
    result = Result(time.perf_counter())
    self._writer.write(data)
    try:
      async with asyncio.timeout(abort_after):
        await self._read(result)
    except TimeoutError:
      result.aborted = True
      self.close()
    except (OSError, asyncio.IncompleteReadError):
      result.status = 0
      self.close()
    return result

  async def _read(self, result: Result) -> None:
    head = await self._reader.readuntil(b'\r\n\r\n')
    status = int(head.split(b' ', 2)[1])
    lines = head.lower().split(b'\r\n')
    length = [x for x in lines if x.startswith(b'content-length:')]
    if length:
      body = await self._reader.readexactly(int(length[0].split(b':')[1]))
      result.pieces.append((time.perf_counter(), body))
    else:
      while True:
        size = int(await self._reader.readuntil(b'\r\n'), 16)
        piece = await self._reader.readexactly(size + 2)
        if not size:
          break
        result.pieces.append((time.perf_counter(), piece[:-2]))
    result.status = status

  def close(self) -> None:
    if self._writer is not None:
      self._writer.close()
    self._reader = self._writer = None


async def closed_loop(
  port: int, clients: int, seconds: float, make_body: Callable[[], dict]
) -> list[Result]:
  """`clients` connections, each with one request after the other."""
  end = time.perf_counter() + seconds
  results = []

  async def one(client):
    while time.perf_counter() < end:
      results.append(await client.request(make_body()))
    client.close()

  await asyncio.gather(*(one(Client(port)) for _ in range(clients)))
  return results


async def open_loop(
  port: int,
  rate: float,
  seconds: float,
  make_body: Callable[[], dict],
  rng: random.Random,
) -> list[Result]:
  """Poisson arrivals at `rate` requests/s, independent of the answers."""
  tasks, idle = [], []

  async def one():
    client = idle.pop() if idle else Client(port)
    result = await client.request(make_body())
    idle.append(client)
    return result

  start = at = time.perf_counter()
  while at - start < seconds:
    at += rng.expovariate(rate)
    await asyncio.sleep(max(0.0, at - time.perf_counter()))
    tasks.append(asyncio.create_task(one()))
  results = await asyncio.gather(*tasks)
  for client in idle:
    client.close()
  return results


async def mixed_load(
  port: int,
  clients: int,
  seconds: float,
  make_body: Callable[[], dict],
  rng: random.Random,
) -> list[Result]:
  """Long and short, streamed or not, invalid and aborted requests at once."""
  end = time.perf_counter() + seconds
  results = []

  async def one(client, rng):
    while time.perf_counter() < end:
      body, abort = make_body(), None
      body['max_tokens'] = rng.choice([1, 8, 64, 300, 2000])
      body['stream'] = rng.random() < 0.7
      if not body['stream']:
        del body['stream_options']
      body['n'] = rng.choice([1, 1, 1, 4])
      if rng.random() < 0.1:
        body['logprobs'] = 5
      if rng.random() < 0.05:
        body['temperature'] = 'wrong'
      if rng.random() < 0.3:
        abort = rng.expovariate(5)
      result = await client.request(body, abort)
      result.pieces = result.pieces[-1:]  # All of them would fill memory.
      if result.status == 503:
        await asyncio.sleep(0.05)
      results.append(result)
    client.close()

  await asyncio.gather(
    *(one(Client(port), random.Random(rng.random())) for _ in range(clients))
  )
  return results
