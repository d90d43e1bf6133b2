"""Train a recipe for some seconds; part of launch.bench.gpu.

    python -m launch.bench.device.recipe --recipe=shakespeare_gpu --seconds=60

A run that has not finished by then is interrupted. The last line is a JSON
object: steps, seconds, tokens per second, losses.
"""

import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import flags

from gpt.errors import UserError
from gpt.runs import metrics
from launch import cli

RECIPE = flags.DEFINE_string('recipe', 'shakespeare_gpu', 'A file of configs.')
SECONDS = flags.DEFINE_float(
  'seconds', 60.0, 'When it is interrupted.', lower_bound=1.0
)
SAVING = 30.0  # Seconds to end after that.


def main(_: list[str]) -> None:
  with tempfile.TemporaryDirectory() as folder:
    workdir = pathlib.Path(folder) / 'run'
    began = time.perf_counter()
    process = subprocess.Popen(
      [
        *(sys.executable, '-m', 'launch.train', f'--workdir={workdir}'),
        f'--config=configs/{RECIPE.value}.py',
        '--config.sample.max_tokens=1',
      ],
      stdout=sys.stderr.fileno(),
    )
    try:
      process.wait(SECONDS.value)
    except subprocess.TimeoutExpired:
      process.send_signal(signal.SIGTERM)
      process.wait(SAVING)
    finally:
      process.kill()
    if process.returncode:
      raise UserError(f'training ended with exit code {process.returncode}')
    wall = time.perf_counter() - began
    print(json.dumps({'wall_s': wall, **summary(metrics.read_lines(workdir))}))


def summary(lines: list[dict]) -> dict[str, Any]:
  """The last of each metric of a run."""
  last: dict[str, Any] = {}
  for line in lines:
    last |= line
  losses = [line['val_loss'] for line in lines if 'val_loss' in line]
  names = (
    'step',
    'loss',
    'elapsed_s',
    'tokens_per_s',
    'full_final_nats_per_token',
  )
  return {
    'best_val_loss': min(losses, default=None),
    **{name: last[name] for name in names if name in last},
  }


if __name__ == '__main__':
  cli.run(main)
