"""Make a run from a RandyGPT checkpoint.

    python -m launch.import_rgpt --input=checkpoint.bin --preset=xs \\
      --chars=train.txt --workdir=runs/imported
    python -m launch.train --workdir=runs/imported --additional_steps=1000

The file does not know its architecture: --preset names it (left out, it is
told from the file's size). Nor does it hold the vocabulary: --chars is the text
the model was trained on, --vocab the vocab.json of a BPE model.
"""

import pathlib
import re

from absl import flags

import configs
from gpt.errors import UserError
from gpt.formats import randygpt
from launch import cli, common_flags, config_flag

INPUT = flags.DEFINE_string('input', None, 'RGPT file to read.')
PRESET = flags.DEFINE_string(
  'preset',
  '',
  'xs, s, ds, m, l, deep or xl, or the path of a config file with the shape.',
)
VOCAB = flags.DEFINE_string(
  'vocab', '', "The model's vocab.json (or another tokenizer or workdir)."
)
CHARS = flags.DEFINE_string(
  'chars', '', 'Text whose characters are the vocabulary.'
)
WORKDIR = common_flags.workdir('Directory of the new run.')


def main(_):
  if not INPUT.value or not WORKDIR.value:
    raise UserError('--input=FILE.bin and --workdir=DIRECTORY are needed')
  randygpt.read_vocab_size(INPUT.value)  # Is it an RGPT file at all?
  path = preset_path(PRESET.value) if PRESET.value else guess(INPUT.value)
  config = config_flag.load_config(path)
  from gpt.formats.randygpt_run import (
    import_rgpt,  # JAX, after the flags are right.
  )

  tokenizer, text = find_tokenizer(INPUT.value)
  config.data.tokenizer = tokenizer.kind
  if text:  # It goes on with the text it was trained on.
    config.data.path = text
  try:
    step = import_rgpt(INPUT.value, config, tokenizer, WORKDIR.value)
  except randygpt.RgptSizeError as e:
    raise UserError(f'{e}{suggestion(e.fits)}') from e
  print(
    f'imported {INPUT.value} ({path}, {tokenizer.kind} vocabulary of '
    f'{tokenizer.vocab_size}) as {WORKDIR.value} at step {step}\n'
    f'  python -m launch.generate --workdir={WORKDIR.value}\n'
    f'  python -m launch.train --workdir={WORKDIR.value} '
    '--additional_steps=1000'
  )


def preset_path(name: str) -> str:
  """'xs' or the path of a config file -> the path of the config file."""
  return f'configs/model_{name}.py' if re.fullmatch(r'\w+', name) else name


def presets() -> dict[str, tuple[int, int]]:
  """Name -> (n_embd, n_layer) of every configs/model_NAME.py."""
  shapes = {}
  for file in sorted(pathlib.Path(configs.__file__).parent.glob('model_*.py')):
    model = config_flag.load_config(str(file)).model
    shapes[file.stem.removeprefix('model_')] = (model.n_embd, model.n_layer)
  return shapes


def suggestion(fits) -> str:
  """' Try --preset=l' for the presets among the (n_embd, n_layer) that fit."""
  names = [f'--preset={n}' for n, shape in presets().items() if shape in fits]
  return f' Try {" or ".join(names)}' if names else ''


def guess(file: str) -> str:
  """The config file of the only preset that has the file's size."""
  fits = randygpt.infer_shape(file)
  names = [name for name, shape in presets().items() if shape in fits]
  if len(names) == 1:
    print(f'the size of {file} is that of --preset={names[0]}')
    return preset_path(names[0])
  raise UserError(
    f'{file} has the size of no preset: --preset=CONFIG.py names a config '
    'file with its n_embd, n_head, n_layer and block_size'
    if not names
    else f'{file} fits several presets: give --preset={" or ".join(names)}'
  )


def find_tokenizer(file: str):
  """The model's tokenizer and its text, from the flags or beside the file.

  The text is '' where it is not known.
  """
  from gpt.tokenizers import load_tokenizer

  if VOCAB.value and CHARS.value:
    raise UserError('give --vocab or --chars, not both')
  if VOCAB.value:
    return load_tokenizer(VOCAB.value), ''
  if CHARS.value:
    return characters_of(CHARS.value), CHARS.value
  wanted = randygpt.read_vocab_size(file)
  beside = pathlib.Path(file).parent
  readers = {'vocab.json': load_tokenizer, 'train.txt': characters_of}
  for name, read in readers.items():
    if (beside / name).is_file():
      tokenizer = read(beside / name)
      if tokenizer.vocab_size == wanted:
        print(f'the vocabulary is that of {beside / name}')
        text = beside / 'train.txt'
        return tokenizer, str(text) if text.is_file() else ''
  raise UserError(
    f'{file} does not hold its vocabulary of {wanted} tokens: give '
    '--chars=FILE (the text it was trained on) or --vocab=vocab.json'
  )


def characters_of(file):
  """The character tokenizer of a text file."""
  from gpt.tokenizers.char import build_char

  try:
    with open(file, encoding='utf-8', errors='replace', newline='') as f:
      return build_char(iter(lambda: f.read(1 << 20), ''))
  except OSError as e:
    raise UserError(f'cannot read {file}: {e.strerror}') from e


if __name__ == '__main__':
  cli.run(main)
