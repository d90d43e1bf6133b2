"""RandyGPT's own Hugging Face directories.

config.json        model_type randygpt, the shape
model.safetensors  matrices as [out, in], `layers.0.attn.wq.weight`, ...
tokenizer.json     its vocab.json under another name
"""

import pathlib
from typing import Any

from gpt.errors import naming
from gpt.fields import Fields
from gpt.formats.directories import ForeignModel, Path, check_vocab_size
from gpt.formats.tensor_files import open_model
from gpt.formats.tensors import from_tensors
from gpt.model import GPTConfig
from gpt.tokenizers.randygpt import read_vocab_json

MODEL_TYPE = 'randygpt'
SHAPE = ('n_embd', 'n_head', 'n_layer', 'block_size')
LARGEST = 1 << 20  # Of any part of the shape.


def our_name(name: str) -> str:
  """'layers.0.attn.wq.weight' -> 'layer0.attn_wq', 'wte.weight' -> 'wte'."""
  name = name.removesuffix('.weight')
  start, _, rest = name.partition('.')
  if start != 'layers':
    return name
  layer, _, leaf = rest.partition('.')
  return f'layer{layer}.{leaf.replace(".", "_")}'


def read_randygpt(config: Fields, directory: Path) -> ForeignModel:
  """Reads a directory.

  Args:
    config: its config.json.

  Raises:
    UserError: missing or damaged files, or parts that do not fit together.
  """
  directory = pathlib.Path(directory)
  shape: dict[str, Any] = {
    name: config.integer(name, 1, LARGEST) for name in SHAPE
  }
  vocab_size = config.integer('vocab_size', 1, LARGEST)
  with naming(config.where):
    cfg = GPTConfig(vocab_size=vocab_size, arch='randy', **shape)
  files = open_model(directory)
  tensors = {our_name(name): files.read(name) for name in files.shapes}
  params = from_tensors(tensors, cfg, directory)
  tokenizer = read_vocab_json(directory / 'tokenizer.json')
  check_vocab_size(tokenizer, cfg, directory)
  return ForeignModel({**shape, 'arch': 'randy'}, params, tokenizer)
