"""Measure a server under load: latency, throughput, memory.

    python -m launch.bench.serve                    (preset s, a few minutes)
    python -m launch.bench.serve --soak=600         (plus ten minutes of abuse)
    python -m launch.bench.serve --workdir=runs/x --slots=4 --clients=1,4

Without --workdir it trains a model of the preset for a single step: speed does
not depend on the weights. Start-up is timed with the server's defaults, without
and with a compilation cache; the load runs against a server with --slots.
Closed loop: each client sends its next request when it has its answer; few and
many clients take turns. Open loop: Poisson arrivals at shares of the highest
closed-loop rate.
"""

import asyncio
import http.client
import json
import os
import pathlib
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from absl import flags

from gpt.errors import UserError
from launch import cli
from launch.bench import harness, load

WORKDIR = flags.DEFINE_string(
  'workdir', '', 'Run to serve; trained for a step if absent.'
)
PRESET = flags.DEFINE_string('preset', 's', 'Size preset of the run to train.')
SLOTS = flags.DEFINE_integer('slots', 16, 'Slots of the server.', lower_bound=1)
CLIENTS = flags.DEFINE_list(
  'clients', ['1', '4', '16', '64'], 'Numbers of clients in the closed loops.'
)
SHARES = flags.DEFINE_list(
  'shares', ['0.5', '0.8'], 'Shares of the highest rate in the open loops.'
)
SECONDS = flags.DEFINE_float(
  'seconds', 5.0, 'Seconds of a turn.', lower_bound=0.1
)
ROUNDS = flags.DEFINE_integer(
  'rounds', 3, 'Turns for each number of clients.', lower_bound=1
)
PROMPT = flags.DEFINE_integer(
  'prompt', 16, 'Characters per prompt.', lower_bound=0
)
MAX_TOKENS = flags.DEFINE_integer(
  'max_tokens', 128, 'Tokens per answer.', lower_bound=1
)
SOAK = flags.DEFINE_float('soak', 0.0, 'Seconds of mixed load with aborts.')
# Statuses expected under abuse: answers, bad requests, a full queue.
EXPECTED = (200, 400, 503)


def client_counts() -> list[int]:
  """The values of --clients. Raises UserError."""
  return harness.positive('clients', CLIENTS.value)


def make_workdir() -> pathlib.Path:
  """--workdir if it holds a run; else a run of the preset, made if needed."""
  workdir = pathlib.Path(WORKDIR.value or f'runs/bench-{PRESET.value}')
  if WORKDIR.value and (workdir / 'config.json').exists():
    return workdir
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'launch.train',
      f'--workdir={workdir}',
      f'--config=configs/model_{PRESET.value}.py',
      '--config.total_steps=1',
      '--config.batch_size=1',
      '--config.data.path=sample',
      '--config.eval.full_at_end=false',
      '--config.eval.windows=1',
      '--config.sample.max_tokens=1',
    ],
    stdout=subprocess.DEVNULL,
  )
  if done.returncode:
    raise UserError(f'{workdir} could not be made (see above)')
  return workdir


class Server:
  """A server process; the constructor returns once it is ready.

  Attributes:
    start_s, start_cpu_s: wall and CPU seconds until it was ready.
  """

  def __init__(
    self, workdir: pathlib.Path, cache: str | pathlib.Path, *flags: str
  ):
    began = time.perf_counter()
    self._log = tempfile.TemporaryFile()
    self._process = subprocess.Popen(
      [
        sys.executable,
        '-m',
        'launch.serve',
        f'--workdir={workdir}',
        '--port=0',
        *flags,
      ],
      stdout=subprocess.PIPE,
      stderr=self._log,
      text=True,
      env={**os.environ, 'RGPT_CACHE': str(cache)},
    )
    line = self._process.stdout.readline()
    found = re.search(r':(\d+)$', line.strip())
    if not found:
      self._log.seek(0)
      raise UserError(f'no server:\n{self._log.read().decode()}')
    self.port = int(found[1])
    while not self._is_ready():
      time.sleep(0.02)
    self.start_s = time.perf_counter() - began
    self.start_cpu_s = self.cpu_s()

  def _get(self, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=60)
    try:
      connection.request('GET', path)
      response = connection.getresponse()
      return response.status, response.read().decode()
    finally:
      connection.close()

  def _is_ready(self) -> bool:
    if self._process.poll() is not None:
      raise RuntimeError('the server has died')
    return self._get('/health')[0] == 200

  def cpu_s(self) -> float:
    import psutil

    times = psutil.Process(self._process.pid).cpu_times()
    return times.user + times.system

  def rss_mb(self) -> float:
    import psutil

    return psutil.Process(self._process.pid).memory_info().rss / 1e6

  def metrics(self) -> dict:
    text = self._get('/metrics')[1]
    rows = (x.rpartition(' ') for x in text.splitlines() if x[:1] != '#')
    return {name: float(value) for name, _, value in rows}

  def stop(self) -> int:
    self._process.send_signal(signal.SIGTERM)
    self._process.stdout.close()
    code = self._process.wait(60)
    self._log.close()
    return code


def body_maker(rng: random.Random) -> Callable[[], dict]:
  """A function that makes requests of one size with random prompts."""

  def make():
    letters = ''.join(rng.choice('etaoin shrdlu') for _ in range(PROMPT.value))
    return {
      'prompt': letters,
      'max_tokens': MAX_TOKENS.value,
      'stream': True,
      'stream_options': {'include_usage': True},
      'ignore_eos': True,
      'seed': rng.randrange(2**31),
    }

  return make


def quantiles(values: list[float], unit: float = 1e3) -> dict[str, float]:
  """p50, p95 and p99; in milliseconds, if `values` are seconds."""
  values = sorted(values) or [float('nan')]

  def at(q):
    return unit * values[min(len(values) - 1, int(q * len(values)))]

  return {'p50': at(0.5), 'p95': at(0.95), 'p99': at(0.99)}


def summary(results: list[load.Result]) -> dict:
  """Throughput and latencies of one turn."""
  ttft, gaps, tokens, last = [], [], 0, 0.0
  good = [r for r in results if r.status == 200]
  for result in good:
    texts = result.texts()
    ttft.append(texts[0][0] - result.sent)
    for (before, _), (at, n) in zip(texts, texts[1:]):
      gaps += [(at - before) / n] * round(n)
    tokens += sum(n for _, n in texts)
    last = max(last, texts[-1][0])
  wall = last - min((r.sent for r in results), default=0.0)
  return {
    'requests': len(results),
    'rejected': sum(r.status == 503 for r in results),
    'failed': sum(r.status not in (200, 503) for r in results),
    'tokens_per_s': tokens / wall if good else 0.0,
    'requests_per_s': len(good) / wall if good else 0.0,
    'ttft_ms': quantiles(ttft),
    'inter_token_ms': quantiles(gaps),
  }


def median_of(turns: list[dict]) -> dict:
  """Medians over the turns; counts are summed."""
  out = {}
  for name, value in turns[0].items():
    values = [turn[name] for turn in turns]
    if isinstance(value, dict):
      out[name] = median_of(values)
    elif isinstance(value, int):
      out[name] = sum(values)
    else:
      out[name] = statistics.median(values)
  speeds = [turn['tokens_per_s'] for turn in turns if 'tokens_per_s' in turn]
  if speeds:
    out |= {'min': min(speeds), 'max': max(speeds)}
  return out


async def run_loops(
  port: int, shares: list[float], rng: random.Random
) -> dict[str, dict]:
  """Runs the closed loops in turns, then the open loops."""
  make, rows = body_maker(rng), {}
  await load.closed_loop(port, 2, 1.0, make)  # Warm-up.
  clients = client_counts()
  turns = {n: [] for n in clients}
  for _ in range(ROUNDS.value):
    for n in clients:
      results = await load.closed_loop(port, n, SECONDS.value, make)
      turns[n].append(summary(results))
  for n in clients:
    rows[f'closed {n}'] = median_of(turns[n])
  best = max(row['requests_per_s'] for row in rows.values())
  for share in shares:
    rate = best * share
    results = await load.open_loop(port, rate, SECONDS.value, make, rng)
    rows[f'open {rate:.0f}/s'] = summary(results)
  return rows


async def soak(server: Server, rng: random.Random) -> dict:
  """Runs mixed load with aborts; reports memory and what is left behind."""
  make, rss, results = body_maker(rng), [], []
  end = time.perf_counter() + SOAK.value
  while time.perf_counter() < end:
    results += await load.mixed_load(
      server.port, 24, min(10.0, SOAK.value), make, rng
    )
    rss.append(server.rss_mb())
    print(f'soak: {len(results)} requests, RSS {rss[-1]:.0f} MB', flush=True)
  await asyncio.sleep(0.5)
  metrics = server.metrics()
  names = ('num_requests_running', 'num_requests_waiting', 'slots_busy')
  third = len(rss) // 3
  return {
    'requests': len(results),
    'aborted': sum(r.aborted for r in results),
    'unexpected': sum(
      not r.aborted and r.status not in EXPECTED for r in results
    ),
    'rss_mb': rss,
    # Over the last two thirds: the first fills caches and arenas.
    'rss_growth_mb': rss[-1] - min(rss[third:]),
    'left_behind': sum(metrics[f'rgpt_{name}'] for name in names),
  }


def show(rows: dict[str, dict]) -> None:
  """Prints the table of all loops."""
  print(
    f'\n{"":14s}{"tokens/s":>10s}{"req/s":>8s}{"TTFT p50":>10s}'
    f'{"p95":>8s}{"p99":>8s}{"ITL p50":>9s}{"p95":>8s}{"p99":>8s}'
    f'{"rejected":>10s}{"failed":>8s}   (ms)'
  )
  for name, row in rows.items():
    first, gap = row['ttft_ms'], row['inter_token_ms']
    cells = [f'{v:8.1f}' for v in (first['p95'], first['p99'])]
    print(
      f'{name:14s}{row["tokens_per_s"]:10.0f}{row["requests_per_s"]:8.1f}'
      f'{first["p50"]:10.1f}{"".join(cells)}{gap["p50"]:9.2f}'
      f'{gap["p95"]:8.2f}{gap["p99"]:8.2f}{row["rejected"]:10d}'
      f'{row["failed"]:8d}'
    )


def ratios(rows: dict[str, dict]) -> dict[str, float]:
  """16 clients compared with one, where both were measured."""
  if 'closed 1' not in rows or 'closed 16' not in rows:
    return {}
  one, many = rows['closed 1'], rows['closed 16']
  return {
    'throughput_16_to_1': many['tokens_per_s'] / one['tokens_per_s'],
    'ttft_p95_16_to_1': many['ttft_ms']['p95'] / one['ttft_ms']['p95'],
  }


def measure(
  server: Server,
  workdir: pathlib.Path,
  shares: list[float],
  rng: random.Random,
) -> dict:
  """Runs the load on a ready server."""
  report = {
    'workdir': str(workdir),
    'slots': SLOTS.value,
    'max_tokens': MAX_TOKENS.value,
    'rss_start_mb': server.rss_mb(),
  }
  rows = asyncio.run(run_loops(server.port, shares, rng))
  show(rows)
  report |= {'rows': rows, 'rss_end_mb': server.rss_mb(), **ratios(rows)}
  if SOAK.value:
    report['soak'] = asyncio.run(soak(server, rng))
  programs = server.metrics()['rgpt_jit_compilations_total']
  return {**report, 'programs': programs}


def main(_):
  queue = 2 * max(client_counts())
  shares = harness.positive('shares', SHARES.value, float)
  workdir = make_workdir()
  rng = random.Random(0)
  options = (f'--slots={SLOTS.value}', f'--max_queue={queue}')
  with tempfile.TemporaryDirectory() as cache:
    cold = Server(workdir, cache)
    cold.stop()
    cached = Server(workdir, cache)
    cached.stop()
    print(
      f'{harness.machine()}\nready after {cold.start_s:.1f} s '
      f'({cold.start_cpu_s:.1f} CPU-s) without compilation cache, '
      f'{cached.start_s:.1f} s ({cached.start_cpu_s:.1f} CPU-s) with one'
    )
    report = {'start_cold_s': cold.start_s, 'start_cached_s': cached.start_s}
    server = Server(workdir, cache, *options)
    try:
      report |= measure(server, workdir, shares, rng)
    finally:
      report['exit_code'] = server.stop()
  print(json.dumps(report))


if __name__ == '__main__':
  cli.run(main)
