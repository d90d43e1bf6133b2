"""Side-by-side benchmarks: one process per contestant, measured in turns.

A worker process builds its contestant once and answers each 'run' request on
stdin with one JSON line. The parent asks the workers in turn (A B A B), so that
a busy machine slows all of them alike, and reports median and spread.
Compilation and warm-up happen before the first turn.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from gpt.errors import UserError
from launch.bench import machine


def usage() -> tuple[float, float]:
  """(wall clock, CPU time of this process) in seconds; use differences."""
  return time.perf_counter(), time.process_time()


def peak_rss_mb() -> float:
  """Peak resident memory of this process, MB (10^6 bytes)."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak * (1 if sys.platform == 'darwin' else 1024) / 1e6


def peak_device_mb() -> float | None:
  """Peak memory of the accelerator in this process, MB; None on a CPU."""
  if torch := sys.modules.get('torch'):
    if torch.cuda.is_available():
      return torch.cuda.max_memory_allocated() / 1e6
  elif jax := sys.modules.get('jax'):
    stats = jax.local_devices()[0].memory_stats() or {}
    if 'peak_bytes_in_use' in stats:
      return stats['peak_bytes_in_use'] / 1e6
  return None


def serve(
  name: str, build: Callable[[str], tuple[Callable[[], Any], dict]]
) -> None:
  """Worker side: builds a contestant and measures it on request.

  Args:
    name: the contestant.
    build: build(name) -> (run, facts). run() does one round of work, blocks
      until it is done and returns the units done (tokens), or (units, seconds)
      if it measures its own time. facts are added to the report.
  """
  out, sys.stdout = sys.stdout, sys.stderr  # The parent reads JSON only.

  def reply(message):
    out.write(json.dumps(message) + '\n')
    out.flush()

  start = time.perf_counter()
  try:
    run, facts = build(name)
    run()  # Warm-up: compiles and fills caches.
  except ImportError as e:
    reply({'missing': str(e)})
    return
  reply({'ready_s': time.perf_counter() - start, **facts})
  for _ in sys.stdin:
    wall, cpu = usage()
    units = run()
    wall, cpu = (b - a for a, b in zip((wall, cpu), usage()))
    if isinstance(units, tuple):  # The contestant measured its own time.
      units, wall = units
      cpu = wall
    memory = {'rss_mb': peak_rss_mb(), 'device_mb': peak_device_mb()}
    reply({'wall': wall, 'cpu': cpu, 'units': units, **memory})


class Worker:
  """Parent side of one contestant, which builds itself meanwhile."""

  facts: dict

  def __init__(self, name: str, module: str, args: list[str]):
    self.name = name
    self.rounds: list[dict] = []
    self._process = subprocess.Popen(
      [sys.executable, '-m', module, *args, f'--worker={name}'],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def await_ready(self) -> bool:
    """Waits until it is built; False, with a line, if it is not installed."""
    self.facts = self._read()
    if 'missing' in self.facts:
      print(
        f'{self.name}: skipped ({self.facts["missing"]}); '
        'pip install "rgpt[bench]"'
      )
    return 'missing' not in self.facts

  def _read(self) -> dict:
    line = self._process.stdout.readline()
    if not line:
      raise UserError(f'contestant {self.name} exited; see its error above')
    return json.loads(line)

  def turn(self) -> None:
    """Measures one round."""
    self._process.stdin.write('run\n')
    self._process.stdin.flush()
    self.rounds.append(self._read())

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()
    self._process.stdout.close()

  def summary(self) -> dict:
    """Medians over the rounds; minimum and maximum of the speed."""
    speeds = sorted(r['units'] / r['wall'] for r in self.rounds)
    cpu = [r['cpu'] / r['units'] for r in self.rounds]
    return {
      'name': self.name,
      'tokens_per_s': statistics.median(speeds),
      'min': speeds[0],
      'max': speeds[-1],
      'cpu_us_per_token': 1e6 * statistics.median(cpu),
      'peak_rss_mb': self.rounds[-1]['rss_mb'],
      'device_mb': self.rounds[-1]['device_mb'],
      **self.facts,
    }


def compare(
  names: Sequence[str], module: str, rounds: int, together: bool = False
) -> list[dict]:
  """Measures contestants in turns; skips those that are not installed.

  Args:
    names: contestants, in the order of their turns.
    module: the workers' module; they get the flags of this process.
    rounds: measurements of each contestant.
    together: build all of them at once, where cores are idle meanwhile.

  Returns:
    Worker.summary of each contestant.
  """
  started: list[Worker] = []
  workers: list[Worker] = []
  try:
    for name in names:
      worker = Worker(name, module, sys.argv[1:])
      started.append(worker)
      if not together and worker.await_ready():
        workers.append(worker)
    if together:
      workers = [worker for worker in started if worker.await_ready()]
    for _ in range(rounds):
      for worker in workers:
        worker.turn()
    return [worker.summary() for worker in workers]
  finally:
    for worker in started:
      worker.close()


def report(
  title: str,
  rows: Sequence[dict],
  ours: str,
  extra: Sequence[str] = (),
  apart: Sequence[dict] = (),
  pair: Sequence[str] = (),
  ratios: Mapping[str, float] | None = None,
) -> None:
  """Prints a table, then a JSON line with `ours`, best `peer` and `ratio`.

  Args:
    rows: summaries of the contestants.
    ours: prefix of the names of our contestants.
    extra: further columns.
    apart: rows excluded from the comparison; may be all of ours.
    pair: names of two rows to compare with each other.
    ratios: {what is compared: ratio of speeds}, for the JSON line as well.
  """
  print(f'\n{title}\n{machine.line()}')
  columns = [
    'tokens_per_s',
    'min',
    'max',
    'cpu_us_per_token',
    'peak_rss_mb',
    'ready_s',
    *extra,
  ]
  print(f'{"":24s}' + ''.join(f'{c:>18s}' for c in columns))
  for row in rows:
    print(f'{row["name"]:24s}' + ''.join(_cell(row.get(c)) for c in columns))
  best = {r['name']: r for r in rows}
  peers = [r for r in rows if not r['name'].startswith(ours) and r not in apart]
  mine = [r for r in rows if r['name'].startswith(ours) and r not in apart]
  speed = lambda r: r['tokens_per_s']  # noqa: E731
  line = {'title': title, 'machine': machine.facts(), 'rows': best}
  if mine:
    line['ours'] = max(map(speed, mine))
  if mine and peers:
    peer = max(peers, key=speed)
    line |= {
      'peer': speed(peer),
      'peer_name': peer['name'],
      'ratio': line['ours'] / speed(peer),
      'memory_ratio': mine[0]['peak_rss_mb'] / peer['peak_rss_mb'],
    }
    print(
      f'ours / best peer ({peer["name"]}): {line["ratio"]:.2f} x speed, '
      f'{line["memory_ratio"]:.2f} x memory'
    )
  if all(name in best for name in pair) and pair:
    a, b = (speed(best[name]) for name in pair)
    line['pair_ratio'] = a / b
    print(f'{pair[0]} / {pair[1]}: {a / b:.2f} x speed')
  for what, ratio in (ratios or {}).items():
    print(f'{what}: {ratio:.2f} x speed')
  if ratios:
    line['ratios'] = dict(ratios)
  print(json.dumps(line))


def _cell(value) -> str:
  if value is None:
    return f'{"-":>18s}'
  return f'{value:>18,.3g}' if value < 100 else f'{value:>18,.0f}'


def positive(
  flag: str, texts: Sequence[str], kind: Callable[[str], Any] = int
) -> list:
  """Parses a list flag; UserError unless all numbers are positive."""
  try:
    numbers = [kind(text) for text in texts]
  except ValueError:
    numbers = []
  if not numbers or min(numbers) <= 0:
    raise UserError(
      f'--{flag}={",".join(texts)}: expected positive numbers, as in 1,4'
    )
  return numbers


def define_worker_flag() -> flags.FlagHolder[str]:
  """--worker=NAME makes this process a contestant's worker."""
  return flags.DEFINE_string(
    'worker', '', 'Internal: run as the worker of this contestant.'
  )
