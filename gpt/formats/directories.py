"""Model directories of other programs: layouts, safe places, shared checks.

This module imports no JAX: `launch.export` checks its --output first.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from gpt.errors import UserError, explained_writes
from gpt.files import read_json
from gpt.model import GPTConfig
from gpt.runs.output import check_file, check_place, exists
from gpt.tokenizers import Tokenizer

Path = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Layout:
  """The files of an exported directory.

  Attributes:
    files: names of its files and directories.
    mark: the JSON file that identifies it.
    keys: entries of that file; None stands for any value.
  """

  files: tuple[str, ...]
  mark: str
  keys: Mapping[str, Any]


LAYOUTS = {
  'microgpt': Layout(
    files=('weights.safetensors', 'meta.json', 'tokenizer.json'),
    mark='meta.json',
    keys=dict.fromkeys(('n_embd', 'n_head', 'n_layer', 'block_size')),
  ),
  'hf': Layout(
    files=(
      'configuration_rgpt.py',
      'modeling_rgpt.py',
      'model.safetensors',
      'config.json',
      'README.md',
      'tokenizer.json',
      'tokenizer_config.json',
      'chat_template.jinja',
      'rgpt_tokenizer',
      'generation_config.json',
    ),
    mark='config.json',
    keys={'model_type': None, 'rgpt': None},
  ),
  'peft': Layout(
    files=('adapter_model.safetensors', 'adapter_config.json'),
    mark='adapter_config.json',
    keys={'peft_type': 'LORA'},
  ),
}


@dataclasses.dataclass
class ForeignModel:
  """A model read from another program's directory.

  Attributes:
    options: the keys of `config.model` that the directory fixes.
    params: parameter tree of numpy, float32 or bfloat16.
    tokenizer: its vocabulary size is that of the weights.
    record: what our own exports keep of their run ('config', 'step', ...).
    chat_template: Jinja, or ''.
    sampling: keys of `config.sample` that the model asks for.
    kind: of foreign.KINDS; '' until it is known.
  """

  options: dict[str, Any]
  params: dict[str, Any]
  tokenizer: Tokenizer
  record: dict[str, Any] = dataclasses.field(default_factory=dict)
  chat_template: str = ''
  sampling: dict[str, Any] = dataclasses.field(default_factory=dict)
  kind: str = ''


def check_output(output: Path, format: str, overwrite: bool = False) -> None:
  """Checks that an export may be written to `output`.

  Args:
    format: 'rgpt', 'safetensors' or 'gguf' (files), 'microgpt', 'hf' or 'peft'
      (directories).
    overwrite: whether an existing file or an earlier export may be replaced.

  Raises:
    UserError: it may not; nothing has been written.
  """
  output = check_place(output)
  if (output / 'checkpoints').exists():
    raise UserError(f'{output} is a run; choose another --output')
  if format not in LAYOUTS:
    if format == 'gguf':
      if output.suffix != '.gguf':
        raise UserError(f'--output={output} must end in .gguf')
      check_file(modelfile_path(output), overwrite=overwrite)
    check_file(output, overwrite=overwrite)
    return
  if output.exists() and not output.is_dir():
    raise UserError(
      f'{output} is a file; --format={format} writes a directory: choose '
      'another --output'
    )
  if output.is_symlink() and not overwrite:
    raise exists(output)
  found = sorted(p.name for p in output.iterdir()) if output.exists() else []
  if not found:
    return
  layout = LAYOUTS[format]
  strange = [name for name in found if name not in layout.files]
  if not strange and not _has_mark(output, layout):
    strange = found
  if strange:
    raise UserError(
      f'{output} holds {strange[0]}, which is no part of an export to '
      f'{format}: nothing in it will be overwritten. Choose a new --output'
    )
  if not overwrite:
    raise exists(output)


def modelfile_path(gguf: Path) -> pathlib.Path:
  """'books.gguf' -> 'books.Modelfile', Ollama's file beside it."""
  return pathlib.Path(gguf).with_suffix('.Modelfile')


def _has_mark(directory: pathlib.Path, layout: Layout) -> bool:
  try:
    given = read_json(directory / layout.mark)
  except UserError:
    return False
  return all(
    given.get(key) is not None and value in (None, given[key])
    for key, value in layout.keys.items()
  )


def make_directory(directory: Path) -> pathlib.Path:
  """Makes a directory with its parents; UserError if that is impossible."""
  with explained_writes(directory):
    pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
  return pathlib.Path(directory)


def check_vocab_size(
  tokenizer: Tokenizer, cfg: GPTConfig, directory: Path
) -> None:
  """Raises UserError unless tokenizer and weights have as many tokens."""
  if tokenizer.vocab_size != cfg.vocab_size:
    raise UserError(
      f'{directory}: the tokenizer has {tokenizer.vocab_size} tokens, the '
      f'model {cfg.vocab_size}'
    )
