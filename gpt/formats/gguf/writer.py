"""Writes a model as a GGUF file: one tensor in memory at a time."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from gpt.errors import explained_writes
from gpt.files import replacing
from gpt.formats import architectures as families
from gpt.formats.gguf import architectures, file
from gpt.formats.tensors import round_to
from gpt.model import GPTConfig
from gpt.model.params import Params


class Type(NamedTuple):
  """A precision of an export.

  Attributes:
    number: of the ggml type.
    file_type: general.file_type, which names the precision of most tensors.
    block, size: so many weights take so many bytes.
  """

  number: int
  file_type: int
  block: int
  size: int


TYPES = {
  'f32': Type(0, 0, 1, 4),
  'f16': Type(1, 1, 1, 2),
  'bf16': Type(30, 32, 1, 2),
  'q8_0': Type(8, 7, 32, 34),
}
# llama.cpp adds rows of this table to float32 activations.
ALWAYS_F32 = (architectures.TABLES['wpe'], architectures.ROPE_FREQS)


class Planned(NamedTuple):
  """A tensor of the file: its data is made when its turn comes."""

  name: str
  shape: tuple[int, ...]
  dtype: str
  make: Callable[[], np.ndarray]

  @property
  def size(self) -> int:
    """Bytes of its data."""
    found = TYPES[self.dtype]
    return math.prod(self.shape) // found.block * found.size


def write_gguf(
  path: str | os.PathLike[str],
  cfg: GPTConfig,
  params: Params,
  tokenizer: Mapping[str, Any],
  dtype: str,
  name: str,
) -> str:
  """Writes one file for llama.cpp, whole or not at all.

  Args:
    tokenizer: of vocabulary.tokenizer_keys.
    dtype: a key of TYPES, of the matrices; vectors are float32. Matrices whose
      rows q8_0 cannot divide into blocks of 32 are float16.
    name: shown by programs.

  Returns:
    The architecture: 'llama', 'qwen3', 'arcee' or 'gpt2'.

  Raises:
    UserError: no architecture of llama.cpp computes the model; numbers too
      large for the dtype; a place that cannot be written to; for q8_0, no
      `gguf` library.
  """
  architecture = architectures.choose(cfg)
  if dtype == 'q8_0':
    file.library()
  family = families.FAMILIES[architecture]
  cfg, params = families.conform(family, cfg, params)
  tensors = list(_plan(architecture, cfg, params, dtype))
  metadata = {
    'general.architecture': architecture,
    'general.type': 'model',
    'general.name': name,
    'general.file_type': TYPES[dtype].file_type,
    'general.quantization_version': 2,
    **architectures.model_keys(cfg, architecture),
    **tokenizer,
  }
  header = file.header_bytes(
    metadata,
    [(t.name, t.shape, TYPES[t.dtype].number, t.size) for t in tensors],
  )
  with explained_writes(path), replacing(path) as out:
    out.write(header)
    for tensor in tensors:
      out.write(_encoded(tensor).data)
      out.write(bytes(file.padded(tensor.size) - tensor.size))
  return architecture


def _plan(
  architecture: str, cfg: GPTConfig, params: Params, dtype: str
) -> Iterator[Planned]:
  """All tensors in the order of the file: tables, then layer by layer."""

  def planned(name: str, shape: tuple[int, ...], make: Callable) -> Planned:
    kind = dtype
    if len(shape) == 1 or name in ALWAYS_F32:
      kind = 'f32'
    elif dtype == 'q8_0' and shape[-1] % TYPES[dtype].block:
      kind = 'f16'
    return Planned(name, shape, kind, make)

  for ours, name in architectures.TABLES.items():
    if ours in params:
      table = params[ours]
      yield planned(name, table.shape, lambda x=table: np.asarray(x))
  if cfg.rope_scaling.startswith('llama3'):
    factors = architectures.frequency_factors(
      cfg.head_dim, cfg.rope_base, cfg.rope_scaling
    )
    yield planned(architectures.ROPE_FREQS, factors.shape, lambda x=factors: x)
  for i in range(cfg.n_layer):
    block = params[f'block_{i}']
    for suffix, leaves in architectures.tensors_of(architecture, block).items():
      first = block[leaves[0]]
      rows = sum(block[leaf].shape[-1] for leaf in leaves)
      yield planned(
        f'blk.{i}.{suffix}',
        (rows, *first.shape[:-1]),
        lambda block=block, leaves=leaves: np.concatenate(
          [_rows(architecture, cfg, leaf, block[leaf]) for leaf in leaves]
        ),
      )


def _rows(architecture: str, cfg: GPTConfig, leaf: str, x: Any) -> np.ndarray:
  """A parameter as [out, in] with its heads in the order of the file."""
  x = np.asarray(x).T
  heads = architectures.interleaved_heads(architecture, cfg, leaf)
  return architectures.interleave(x, heads) if heads else x


def _encoded(tensor: Planned) -> np.ndarray:
  """uint8[size] of a tensor; UserError for numbers too large for its type."""
  x = np.ascontiguousarray(tensor.make(), np.float32)
  if tensor.dtype == 'q8_0':
    return _quantized(x.reshape(-1))
  rounded = round_to({tensor.name: x}, tensor.dtype)[tensor.name]
  return rounded.reshape(-1).view(np.uint8)


def _quantized(flat: np.ndarray) -> np.ndarray:
  """q8_0 of float32[n], n a multiple of 32, in bounded memory."""
  quants, kind = file.library().quants, TYPES['q8_0'].number
  kind = file.library().GGMLQuantizationType(kind)
  chunks = [
    quants.quantize(flat[None, start : start + file.CHUNK_BYTES], kind)[0]
    for start in range(0, len(flat), file.CHUNK_BYTES)
  ]
  return np.concatenate(chunks)
