"""Check and measure one GPU in at most 7 minutes.

    python -m launch.bench.gpu --output=gpu.json
    python -m launch.bench.gpu --wheels=wheels      (installs what is missing)
    python -m launch.bench.gpu --only=checks,train_124m
    python -m launch.bench.gpu --toy                (on a CPU, at toy size)

Every part is a process with a time limit, and all share --seconds. One that
fails or takes too long is reported, and the next one starts; parts for which no
time is left are skipped, and the report says so. --output is written again
after every part; the last line of stdout is the same JSON object. Nothing needs
a network.
PyTorch takes part where it is installed (extra: bench).
"""

import os
import pathlib
import sys

from launch.bench.device import wheels

wheels.install_missing(sys.argv[1:])

from absl import flags  # noqa: E402

from launch import cli  # noqa: E402
from launch.bench.device import run  # noqa: E402

SECONDS = flags.DEFINE_float(
  'seconds', 420.0, 'Time for all parts together.', lower_bound=1.0
)
OUTPUT = flags.DEFINE_string(
  'output',
  '',
  'JSON file, written after every part. Default: gpu.json, in $OUT if set.',
)
ONLY = flags.DEFINE_list('only', [], 'Parts to run; default: all.')
TOY = flags.DEFINE_bool(
  'toy', False, 'Toy sizes; the default where JAX finds no accelerator.'
)
flags.DEFINE_string('wheels', '', 'Folder of wheels; see above.')


def main(_: list[str]) -> None:
  default = os.path.join(os.environ.get('OUT', ''), 'gpu.json')
  path = pathlib.Path(OUTPUT.value or default)
  run.run_parts(SECONDS.value, path, ONLY.value, TOY.value)


if __name__ == '__main__':
  cli.run(main)
