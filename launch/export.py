"""Write a model in a format that other programs read.

    python -m launch.export --workdir=runs/l --format=rgpt --output=l.bin
    python -m launch.export --workdir=runs/l --format=hf --output=l-hf
    python -m launch.export --workdir=runs/l --format=gguf --output=l.gguf
    python -m launch.export --workdir=runs/chat --format=microgpt \\
      --output=chat-model --dtype=f16

rgpt: a RandyGPT checkpoint (RGPT0003) with Adam's moments; --output is a file.
safetensors: one file of tensors, named as microgpt names them.
microgpt: a model directory of microgpt (architecture microgpt only).
hf: a directory that transformers loads, with a model card: as a class of its
  own wherever one holds the model, else with our code (trust_remote_code).
gguf: a file for llama.cpp, with a Modelfile for Ollama beside it.
peft: the adapters of a LoRA run (opt.lora_rank), for the peft library; every
  other format holds them merged into their base.

An existing --output is refused; --overwrite replaces a file or an earlier
export.
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
  ['rgpt', 'safetensors', 'microgpt', 'hf', 'gguf', 'peft'],
  'What to write.',
)
DTYPE = flags.DEFINE_enum(
  'dtype',
  'f32',
  ['f32', 'f16', 'bf16', 'q8_0'],
  'Type of the weights (not of rgpt; q8_0, 8 bits and a scale for each 32 '
  'weights, only of gguf). Half precision halves the file; its effect on the '
  'logits is printed.',
)
DROP_SOFTCAP = flags.DEFINE_bool(
  'drop_softcap',
  False,
  'gguf: leave out model.logit_softcap, which no architecture of llama.cpp '
  'has. The likeliest token stays the same; what else changes is printed.',
)
HF_CLASS = flags.DEFINE_enum(
  'hf_class',
  'auto',
  ['auto', 'own', 'llama', 'qwen3', 'gpt2', 'arcee', 'nanochat'],
  'Class of transformers that --format=hf writes; auto: one that holds the '
  'model, else our own; own: ours, with its code.',
)
WHICH = common_flags.which()
BASE = common_flags.base()
OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'Replace an existing file or an earlier export.'
)


def main(_: list[str]) -> None:
  workdir, output, format = WORKDIR.value, OUTPUT.value, FORMAT.value
  if not workdir or not output:
    raise UserError('--workdir=DIRECTORY and --output=PATH are needed')
  if HF_CLASS.value != 'auto' and format not in ('hf', 'peft'):
    raise UserError(
      f'--hf_class={HF_CLASS.value} is for --format=hf and peft, not {format}'
    )
  if format == 'rgpt' and DTYPE.value != 'f32':
    raise UserError(
      f'RandyGPT files hold float32, not {DTYPE.value}: leave --dtype out, or '
      'choose --format=safetensors'
    )
  if format != 'gguf' and (DTYPE.value == 'q8_0' or DROP_SOFTCAP.value):
    raise UserError(
      f'--dtype=q8_0 and --drop_softcap are for --format=gguf, not {format}'
    )
  from gpt.formats.directories import check_output

  check_output(output, format, OVERWRITE.value)
  from gpt.formats.convert import export  # Slow: imports JAX.

  which, step, notes = export(
    workdir,
    WHICH.value,
    format,
    output,
    DTYPE.value,
    OVERWRITE.value,
    BASE.value,
    HF_CLASS.value,
    DROP_SOFTCAP.value,
  )
  print(
    f'wrote {output} ({format}, {DTYPE.value}, {size(output):,} bytes): '
    f'{which} checkpoint, step {step}'
  )
  for note in notes:
    print(note)


def size(output: str) -> int:
  """Bytes of a file, or of all files in a directory."""
  path = pathlib.Path(output)
  files = path.rglob('*') if path.is_dir() else [path]
  return sum(f.stat().st_size for f in files if f.is_file())


if __name__ == '__main__':
  cli.run(main)
