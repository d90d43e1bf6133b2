"""Write a model in a format that other programs read.

    python -m launch.export --workdir=runs/l --format=rgpt --output=l.bin
    python -m launch.export --workdir=runs/l --format=hf --output=l-hf
    python -m launch.export --workdir=runs/chat --format=microgpt \\
      --output=chat-model --dtype=f16

rgpt: a RandyGPT checkpoint (RGPT0003) with Adam's moments; --output is a file.
safetensors: one file of tensors, named as microgpt names them.
microgpt: a model directory of microgpt (architecture microgpt only).
hf: a directory that transformers loads (trust_remote_code), with a model card.
"""

import pathlib

from absl import flags

from gpt.errors import UserError
from launch import cli, common_flags

WORKDIR = common_flags.workdir('Directory of the run.')
OUTPUT = flags.DEFINE_string('output', None, 'File or directory to write.')
FORMAT = flags.DEFINE_enum(
  'format',
  'rgpt',
  ['rgpt', 'safetensors', 'microgpt', 'hf'],
  'What to write.',
)
DTYPE = flags.DEFINE_enum(
  'dtype',
  'f32',
  ['f32', 'f16', 'bf16'],
  'Type of the weights (not of rgpt). Half precision halves the file; what it '
  'does to the logits is printed.',
)
WHICH = common_flags.which()


def main(_):
  if not WORKDIR.value or not OUTPUT.value:
    raise UserError('--workdir=DIRECTORY and --output=PATH are needed')
  write = write_rgpt if FORMAT.value == 'rgpt' else write_other
  which, step, notes = write(WORKDIR.value, WHICH.value, OUTPUT.value)
  print(
    f'wrote {OUTPUT.value} ({FORMAT.value}, {DTYPE.value}, '
    f'{size(OUTPUT.value):,} bytes): {which} checkpoint, step {step}'
  )
  for note in notes:
    print(note)


def write_rgpt(workdir, which, output) -> tuple[str, int, list[str]]:
  from gpt.formats.randygpt_run import (
    export_rgpt,  # JAX, after the flags are right.
  )

  if DTYPE.value != 'f32':
    raise UserError(
      f'RandyGPT files hold float32, not {DTYPE.value}: leave --dtype out, or '
      'choose --format=safetensors'
    )
  if pathlib.Path(output).is_dir():
    raise UserError(f'{output} is a directory; --output must name a file')
  return export_rgpt(workdir, which, output)


def write_other(workdir, which, output) -> tuple[str, int, list[str]]:
  from gpt.formats.convert import export

  return export(workdir, which, FORMAT.value, output, DTYPE.value)


def size(output) -> int:
  """Bytes of a file, or of all files in a directory."""
  path = pathlib.Path(output)
  files = path.rglob('*') if path.is_dir() else [path]
  return sum(f.stat().st_size for f in files if f.is_file())


if __name__ == '__main__':
  cli.run(main)
