"""The tensors of a model's safetensors files, read one at a time.

A model is one file, or several that an index lists. Every header is checked
against its file's size before anything is allocated.
"""

import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from gpt.errors import UserError, quoted
from gpt.files import open_file, parse_json, read_json

SINGLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
PICKLED = ('pytorch_model.bin', 'pytorch_model.bin.index.json')
LENGTH_BYTES = 8  # A file begins with the length of its JSON header.
LONGEST_HEADER = 100 << 20  # Bytes; that of the safetensors library.
# Dtypes of weights, by their names in a header.
READABLE = {
  'F32': np.dtype('<f4'),
  'F16': np.dtype('<f2'),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'F64': np.dtype('<f8'),
}
# Bytes of dtypes that files may hold but weights may not.
OTHER_SIZES = {
  'BOOL': 1,
  'U8': 1,
  'I8': 1,
  'F8_E4M3': 1,
  'F8_E5M2': 1,
  'U16': 2,
  'I16': 2,
  'U32': 4,
  'I32': 4,
  'U64': 8,
  'I64': 8,
}
MOST_DIMS = 8
Path = str | os.PathLike[str]


class Entry(NamedTuple):
  """The place, dtype and shape of a tensor."""

  path: pathlib.Path
  dtype: str
  shape: tuple[int, ...]
  start: int  # In bytes, from the beginning of the file.


class TensorFiles:
  """All tensors of a model.

  Attributes:
    entries: {name: Entry}.
    shapes: {name: shape}.
  """

  def __init__(self, entries: Mapping[str, Entry]) -> None:
    self.entries = dict(entries)
    self.shapes = {name: x.shape for name, x in entries.items()}

  def read(self, name: str) -> np.ndarray:
    """One tensor, in the dtype of the file.

    Raises:
      UserError: it is not of floats; the file cannot be read.
    """
    path, dtype, shape, start = self.entries[name]
    if dtype not in READABLE:
      raise UserError(
        f'{path}: {name} is {dtype}; allowed: {", ".join(READABLE)}'
      )
    count = math.prod(shape)
    try:
      with open_file(path) as file:
        file.seek(start)
        x = np.fromfile(file, READABLE[dtype], count)
    except OSError as e:
      raise UserError(f'cannot read {path}: {e.strerror or e}') from e
    if x.size != count:
      raise UserError(f'{path} became shorter while it was read')
    return x.reshape(shape)


def open_model(directory: Path) -> TensorFiles:
  """The tensors of a Hugging Face directory.

  Raises:
    UserError: no weights, a damaged file, or an index that does not fit.
  """
  directory = pathlib.Path(directory)
  if (directory / SINGLE).exists():
    return TensorFiles(read_header(directory / SINGLE))
  if (directory / INDEX).exists():
    return TensorFiles(_shards(directory))
  if any((directory / name).exists() for name in PICKLED):
    raise UserError(
      f'{directory} has its weights in {PICKLED[0]}, a pickle, which is not '
      f'opened because it can run code: convert it to {SINGLE} first'
    )
  raise UserError(f'{directory} has no weights: neither {SINGLE} nor {INDEX}')


def _shards(directory: pathlib.Path) -> dict[str, Entry]:
  index = directory / INDEX
  places = read_json(index).get('weight_map')
  if not isinstance(places, dict) or not places:
    raise UserError(f'{index} has no weight_map of tensors and their files')
  for name in places.values():
    plain = isinstance(name, str) and name.endswith('.safetensors')
    if not plain or len(name) > 255 or any(c in name for c in '/\\\0'):
      raise UserError(
        f'{index} names the file {quoted(name)}: only .safetensors files of '
        'the same directory are read'
      )
  found: dict[str, Entry] = {}
  for file in sorted(set(places.values())):
    entries = read_header(directory / file)
    if twice := sorted(found.keys() & entries.keys()):
      raise UserError(
        f'{directory}: the tensor {twice[0]} is in {file} and in '
        f'{found[twice[0]].path.name}'
      )
    found |= entries
  for name, file in places.items():
    if name not in found or found[name].path.name != file:
      raise UserError(
        f'{directory / file} lacks {quoted(name)}, which {INDEX} has'
      )
  return found


def read_header(path: Path) -> dict[str, Entry]:
  """{name: Entry} of a safetensors file; no tensor is read.

  Raises:
    UserError: a missing file; one that is cut, or whose header and size
      disagree.
  """
  path = pathlib.Path(path)
  try:
    with open_file(path) as file:
      size = os.fstat(file.fileno()).st_size
      length = int.from_bytes(file.read(LENGTH_BYTES), 'little')
      if not 2 <= length <= min(size - LENGTH_BYTES, LONGEST_HEADER):
        raise _damaged(path, 'its header is cut')
      text = file.read(length)
  except OSError as e:
    raise UserError(f'cannot read {path}: {e.strerror or e}') from e
  try:
    header = parse_json(text, 'the header')
  except UserError as e:
    raise _damaged(path, str(e)) from e
  if not isinstance(header, dict):
    raise _damaged(path, 'its header is not a JSON object')
  header.pop('__metadata__', None)
  begin, end = LENGTH_BYTES + length, 0
  entries = {}
  spans = {name: _span(path, name, entry) for name, entry in header.items()}
  for name, (start, stop) in sorted(spans.items(), key=lambda item: item[1]):
    if start != end:
      raise _damaged(path, f'{quoted(name)} does not begin where the last ends')
    end = stop
    entry = header[name]
    shape = tuple(entry['shape'])
    entries[name] = Entry(path, entry['dtype'], shape, begin + start)
  if begin + end != size:
    raise _damaged(path, f'it has {size:,} bytes, its header {begin + end:,}')
  return entries


def _span(path: pathlib.Path, name: str, entry: Any) -> tuple[int, int]:
  """data_offsets of an entry, checked against its shape and dtype."""
  fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
  dtype, shape = fields.get('dtype'), fields.get('shape')
  offsets = fields.get('data_offsets')
  sizes = OTHER_SIZES | {k: x.itemsize for k, x in READABLE.items()}
  known = isinstance(dtype, str) and dtype in sizes and len(name) <= 200
  if known and _are_counts(shape) and _are_counts(offsets):
    start, *stop = offsets or [0]
    if stop == [start + math.prod(shape or []) * sizes[str(dtype)]]:
      return start, stop[0]
  raise _damaged(path, f'the entry of {quoted(name)} is wrong')


def _are_counts(values: Any) -> bool:
  return (
    isinstance(values, list)
    and len(values) <= MOST_DIMS
    and all(type(x) is int and 0 <= x < 1 << 63 for x in values)
  )


def _damaged(path: pathlib.Path, reason: str) -> UserError:
  return UserError(f'{path} is not a whole safetensors file: {reason}')
