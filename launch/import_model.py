"""Make a run from a model of another program.

    python -m launch.import_model --input=hf://owner/name \\
      --workdir=runs/smollm2
    python -m launch.import_model --input=model.gguf --workdir=runs/g \\
      --dtype=bfloat16 --block_size=4096
    python -m launch.chat --workdir=runs/smollm2
    python -m launch.train --workdir=runs/smollm2 --config.data.path=more.jsonl

--input is a Hugging Face directory (GPT-2, Llama, Qwen3 and models of their
shape; what `launch.export --format=hf` wrote; RandyGPT's own), a microgpt
directory, a GGUF file, or hf://owner/name[@revision] (extra: hf).

The run is at step 0 and its optimizer starts afresh. Its config has settings
for fine-tuning, or those that our own exports recorded; --config=FILE and
--config.KEY win, except over the model's shape. For RandyGPT's checkpoint files
use launch.import_rgpt. docs/importing.md has the details.
"""

from absl import flags

from gpt.errors import UserError
from launch import cli, common_flags, config_flag

INPUT = flags.DEFINE_string(
  'input', None, 'Directory or GGUF file of the model, or hf://owner/name.'
)
FORMAT = flags.DEFINE_enum(
  'format',
  'auto',
  ['auto', 'hf', 'microgpt', 'randygpt', 'gguf'],
  'Format of the model; auto: detected from its files.',
)
DTYPE = flags.DEFINE_enum(
  'dtype',
  'float32',
  ['float32', 'bfloat16'],
  'Dtype of the weights in the run. bfloat16 takes half the memory; training '
  'all weights needs float32.',
)
BLOCK_SIZE = flags.DEFINE_integer(
  'block_size',
  0,
  'Context of the run in tokens, at most that of the model; 0: that of the '
  'model, but at most 2048.',
  lower_bound=0,
)
CONFIG = config_flag.define('configs/default.py')
WORKDIR = common_flags.workdir('Directory of the new run.')


def main(_: list[str]) -> None:
  if not INPUT.value or not WORKDIR.value:
    raise UserError('--input=WHAT and --workdir=DIRECTORY are needed')
  from gpt.formats.convert import import_directory  # JAX, after the flags.
  from gpt.runs.metrics import count

  done = import_directory(
    INPUT.value,
    FORMAT.value,
    CONFIG.value.copy_and_resolve_references(),
    WORKDIR.value,
    config_flag.chosen_keys('configs/default.py'),
    dtype=DTYPE.value,
    block_size=BLOCK_SIZE.value,
  )
  cfg, workdir = done['cfg'], WORKDIR.value
  for note in done['notes']:
    print(note)
  print(
    f'imported {INPUT.value} ({done["format"]}: {cfg.arch}, {cfg.n_layer} '
    f'layers x {cfg.n_embd}, {count(done["parameters"])} parameters, '
    f'{done["tokenizer"]} tokenizer of {cfg.vocab_size:,}) as {workdir} at '
    f'step {done["step"]}\n'
    f'  python -m launch.{"chat" if done["chat"] else "generate"} '
    f'--workdir={workdir}'
  )


if __name__ == '__main__':
  cli.run(main)
