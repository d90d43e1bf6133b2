"""Measure a server under load: latency, throughput, memory.

    python -m launch.bench.serve                    (preset s, a few minutes)
    python -m launch.bench.serve --soak=600         (plus ten minutes of abuse)
    python -m launch.bench.serve --workdir=runs/x --slots=4 --clients=1,4
    python -m launch.bench.serve --before=v0.2.0 --clients=1,16
    python -m launch.bench.serve --peer=llama --clients=1,16
    python -m launch.bench.serve --scenario=start   (start-up alone)

Without --workdir it trains a model of the preset for a single step: speed does
not depend on the weights. Start-up is timed with the server's defaults, without
and with a compilation cache; the load runs against a server with --slots.
Closed loop: each client sends its next request when it has its answer; few and
many clients take turns. Open loop: Poisson arrivals at shares of the highest
closed-loop rate.

--before=REVISION serves the same workdir by the code of a git revision as well,
--peer=llama the same weights by llama.cpp (LLAMA_CPP: a llama-server binary or
its folder; else llama-cpp-python's server). All servers stay up and take turns
in the closed loops; the JSON line has our ratio to each, by number of clients:
the median over the rounds of two neighbouring turns. Presets whose options no
architecture of llama.cpp has get those of gguf_shape.OPTIONS for --peer.
"""

import asyncio
import contextlib
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from gpt.errors import UserError
from launch import cli
from launch.bench import gguf_shape, harness, load, machine, servers
from launch.bench.servers import Server

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
BEFORE = flags.DEFINE_string(
  'before', '', 'Git revision whose server takes turns with ours.'
)
PEER = flags.DEFINE_enum(
  'peer', 'none', ['none', 'llama'], 'llama: llama.cpp takes turns with ours.'
)
SCENARIO = flags.DEFINE_enum(
  'scenario', 'all', ['all', 'start', 'load'], 'What to measure.'
)
SERVER_FLAGS = flags.DEFINE_multi_string(
  'server_flag', [], 'A flag of our server, as --server_flag=--slots=8.'
)
OURS, BEFORE_NAME, LLAMA = 'ours', 'before', 'llama.cpp'
# Statuses expected under abuse: answers, bad requests, a full queue.
EXPECTED = (200, 400, 503)


def client_counts() -> list[int]:
  """The values of --clients. Raises UserError."""
  return harness.positive('clients', CLIENTS.value)


def make_workdir(root: pathlib.Path = servers.ROOT) -> pathlib.Path:
  """--workdir if it holds a run; else a run of the preset, made if needed.

  Args:
    root: of the code that makes it. Newer code reads the runs of older.
  """
  if WORKDIR.value and (pathlib.Path(WORKDIR.value) / 'config.json').exists():
    return pathlib.Path(WORKDIR.value)
  name = PRESET.value + ('-gguf' if PEER.value == 'llama' else '')
  workdir = pathlib.Path(WORKDIR.value or f'runs/bench-{name}').resolve()
  if (workdir / 'config.json').exists():
    root = servers.ROOT
  command = [
    *(sys.executable, '-m', 'launch.train', f'--workdir={workdir}'),
    f'--config=configs/model_{PRESET.value}.py',
    '--config.total_steps=1',
    '--config.batch_size=1',
    '--config.data.path=sample',
    '--config.eval.full_at_end=false',
    '--config.eval.windows=1',
    '--config.sample.max_tokens=1',
  ]
  if PEER.value == 'llama':
    options = gguf_shape.choose_options(PRESET.value, vocab_size=100)
    command += [f'--config.model.{k}={v}' for k, v in options.items()]
  # A GPU's compiler need not try out kernels for one step.
  xla = f'{os.environ.get("XLA_FLAGS", "")} --xla_gpu_autotune_level=0'
  done = subprocess.run(
    command,
    stdout=subprocess.DEVNULL,
    cwd=root,
    env={**os.environ, 'XLA_FLAGS': xla.strip()},
  )
  if done.returncode:
    raise UserError(f'{workdir} could not be made (see above)')
  return workdir


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
  contestants: Mapping[str, Server], shares: list[float], rng: random.Random
) -> tuple[dict[str, dict], dict[str, dict]]:
  """Runs the closed loops in turns, then the open loops of our server.

  Returns:
    (rows by name, ratios of OURS to each other contestant).
  """
  make, rows = body_maker(rng), {}
  for server in contestants.values():  # Warm-up.
    await load.closed_loop(server.port, 2, 1.0, make)
  clients = client_counts()
  turns = {(name, n): [] for n in clients for name in contestants}
  for _ in range(ROUNDS.value):
    for name, n in ((name, n) for n in clients for name in contestants):
      port = contestants[name].port
      results = await load.closed_loop(port, n, SECONDS.value, make)
      turns[name, n].append(summary(results))
  for (name, n), found in turns.items():
    rows[f'{title(name)}closed {n}'] = median_of(found)
  best = max(rows[f'closed {n}']['requests_per_s'] for n in clients)
  for share in shares:
    rate, port = best * share, contestants[OURS].port
    results = await load.open_loop(port, rate, SECONDS.value, make, rng)
    rows[f'open {rate:.0f}/s'] = summary(results)
  return rows, {
    name: {
      f'closed {n}': beside(turns[OURS, n], turns[name, n]) for n in clients
    }
    for name in contestants
    if name != OURS
  }


def title(name: str) -> str:
  return '' if name == OURS else f'{name} '


def beside(mine: list[dict], theirs: list[dict]) -> dict[str, float]:
  """Medians of the ratios, ours to theirs, of neighbouring turns."""
  answered = [t for t in zip(mine, theirs) if t[1]['tokens_per_s']]
  if not answered:
    raise UserError('a server beside ours has answered nothing')

  def ratio(value: Callable[[dict], float]) -> float:
    return statistics.median(value(a) / value(b) for a, b in answered)

  return {
    'tokens_per_s': ratio(lambda turn: turn['tokens_per_s']),
    'ttft_p50': ratio(lambda turn: turn['ttft_ms']['p50']),
    'ttft_p95': ratio(lambda turn: turn['ttft_ms']['p95']),
  }


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
    f'\n{"":22s}{"tokens/s":>10s}{"req/s":>8s}{"TTFT p50":>10s}'
    f'{"p95":>8s}{"p99":>8s}{"ITL p50":>9s}{"p95":>8s}{"p99":>8s}'
    f'{"rejected":>10s}{"failed":>8s}   (ms)'
  )
  for name, row in rows.items():
    first, gap = row['ttft_ms'], row['inter_token_ms']
    cells = [f'{v:8.1f}' for v in (first['p95'], first['p99'])]
    print(
      f'{name:22s}{row["tokens_per_s"]:10.0f}{row["requests_per_s"]:8.1f}'
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
  contestants: Mapping[str, Server],
  workdir: pathlib.Path,
  shares: list[float],
  rng: random.Random,
) -> dict[str, Any]:
  """Runs the load on ready servers."""
  server = contestants[OURS]
  report = {
    'workdir': str(workdir),
    'slots': SLOTS.value,
    'max_tokens': MAX_TOKENS.value,
    'rss_start_mb': server.rss_mb(),
  }
  rows, found = asyncio.run(run_loops(contestants, shares, rng))
  show(rows)
  for name, by_clients in found.items():
    for n, ratio in by_clients.items():
      print(
        f'ours / {name}, {n}: {ratio["tokens_per_s"]:.2f} x tokens/s, TTFT '
        f'{ratio["ttft_p50"]:.2f} x (p50), {ratio["ttft_p95"]:.2f} x (p95)'
      )
  report |= {'rows': rows, 'rss_end_mb': server.rss_mb(), **ratios(rows)}
  report |= {'ratios': found} if found else {}
  if SOAK.value:
    report['soak'] = asyncio.run(soak(server, rng))
  programs = server.metrics()['rgpt_jit_compilations_total']
  return {**report, 'programs': programs}


def measure_start(
  workdir: pathlib.Path, roots: Mapping[str, pathlib.Path]
) -> dict[str, Any]:
  """Starts each root's server twice in turns, with an empty cache at first."""
  report = {}
  with contextlib.ExitStack() as stack:
    caches = {
      name: stack.enter_context(tempfile.TemporaryDirectory()) for name in roots
    }
    for kind in ('cold', 'cached'):
      for name, root in roots.items():
        own = SERVER_FLAGS.value if name == OURS else ()
        server = servers.ours(workdir, caches[name], *own, root=root)
        programs = server.metrics()['rgpt_jit_compilations_total']
        server.stop()
        prefix = '' if name == OURS else f'{name}_'
        report |= {
          f'{prefix}start_{kind}_s': server.start_s,
          f'{prefix}start_{kind}_cpu_s': server.start_cpu_s,
          f'{prefix}start_programs': programs,
        }
        print(
          f'{name}: ready after {server.start_s:.1f} s '
          f'({server.start_cpu_s:.1f} CPU-s), {programs:.0f} programs, '
          f'{"an empty" if kind == "cold" else "with a"} compilation cache'
        )
  return report


def export_gguf(workdir: pathlib.Path, folder: str) -> tuple[pathlib.Path, int]:
  """(the run as a float32 GGUF file, its window). Raises UserError."""
  from gpt.formats.convert import export
  from gpt.runs.load import load_model

  path = pathlib.Path(folder) / 'model.gguf'
  export(workdir, 'best', 'gguf', path)
  return path, load_model(workdir).cfg.block_size


def main(_):
  queue = 2 * max(client_counts())
  shares = harness.positive('shares', SHARES.value, float)
  rng = random.Random(0)
  options = (f'--slots={SLOTS.value}', f'--max_queue={queue}')
  print(machine.line())
  report = {'machine': machine.facts()}
  with contextlib.ExitStack() as stack:

    def folder() -> str:
      return stack.enter_context(tempfile.TemporaryDirectory())

    roots = {OURS: servers.ROOT}
    if BEFORE.value:
      roots[BEFORE_NAME] = servers.checkout(BEFORE.value, folder())
      report['before'] = BEFORE.value
    workdir = make_workdir(roots.get(BEFORE_NAME, servers.ROOT))
    if SCENARIO.value != 'load':
      report |= measure_start(workdir, roots)
    if SCENARIO.value != 'start':
      cache, contestants = folder(), {}
      try:
        for name, root in roots.items():
          own = SERVER_FLAGS.value if name == OURS else ()
          contestants[name] = servers.ours(
            workdir, cache, *options, *own, root=root
          )
        if PEER.value == 'llama':
          gguf, window = export_gguf(workdir, folder())
          contestants[LLAMA] = servers.llama_cpp(gguf, SLOTS.value, window)
        report |= measure(contestants, workdir, shares, rng)
      except ImportError as e:
        raise UserError(f'--peer=llama: {e}') from e
      finally:
        codes = {name: server.stop() for name, server in contestants.items()}
        report['exit_code'] = codes.get(OURS)
  print(json.dumps(report))


if __name__ == '__main__':
  cli.run(main)
