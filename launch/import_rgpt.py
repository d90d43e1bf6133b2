"""Make a run from a RandyGPT checkpoint.

    python -m launch.import_rgpt --input=checkpoint.bin --preset=xs \\
      --chars=train.txt --workdir=runs/imported
    python -m launch.train --workdir=runs/imported --additional_steps=1000

The file records neither its architecture nor its vocabulary. --preset names the
architecture; by default it follows from the size of the file, or is that of the
run that --vocab names. --chars is the text the model was trained on, --vocab
the vocab.json of a BPE model.
"""

import pathlib
import re
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import ConfigDict

import configs
from gpt.errors import UserError
from gpt.formats import randygpt
from gpt.runs.workdir import read_config
from launch import cli, common_flags, config_flag

if TYPE_CHECKING:
  from gpt.tokenizers import Tokenizer

INPUT = flags.DEFINE_string('input', None, 'RGPT file to read.')
PRESET = flags.DEFINE_string(
  'preset',
  '',
  'xs, s, ds, m, l, deep or xl, or the path of a config file with the shape.',
)
VOCAB = flags.DEFINE_string(
  'vocab', '', "The model's vocab.json (or another tokenizer or a run)."
)
CHARS = flags.DEFINE_string(
  'chars', '', 'Text whose characters are the vocabulary.'
)
WORKDIR = common_flags.workdir('Directory of the new run.')


def main(_: list[str]) -> None:
  file, workdir = INPUT.value, WORKDIR.value
  if not file or not workdir:
    raise UserError('--input=FILE.bin and --workdir=DIRECTORY are needed')
  randygpt.read_vocab_size(file)  # Is it an RGPT file at all?
  config, origin = find_config(file)
  from gpt.formats.randygpt_run import import_rgpt  # Slow: imports JAX.

  tokenizer, text = find_tokenizer(file)
  config.data.tokenizer = tokenizer.kind
  if text:  # Training continues on the text the model was trained on.
    config.data.path = text
  try:
    step = import_rgpt(file, config, tokenizer, workdir)
  except randygpt.RgptSizeError as e:
    raise UserError(f'{e} {suggestion(e.fits)}') from e
  print(
    f'imported {file} ({origin}, {tokenizer.kind} vocabulary of '
    f'{tokenizer.vocab_size}) as {workdir} at step {step}\n'
    f'  python -m launch.generate --workdir={workdir}\n'
    f'  python -m launch.train --workdir={workdir} --additional_steps=1000'
  )


def find_config(file: str) -> tuple[ConfigDict, str]:
  """The config with the model's shape, and its origin for the user."""
  if not PRESET.value and VOCAB.value:
    saved = read_config(VOCAB.value)
    if saved is not None:
      config = config_flag.load_config('configs/default.py')
      known = {k: v for k, v in saved['model'].items() if k in config.model}
      config.model.update(known)
      for key in ('path', 'format'):
        config.data[key] = saved['data'][key]
      return config, f'the shape of {VOCAB.value}'
  path = preset_path(PRESET.value) if PRESET.value else guess(file)
  return config_flag.load_config(path), path


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


def suggestion(fits: list[tuple[int, int]]) -> str:
  """Presets to try, for the (n_embd, n_layer) pairs that fit a file's size."""
  known = presets()
  names = [f'--preset={n}' for n, shape in known.items() if shape in fits]
  if names:
    return f'Try {" or ".join(names)}'
  listed = ', '.join(f'{n} ({d} x {l})' for n, (d, l) in known.items())
  return (
    f'No preset has this size (n_embd x n_layer): {listed}. --preset=CONFIG.py '
    'names a config file with n_embd, n_head, n_layer and block_size'
  )


def guess(file: str) -> str:
  """The config file of the only preset that has the file's size."""
  fits = randygpt.infer_shape(file)
  names = [name for name, shape in presets().items() if shape in fits]
  if len(names) == 1:
    print(f'{file} has the size of --preset={names[0]}')
    return preset_path(names[0])
  if names:
    raise UserError(
      f'{file} has the size of several presets: give '
      f'--preset={" or ".join(names)}'
    )
  raise UserError(
    f'{file} has the size of no preset. {suggestion(fits)}; for the export of '
    'a run, --vocab=WORKDIR names that run'
  )


def find_tokenizer(file: str) -> 'tuple[Tokenizer, str]':
  """The model's tokenizer and its text, from the flags or beside the file.

  The text is '' where it is unknown.
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


def characters_of(file: str | pathlib.Path) -> 'Tokenizer':
  """The character tokenizer of a text file."""
  from gpt.tokenizers.char import build_char

  if pathlib.Path(file).exists() and not pathlib.Path(file).is_file():
    raise UserError(f'cannot read {file}: it is a directory, pipe or device')
  try:
    with open(file, encoding='utf-8', errors='replace', newline='') as f:
      return build_char(iter(lambda: f.read(1 << 20), ''))
  except OSError as e:
    raise UserError(f'cannot read {file}: {e.strerror}') from e


if __name__ == '__main__':
  cli.run(main)
