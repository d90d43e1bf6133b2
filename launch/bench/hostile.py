"""Measure what honest clients get beside hostile ones.

    python -m launch.bench.hostile --duration=600
    python -m launch.bench.hostile --preset=s --slots=4 --duration=20

Beside --honest clients in closed loops there are readers that stop reading,
endless streams, aborted requests and fuzz. Honest clients repeat a refused
request after a tenth of a second. --workdir, --preset and --slots as in
bench.serve.
"""

import asyncio
import contextlib
import json
import random
import tempfile
import time
from collections.abc import Awaitable, Callable

from absl import flags

from launch import cli
from launch.bench import load, machine, serve, servers

DURATION = flags.DEFINE_float(
  'duration', 600.0, 'Seconds of hostile load.', lower_bound=1.0
)
HONEST = flags.DEFINE_integer('honest', 4, 'Honest clients.', lower_bound=1)
STALLED = flags.DEFINE_integer('stalled', 16, 'Readers that stop reading.')
ENDLESS = flags.DEFINE_integer('endless', 8, 'Endless streams.')
ABORTING = flags.DEFINE_integer('aborting', 8, 'Clients that abort requests.')
FUZZING = flags.DEFINE_integer('fuzzing', 4, 'Clients that send nonsense.')
flags.FLAGS.set_default('slots', 4)

RETRY = 0.1  # seconds until an honest client repeats a refused request
FOREVER = {
  'prompt': 'a',
  'max_tokens': 1_000_000,
  'ignore_eos': True,
  'stream': True,
}


class Load:
  """The clients of one run.

  Attributes:
    ttft: seconds until an honest request's first text, refusals included.
    refused: seconds for which honest requests were refused.
    faults: statuses that nobody should get, and honest streams that broke.
    counts: requests of each kind.
  """

  def __init__(self, port: int, seconds: float) -> None:
    self._port = port
    self._end = time.perf_counter() + seconds
    self.ttft: list[float] = []
    self.refused: list[float] = []
    self.faults: list[str] = []
    self.counts = dict.fromkeys(
      ('honest', 'stalled', 'endless', 'aborting', 'fuzzing'), 0
    )

  async def run(self, rng: random.Random) -> None:
    """Runs all clients until the time is over."""
    kinds: list[tuple[int, Callable[[random.Random], Awaitable[None]]]] = [
      (HONEST.value, self._honest),
      (STALLED.value, self._stalled),
      (ENDLESS.value, self._endless),
      (ABORTING.value, self._aborting),
      (FUZZING.value, self._fuzzing),
    ]
    tasks = [
      asyncio.ensure_future(self._repeat(one, random.Random(rng.random())))
      for n, one in kinds
      for _ in range(n)
    ]
    await asyncio.gather(*tasks)

  async def _repeat(
    self, one: Callable[[random.Random], Awaitable[None]], rng: random.Random
  ) -> None:
    while self._left() > 0:
      with contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(self._left()):
          await one(rng)
      await asyncio.sleep(0.01)

  def _left(self) -> float:
    return self._end - time.perf_counter()

  async def _honest(self, rng: random.Random) -> None:
    """A conversation's turn, with a pause before the next."""
    self.counts['honest'] += 1
    body = {
      'prompt': ''.join(rng.choices('etaoin shrdlu', k=40)),
      'max_tokens': 64,
      'stream': True,
      'stream_options': {'include_usage': True},
      'ignore_eos': True,
      'seed': rng.randrange(2**31),
    }
    began = time.perf_counter()
    with contextlib.closing(load.Client(self._port)) as client:
      result = await client.request(body)
      while result.status == 503:
        await asyncio.sleep(RETRY)
        self.refused.append(time.perf_counter() - began)
        result = await client.request(body)
    texts = result.texts() if result.status == 200 else []
    tokens = round(sum(n for _, n in texts))
    if tokens == body['max_tokens']:
      self.ttft.append(texts[0][0] - began)
    else:
      self.faults.append(f'honest: status {result.status}, {tokens} tokens')
    await asyncio.sleep(rng.expovariate(5))

  async def _stalled(self, rng: random.Random) -> None:
    """Reads the beginning of a large stream and then no more."""
    self.counts['stalled'] += 1
    body = FOREVER | {'logprobs': 20, 'seed': rng.randrange(2**31)}
    async with self._sent(load.request_bytes(body)) as (reader, writer):
      await reader.read(1)
      writer.transport.pause_reading()
      while not writer.transport.is_closing() and self._left() > 0:
        await asyncio.sleep(0.5)
        if rng.random() < 0.02:
          return

  async def _endless(self, rng: random.Random) -> None:
    """Reads a stream for as long as it is sent."""
    self.counts['endless'] += 1
    body = FOREVER | {'seed': rng.randrange(2**31)}
    async with self._sent(load.request_bytes(body)) as (reader, _):
      while await reader.read(1 << 16):
        pass

  async def _aborting(self, rng: random.Random) -> None:
    """Leaves at a random moment."""
    self.counts['aborting'] += 1
    body = {
      'prompt': 'x' * rng.choice([0, 1, 31, 300, 3000]),
      'max_tokens': rng.choice([1, 100, 1_000_000]),
      'stream': rng.random() < 0.5,
      'n': rng.choice([1, 1, 4, 8]),
      'echo': rng.random() < 0.2,
    }
    with contextlib.closing(load.Client(self._port)) as client:
      result = await client.request(body, rng.expovariate(5))
    self._check(result.status, result.aborted)

  async def _fuzzing(self, rng: random.Random) -> None:
    """Sends a damaged request and reads what comes back."""
    self.counts['fuzzing'] += 1
    body = {'prompt': 'a', 'max_tokens': 5, 'n': 1, 'stop': ['x']}
    body[rng.choice([*body, 'logit_bias', 'seed', 'stream'])] = rng.choice(
      [-1, 10**30, 'x', None, [], {}, [[]], True, 1.5]
    )
    data = bytearray(load.request_bytes(body))
    for _ in range(rng.choice([0, 0, 1, 3, 20])):
      data[rng.randrange(len(data))] = rng.randrange(256)
    if rng.random() < 0.2:
      del data[rng.randrange(len(data)) :]
    async with self._sent(bytes(data)) as (reader, _):
      async with asyncio.timeout(2.0):
        line = await reader.readline()
      words = line.split()
      if len(words) > 1 and words[1].isdigit():
        self._check(int(words[1]), False)

  def _check(self, status: int, aborted: bool) -> None:
    if not aborted and status not in (0, 503) and status >= 500:
      self.faults.append(f'status {status}')

  @contextlib.asynccontextmanager
  async def _sent(self, data: bytes):
    """The (reader, writer) of a connection on which `data` was sent."""
    reader, writer = await asyncio.open_connection('127.0.0.1', self._port)
    try:
      writer.write(data)
      yield reader, writer
    finally:
      writer.transport.abort()


def memory_mb(server: servers.Server) -> tuple[float, float]:
  """Resident memory, and the part of it that the prefix cache fills."""
  return server.rss_mb(), server.metrics()['rgpt_prefix_cache_bytes'] / 1e6


async def attack(server: servers.Server, seconds: float) -> dict:
  """Runs the load; what honest clients got, and what the server needed."""
  clients = Load(server.port, seconds)
  running = asyncio.ensure_future(clients.run(random.Random(0)))
  memory = []
  while not running.done():
    await asyncio.wait({running}, timeout=min(10.0, seconds / 10))
    memory.append(await asyncio.to_thread(memory_mb, server))
  await running
  await asyncio.sleep(1.0)
  metrics = await asyncio.to_thread(server.metrics)
  names = ('num_requests_running', 'num_requests_waiting', 'slots_busy')
  # After the first tenth, which fills buffers.
  later = memory[len(memory) // 10 :]
  own = [rss - cache for rss, cache in later]
  return {
    **clients.counts,
    'ttft_ms': serve.quantiles(clients.ttft),
    'refused_s': max(clients.refused, default=0.0),
    'faults': clients.faults[:20],
    'rss_mb': [rss for rss, _ in memory],
    'prefix_cache_mb': [cache for _, cache in memory],
    'rss_growth_mb': max(rss for rss, _ in later) - later[0][0],
    'rss_growth_without_cache_mb': max(own) - own[0],
    'tokens': metrics['rgpt_generation_tokens_total'],
    'preemptions': metrics['rgpt_preemptions_total'],
    'slow_readers': metrics['rgpt_aborted_total{cause="slow_reader"}'],
    'left_behind': sum(metrics[f'rgpt_{name}'] for name in names),
    'programs': metrics['rgpt_jit_compilations_total'],
  }


def main(_: list[str]) -> None:
  workdir = serve.make_workdir()
  options = (f'--slots={serve.SLOTS.value}', *serve.SERVER_FLAGS.value)
  with tempfile.TemporaryDirectory() as cache:
    server = servers.ours(workdir, cache, *options)
    try:
      programs = server.metrics()['rgpt_jit_compilations_total']
      report = asyncio.run(attack(server, DURATION.value))
    finally:
      code = server.stop()
  report |= {
    'machine': machine.facts(),
    'workdir': str(workdir),
    'slots': serve.SLOTS.value,
    'duration_s': DURATION.value,
    'programs': report['programs'] - programs,
    'exit_code': code,
  }
  first = report['ttft_ms']
  print(
    f'{machine.line()}\n{report["honest"]} honest requests: TTFT p50 '
    f'{first["p50"]:.0f} ms, p95 {first["p95"]:.0f} ms, refused for at most '
    f'{report["refused_s"]:.2f} s; RSS +{report["rss_growth_mb"]:.0f} MB, '
    f'{report["rss_growth_without_cache_mb"]:.0f} MB of it not the prefix cache'
  )
  print(json.dumps(report))


if __name__ == '__main__':
  cli.run(main)
