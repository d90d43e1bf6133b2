"""A GGUF file as a model of ours: weights dequantized tensor by tensor."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpt.errors import UserError, quoted
from gpt.formats.directories import ForeignModel
from gpt.formats.gguf import architectures, vocabulary
from gpt.formats.gguf.file import GgufFile
from gpt.formats.tensors import PARAM_DTYPES
from gpt.model import GPTConfig, abstract_params


def read_gguf(
  path: str | os.PathLike[str], dtype: str = 'float32'
) -> ForeignModel:
  """Reads a model in llama.cpp's format, of any type that can be dequantized.

  Besides the result it holds one tensor at most: the largest matrix of a
  layer, or some megabytes of a table.

  Args:
    dtype: of the weights: 'float32' or 'bfloat16' (rounded to nearest).

  Raises:
    UserError: the `gguf` library is missing; a damaged file; an architecture,
      feature, quantization or tokenizer that rgpt lacks, by its name.
  """
  file = GgufFile(path)
  freqs = None
  if architectures.ROPE_FREQS in file.tensors:
    info = file.tensors[architectures.ROPE_FREQS]
    if len(info.shape) != 1:
      raise _misfit(file.path, architectures.ROPE_FREQS, info.shape, '[K / 2]')
    freqs = file.tensor(architectures.ROPE_FREQS)
  name, options = architectures.read_options(
    file.path, file.metadata, set(file.tensors), freqs
  )
  # Before anything is built for each layer.
  if options['n_layer'] > len(file.tensors):
    raise UserError(
      f'{file.path}: {options["n_layer"]:,} layers are declared, but there are '
      f'{len(file.tensors)} tensors'
    )
  tokenizer = vocabulary.read_tokenizer(file.path, file.metadata)
  try:
    cfg = GPTConfig(vocab_size=tokenizer.vocab_size, **options)
  except UserError as e:
    raise UserError(f'{file.path}: {e}') from e
  params = _read_params(file, name, cfg, PARAM_DTYPES[dtype])
  return ForeignModel(
    options,
    params,
    tokenizer,
    chat_template=vocabulary.chat_template(file.path, file.metadata, tokenizer),
  )


def _read_params(
  file: GgufFile, name: str, cfg: GPTConfig, dtype: np.dtype
) -> dict[str, Any]:
  """The parameter tree; UserError for missing, unknown or misshapen tensors."""
  wanted = abstract_params(cfg)
  _check_tensors(file, name, wanted)
  params: dict[str, Any] = {}
  for top, value in wanted.items():
    if top in architectures.TABLES:
      table = np.empty(value.shape, dtype)
      for start, rows in file.rows(architectures.TABLES[top]):
        if table.ndim == 1:
          table[:] = rows[0]
        else:
          table[start : start + len(rows)] = rows
      params[top] = table
      continue
    params[top] = block = {}
    prefix = f'blk.{top.removeprefix("block_")}.'
    for suffix, leaves in architectures.tensors_of(name, value).items():
      # From [out, in] to [in, out], after the heads are in our order.
      found = file.tensor(prefix + suffix)
      cuts = np.cumsum([value[leaf].shape[-1] for leaf in leaves])[:-1]
      for leaf, part in zip(leaves, np.split(found, cuts)):
        if heads := architectures.interleaved_heads(name, cfg, leaf):
          part = architectures.deinterleave(part, heads)
        block[leaf] = np.ascontiguousarray(part.T, dtype)
  return params


def _check_tensors(
  file: GgufFile, name: str, wanted: Mapping[str, Any]
) -> None:
  shapes: dict[str, tuple[int, ...]] = {}
  for top, value in wanted.items():
    if top in architectures.TABLES:
      shapes[architectures.TABLES[top]] = value.shape
      continue
    for suffix, leaves in architectures.tensors_of(name, value).items():
      rows = sum(value[leaf].shape[-1] for leaf in leaves)
      inner = value[leaves[0]].shape[:-1]
      shapes[f'blk.{top.removeprefix("block_")}.{suffix}'] = (rows, *inner)
  given = set(file.tensors) - {architectures.ROPE_FREQS}
  if missing := sorted(shapes.keys() - given):
    raise UserError(
      f'{file.path}: the tensor {missing[0]} is missing, which architecture '
      f'{name!r} needs'
    )
  if unknown := sorted(given - shapes.keys()):
    raise UserError(
      f'{file.path}: the tensor {quoted(unknown[0])} belongs to a feature that '
      f'rgpt lacks (architecture {name!r})'
    )
  for tensor, shape in shapes.items():
    if file.tensors[tensor].shape != shape:
      raise _misfit(file.path, tensor, file.tensors[tensor].shape, shape)


def _misfit(
  path: pathlib.Path, name: str, found: Any, wanted: Any
) -> UserError:
  return UserError(
    f'{path}: the tensor {name} has the shape {found}, expected {wanted}'
  )
