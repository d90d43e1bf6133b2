"""Write a run's model in a format that other programs read.

    python -m launch.export --workdir=runs/l --format=rgpt --output=l.bin

rgpt: a RandyGPT checkpoint (RGPT0003) with Adam's moments; --output is a file.
"""

import pathlib

from absl import flags

from gpt.errors import UserError
from launch import cli

WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of the run.')
OUTPUT = flags.DEFINE_string('output', None, 'File or directory to write.')
FORMAT = flags.DEFINE_enum('format', 'rgpt', ['rgpt'], 'What to write.')
WHICH = flags.DEFINE_enum(
  'which', 'best', ['best', 'latest'],
  'The checkpoint with the lowest validation loss, or the newest.',
)


def main(_):
  if not WORKDIR.value or not OUTPUT.value:
    raise UserError('--workdir=DIRECTORY and --output=PATH are needed')
  step = WRITERS[FORMAT.value](WORKDIR.value, WHICH.value, OUTPUT.value)
  print(f'wrote {OUTPUT.value}: {WHICH.value} checkpoint, step {step}')


def write_rgpt(workdir, which, output) -> int:
  from gpt.rgpt_run import export_rgpt  # JAX, after the flags are right.

  if pathlib.Path(output).is_dir():
    raise UserError(f'{output} is a directory; --output must name a file')
  return export_rgpt(workdir, which, output)


WRITERS = {'rgpt': write_rgpt}

if __name__ == '__main__':
  cli.run(main)
