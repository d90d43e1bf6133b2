"""Measure weak scaling over the processes of this machine.

    python -m launch.bench.scaling --preset=s --processes=1,2,4,8

Every run trains by launch.local with one CPU device a process, --rows sequences
in each, on as many cores as it has processes, at most all. The efficiency is
the speed per core in use beside that of one process on one core: what joining
costs (Gloo's sums of gradients, waiting for each other, processes that share a
core), not what more machines would gain. Runs take turns.
"""

import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile

from absl import flags

from gpt.devices import num_cores
from gpt.errors import UserError
from gpt.runs import metrics
from launch import cli, signals
from launch.bench import harness, machine

PRESET = flags.DEFINE_string('preset', 's', 'Size preset to train.')
PROCESSES = flags.DEFINE_list(
  'processes', ['1', '2', '4', '8'], 'Numbers of processes.'
)
ROWS = flags.DEFINE_integer(
  'rows', 8, 'Sequences of a process in a step.', lower_bound=1
)
STEPS = flags.DEFINE_integer(
  'steps', 8, 'Steps between two measurements.', lower_bound=1
)
ROUNDS = flags.DEFINE_integer(
  'rounds', 3, 'Runs of each number of processes.', lower_bound=1
)

LIMIT = flags.DEFINE_float(
  'limit', 600.0, 'Seconds that a run may take.', lower_bound=1.0
)


def train(processes: int, cores: int, cache: str) -> float:
  """Tokens/s of a run of `processes`, on the first `cores` cores."""
  with tempfile.TemporaryDirectory() as folder:
    workdir = pathlib.Path(folder) / 'run'
    command = [sys.executable, '-m', 'launch.local', f'--processes={processes}']
    command += ['--', 'launch.train', f'--workdir={workdir}']
    command += [
      f'--config=configs/model_{PRESET.value}.py',
      f'--config.batch_size={processes * ROWS.value}',
      f'--config.total_steps={3 * STEPS.value}',
      f'--config.eval.every={STEPS.value}',
      '--config.eval.windows=1',
      '--config.eval.full_at_end=false',
      '--config.checkpoint.every=0',
      '--config.sample.max_tokens=1',
      '--config.data.path=sample',
      '--config.parallel.num_cpu_devices=1',
    ]
    own = sorted(os.sched_getaffinity(0))[:cores]

    def start() -> None:
      os.sched_setaffinity(0, own)
      signals.end_with_parent(signal.SIGTERM)  # Its processes end with it.

    try:
      done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'RGPT_CACHE': cache},
        preexec_fn=start,
        timeout=LIMIT.value,
      )
    except subprocess.TimeoutExpired as e:
      last = (e.stdout or b'').decode(errors='replace')[-2000:]
      raise UserError(
        f'{processes} processes were not done after {LIMIT.value:.0f} s '
        f'(--limit):\n{last}'
      ) from e
    if done.returncode:
      raise UserError(f'{processes} processes failed:\n{done.stderr[-2000:]}')
    lines = metrics.read_lines(workdir)
  # The first one holds the compilation.
  return statistics.median(
    [line['tokens_per_s'] for line in lines if 'tokens_per_s' in line][1:]
  )


def main(_: list[str]) -> None:
  if not hasattr(os, 'sched_setaffinity'):
    raise UserError('this machine cannot bind processes to cores: use Linux')
  numbers = harness.positive('processes', PROCESSES.value)
  found: dict[int, list[float]] = {n: [] for n in (1, *numbers)}
  with tempfile.TemporaryDirectory() as cache:
    for _ in range(ROUNDS.value):
      for n, speeds in found.items():
        speeds.append(train(n, min(n, num_cores()), cache))
        print(f'{n}: {speeds[-1]:,.0f} tokens/s', file=sys.stderr, flush=True)
  one, rows = statistics.median(found[1]), {}
  print(machine.line())
  print('processes   cores   tokens/s   of it per core   efficiency')
  for n, speeds in found.items():
    cores, speed = min(n, num_cores()), statistics.median(speeds)
    rows[n] = {
      'cores': cores,
      'tokens_per_s': speed,
      'min': min(speeds),
      'max': max(speeds),
      'efficiency': speed / cores / one,
    }
    print(
      f'{n:9d}{cores:8d}{speed:11,.0f}{speed / cores:17,.0f}'
      f'{rows[n]["efficiency"]:12.2f}'
    )
  line = {'preset': PRESET.value, 'rows_a_process': ROWS.value}
  print(json.dumps({**line, 'machine': machine.facts(), 'rows': rows}))


if __name__ == '__main__':
  cli.run(main)
