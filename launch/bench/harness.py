"""Side-by-side measurement: every contestant a process of its own, in turns.

A worker process builds its contestant once, then answers 'run' requests on
stdin with one JSON line each. The parent asks the workers in turn (A B A B), so
that a busy moment of the machine hits all of them, and reports medians and the
spread. Compilation and warm-up happen before the first turn.
"""

import json
import platform
import resource
import statistics
import subprocess
import sys
import time

from absl import flags

from gpt.errors import UserError


def usage() -> tuple[float, float]:
  """(wall seconds, CPU seconds of this process) since some moment."""
  return time.perf_counter(), time.process_time()


def peak_rss_mb() -> float:
  """Peak resident memory of this process, MB (10^6 bytes)."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak * (1 if sys.platform == 'darwin' else 1024) / 1e6


def serve(name: str, build) -> None:
  """The worker's side: builds a contestant and measures it on request.

  Args:
    name: which contestant.
    build: build(name) -> (run, facts); run() does one round of blocking work
      and returns the number of units done (tokens), or (units, seconds) if it
      has measured itself; facts go to the report.
  """
  out, sys.stdout = sys.stdout, sys.stderr  # Only JSON goes to the parent.

  def reply(message):
    out.write(json.dumps(message) + '\n')
    out.flush()

  start = time.perf_counter()
  try:
    run, facts = build(name)
    run()  # Compiles, touches memory, fills caches.
  except ImportError as e:
    reply({'missing': str(e)})
    return
  reply({'ready_s': time.perf_counter() - start, **facts})
  for _ in sys.stdin:
    wall, cpu = usage()
    units = run()
    wall, cpu = (b - a for a, b in zip((wall, cpu), usage()))
    if isinstance(units, tuple):  # A contestant that took its own time.
      units, wall = units
      cpu = wall
    reply({'wall': wall, 'cpu': cpu, 'units': units, 'rss_mb': peak_rss_mb()})


class Worker:
  """The parent's side of one contestant."""

  def __init__(self, name: str, module: str, args: list[str]):
    self.name = name
    self.rounds: list[dict] = []
    self._process = subprocess.Popen(
      [sys.executable, '-m', module, *args, f'--worker={name}'],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self.facts = self._read()

  def _read(self) -> dict:
    line = self._process.stdout.readline()
    if not line:
      raise UserError(f'the contestant {self.name} died; its message is above')
    return json.loads(line)

  def turn(self) -> None:
    self._process.stdin.write('run\n')
    self._process.stdin.flush()
    self.rounds.append(self._read())

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()

  def summary(self) -> dict:
    """Medians over the rounds, and the spread of the speed."""
    speeds = sorted(r['units'] / r['wall'] for r in self.rounds)
    cpu = [r['cpu'] / r['units'] for r in self.rounds]
    return {
      'name': self.name,
      'tokens_per_s': statistics.median(speeds),
      'min': speeds[0],
      'max': speeds[-1],
      'cpu_us_per_token': 1e6 * statistics.median(cpu),
      'peak_rss_mb': self.rounds[-1]['rss_mb'],
      **self.facts,
    }


def compare(names, module, rounds: int) -> list[dict]:
  """Runs the named contestants in turns; the ones not installed are left out.

  The workers get this process's own flags, so they build the same thing.
  """
  args = sys.argv[1:]
  workers = []
  try:
    for name in names:
      worker = Worker(name, module, args)
      if 'missing' in worker.facts:
        print(
          f'{name}: left out ({worker.facts["missing"]}); '
          'pip install "rgpt[bench]"'
        )
        worker.close()
      else:
        workers.append(worker)
    for _ in range(rounds):
      for worker in workers:
        worker.turn()
    return [worker.summary() for worker in workers]
  finally:
    for worker in workers:
      worker.close()


def report(title, rows, ours, extra=(), apart=(), pair=()) -> None:
  """A table, then one JSON line with `ours`, the best `peer` and the `ratio`.

  Args:
    rows: summaries of the contestants.
    ours: how the names of our contestants begin.
    extra: further columns.
    apart: rows that are shown and not compared with; may be all of ours.
    pair: names of two of those that are compared with each other.
  """
  print(f'\n{title}\n{machine()}')
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
  line = {'title': title, 'rows': best}
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
  print(json.dumps(line))


def _cell(value) -> str:
  if value is None:
    return f'{"-":>18s}'
  return f'{value:>18,.3g}' if value < 100 else f'{value:>18,.0f}'


def machine() -> str:
  """CPU model and core count, for the record."""
  from gpt.devices import num_cores

  model = platform.processor() or platform.machine()
  try:
    with open('/proc/cpuinfo') as f:
      names = [line.split(':')[1].strip() for line in f if 'model name' in line]
    model = names[0] if names else model
  except OSError:
    pass
  return f'{model}, {num_cores()} cores, Python {platform.python_version()}'


def positive(flag: str, texts, kind=int) -> list:
  """The numbers of a list flag. Raises UserError unless all are above 0."""
  try:
    numbers = [kind(text) for text in texts]
  except ValueError:
    numbers = []
  if not numbers or min(numbers) <= 0:
    raise UserError(
      f'--{flag}={",".join(texts)}: numbers above 0 are wanted, as in 1,4'
    )
  return numbers


def define_worker_flag():
  return flags.DEFINE_string(
    'worker', '', 'Internal: be this contestant of a comparison.'
  )
