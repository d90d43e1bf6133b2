"""Make a run from a microgpt or Hugging Face directory.

    python -m launch.import_model --input=chat-model --workdir=runs/chat
    python -m launch.generate --workdir=runs/chat
    python -m launch.train --workdir=runs/chat --config.data.path=more.jsonl
    python -m launch.import_model --input=names --workdir=runs/names \\
      --config.data.format=text --config.lr=1e-4

It reads microgpt directories (weights.safetensors, meta.json, tokenizer.json;
extra: hf) and directories that `launch.export --format=hf` wrote, on this
machine or on the hub (hf://owner/name[@revision]; extra: hf). The optimizer
starts afresh. The run's config has the hyperparameters the model was trained
with, except for what --config=FILE and --config.KEY set; the model's shape does
not change. For RandyGPT files use launch.import_rgpt.
"""

from absl import flags

from gpt.errors import UserError
from launch import cli, common_flags, config_flag

INPUT = flags.DEFINE_string(
  'input', None, 'Directory of the model, or hf://owner/name.'
)
FORMAT = flags.DEFINE_enum(
  'format',
  'auto',
  ['auto', 'microgpt', 'hf'],
  'Format of the directory; auto: detected from its files.',
)
CONFIG = config_flag.define('configs/default.py')
WORKDIR = common_flags.workdir('Directory of the new run.')


def main(_: list[str]) -> None:
  if not INPUT.value or not WORKDIR.value:
    raise UserError('--input=DIRECTORY and --workdir=DIRECTORY are needed')
  from gpt.formats import hub
  from gpt.formats.convert import import_directory  # JAX, after the flags.
  from gpt.runs.metrics import count

  found = INPUT.value
  if hub.is_reference(found):
    found = hub.download(found)
  done = import_directory(
    found,
    FORMAT.value,
    CONFIG.value.copy_and_resolve_references(),
    WORKDIR.value,
    config_flag.chosen_keys('configs/default.py'),
  )
  cfg, workdir = done['cfg'], WORKDIR.value
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
