"""The GGUF container: a checked header, and tensors read one at a time.

Layout (versions 2 and 3, little-endian): magic, version, the number of tensors
and of metadata entries; the entries; name, shape, type and offset of each
tensor; then the aligned data. Nothing a header declares is believed before it
has been compared with the size of the file, so a damaged file costs an error
message and little memory. The `gguf` library knows the quantization formats.
"""

import dataclasses
import math
import os
import pathlib
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from gpt.errors import UserError, quoted
from gpt.files import open_file

MAGIC = b'GGUF'
VERSIONS = (2, 3)
WRITTEN_VERSION = 3
ALIGNMENT = 32  # Of tensor data, unless general.alignment differs.
# Far above any real model: vocabularies have some 10^5 tokens and merges.
MOST_HEADER_BYTES = 256 << 20
MOST_STRINGS = 4 << 20
MOST_DIMS = 4
CHUNK_BYTES = 4 << 20  # Of float32, dequantized at once.

# Metadata types by their number in the file.
SCALARS = {
  0: 'u1',
  1: 'i1',
  2: '<u2',
  3: '<i2',
  4: '<u4',
  5: '<i4',
  6: '<f4',
  7: '?',
  10: '<u8',
  11: '<i8',
  12: '<f8',
}
STRING, ARRAY = 8, 9
UINT32, INT32, FLOAT32, BOOL = 4, 5, 6, 7


def library() -> Any:
  """The `gguf` package; UserError that names the extra if it is missing."""
  try:
    import gguf
    import gguf.quants
  except ImportError as e:
    raise UserError(
      'GGUF files need the `gguf` library: '
      "pip install 'rgpt[hf]' (or: pip install gguf)"
    ) from e
  return gguf


@dataclasses.dataclass(frozen=True)
class TensorInfo:
  """The entry of a tensor in the file's header.

  Attributes:
    shape: as numpy has it, the outermost axis first.
    type: number of the ggml type.
    offset, size: of its bytes in the file.
  """

  name: str
  shape: tuple[int, ...]
  type: int
  offset: int
  size: int

  @property
  def elements(self) -> int:
    """The number of weights."""
    return math.prod(self.shape)


class GgufFile:
  """A GGUF file whose header has been read and checked.

  Attributes:
    metadata: numbers, strings, bools; arrays are lists of str or numpy.
    tensors: name -> TensorInfo.

  Raises:
    UserError: not a GGUF file, or a damaged one.
  """

  def __init__(self, path: str | os.PathLike[str]) -> None:
    self.path = pathlib.Path(path)
    self._gguf = library()
    try:
      with open_file(self.path) as file:
        header = _Header(file, self.path)
        self.metadata = header.metadata
        self.tensors = _checked_tensors(header, self._gguf)
    except OSError as e:
      raise UserError(f'cannot read {self.path}: {e.strerror or e}') from e

  def rows(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
    """(index of the first row, float32[rows, n]) of a tensor, in order.

    Bounds the memory of dequantizing to some megabytes. A vector is one row.

    Raises:
      UserError: a type that the `gguf` library cannot dequantize, or a file
        that has changed.
    """
    info = self.tensors[name]
    width = info.shape[-1]
    n_rows = info.elements // width
    row_bytes = info.size // n_rows
    kind = self._gguf.GGMLQuantizationType(info.type)
    step = max(1, CHUNK_BYTES // (4 * width))
    try:
      with open_file(self.path) as file:
        file.seek(info.offset)
        for start in range(0, n_rows, step):
          n = min(step, n_rows - start)
          data = file.read(n * row_bytes)
          if len(data) != n * row_bytes:
            raise UserError(f'{self.path} has been cut off')
          # The library goes through the rows in small groups: one is faster.
          raw = np.frombuffer(data, np.uint8).reshape(1, n * row_bytes)
          # Scales of damaged blocks may be anything.
          with np.errstate(all='ignore'):
            rows = self._gguf.quants.dequantize(raw, kind)
          if not np.isfinite(rows).all():
            raise damaged(
              self.path, f'{name} holds numbers that are not finite'
            )
          yield start, rows.reshape(n, width)
    except OSError as e:
      raise UserError(f'cannot read {self.path}: {e.strerror or e}') from e
    except NotImplementedError as e:
      raise UserError(
        f'{self.path}: the tensor {name} has the type {kind.name}, which the '
        'gguf library cannot dequantize; choose a file of another type'
      ) from e

  def tensor(self, name: str) -> np.ndarray:
    """A whole tensor as float32; raises UserError like `rows`."""
    info = self.tensors[name]
    out = np.empty((info.elements // info.shape[-1], info.shape[-1]), 'f4')
    for start, rows in self.rows(name):
      out[start : start + len(rows)] = rows
    return out.reshape(info.shape)


class _Header:
  """Reads the header front to back; every length is checked before use."""

  def __init__(self, file: BinaryIO, path: pathlib.Path) -> None:
    self._file, self._path = file, path
    self.size = os.fstat(file.fileno()).st_size
    self.position = 0
    self._strings = 0
    magic = file.read(4)
    if magic != MAGIC:
      raise UserError(
        f'{path} is not a GGUF file: it begins with {magic!r}, not {MAGIC!r}'
      )
    self.position = 4
    version = self._number('<u4')
    if version & 0xFFFF == 0:
      raise UserError(f'{path} is a big-endian GGUF file, which is not read')
    if version not in VERSIONS:
      raise UserError(
        f'{path} has GGUF version {version}; read are '
        + ' and '.join(map(str, VERSIONS))
      )
    n_tensors, n_entries = self._number('<u8'), self._number('<u8')
    # The fewest bytes of a tensor's entry, and of a metadata entry.
    self._check_count('tensors', n_tensors, 8 + 4 + 8 + 4 + 8)
    self._check_count('metadata entries', n_entries, 8 + 4 + 1)
    self.metadata: dict[str, Any] = {}
    for _ in range(n_entries):
      key = self._string()
      if key in self.metadata:
        raise self._damaged(f'the metadata key {quoted(key)} occurs twice')
      self.metadata[key] = self._value(self._number('<u4'))
    self.entries = [self._tensor_entry() for _ in range(n_tensors)]

  def _damaged(self, problem: str) -> UserError:
    return damaged(self._path, problem)

  def _check_count(self, what: str, count: int, least_bytes: int) -> None:
    if count > (self.size - self.position) // least_bytes:
      raise self._damaged(f'it declares {count:,} {what}')

  def _bytes(self, n: int) -> bytes:
    if n > self.size - self.position:
      raise self._damaged(
        f'its header needs {self.position + n:,} bytes at least'
      )
    if self.position + n > MOST_HEADER_BYTES:
      raise self._damaged(
        f'its header is longer than {MOST_HEADER_BYTES:,} bytes'
      )
    data = self._file.read(n)
    if len(data) != n:
      raise self._damaged('it has been cut off')
    self.position += n
    return data

  def _number(self, dtype: str) -> Any:
    kind = np.dtype(dtype)
    return np.frombuffer(self._bytes(kind.itemsize), kind)[0].item()

  def _string(self) -> str:
    self._strings += 1
    if self._strings > MOST_STRINGS:
      raise self._damaged(f'it holds more than {MOST_STRINGS:,} strings')
    data = self._bytes(self._number('<u8'))
    try:
      return data.decode('utf-8')
    except UnicodeDecodeError as e:
      raise self._damaged(f'a string is not UTF-8: {data[:40]!r}') from e

  def _value(self, kind: int) -> Any:
    if kind == STRING:
      return self._string()
    if kind == ARRAY:
      inner, count = self._number('<u4'), self._number('<u8')
      if inner == STRING:
        self._check_count('strings', count, 8)
        return [self._string() for _ in range(count)]
      dtype = np.dtype(self._scalar(inner))
      self._check_count('numbers', count, dtype.itemsize)
      return np.frombuffer(self._bytes(count * dtype.itemsize), dtype)
    return self._number(self._scalar(kind))

  def _scalar(self, kind: int) -> str:
    if kind not in SCALARS:
      raise self._damaged(f'a metadata entry has the unknown type {kind}')
    return SCALARS[kind]

  def _tensor_entry(self) -> tuple[str, tuple[int, ...], int, int]:
    name, n_dims = self._string(), self._number('<u4')
    if not 1 <= n_dims <= MOST_DIMS:
      raise self._damaged(f'the tensor {quoted(name)} has {n_dims} dimensions')
    shape = tuple(self._number('<u8') for _ in range(n_dims))[::-1]
    return name, shape, self._number('<u4'), self._number('<u8')


def damaged(path: pathlib.Path, problem: str) -> UserError:
  """The error about a file that contradicts itself."""
  return UserError(
    f'{path} is damaged or incomplete: {problem}. Fetch the file again'
  )


def _checked_tensors(header: _Header, gguf: Any) -> dict[str, TensorInfo]:
  """The tensors by name; they lie within the file and do not overlap."""
  path = header._path
  alignment = header.metadata.get('general.alignment', ALIGNMENT)
  if (
    not isinstance(alignment, int)
    or alignment < 1
    or alignment & (alignment - 1)
  ):
    raise damaged(path, f'general.alignment is {alignment}')
  start = -(-header.position // alignment) * alignment
  found = {}
  for name, shape, kind, offset in header.entries:
    try:
      block, block_bytes = gguf.GGML_QUANT_SIZES[
        gguf.GGMLQuantizationType(kind)
      ]
    except (ValueError, KeyError) as e:
      raise UserError(
        f'{path}: the tensor {quoted(name)} has the type {kind}, which this '
        'version of the gguf library does not know (pip install -U gguf)'
      ) from e
    elements = math.prod(shape)
    if name in found or not elements or shape[-1] % block:
      raise damaged(
        path,
        f'the tensor {quoted(name)} '
        + ('occurs twice' if name in found else f'has the shape {shape}'),
      )
    size = elements // block * block_bytes
    if offset % alignment or start + offset + size > header.size:
      raise damaged(
        path,
        f'the tensor {quoted(name)} needs bytes {start + offset:,} to '
        f'{start + offset + size:,}, the file has {header.size:,}',
      )
    found[name] = TensorInfo(name, shape, kind, start + offset, size)
  in_order = sorted(found.values(), key=lambda info: info.offset)
  for a, b in zip(in_order, in_order[1:]):
    if a.offset + a.size > b.offset:
      raise damaged(
        path, f'the tensors {quoted(a.name)} and {quoted(b.name)} overlap'
      )
  end = max((x.offset + x.size for x in in_order), default=start)
  between = end - start - sum(x.size for x in in_order)
  if between > alignment * len(found) or header.size - end >= alignment:
    raise damaged(
      path,
      f'its tensors end at byte {end:,} of {header.size:,}, with '
      f'{between:,} bytes between them',
    )
  return found


# --- writing


def header_bytes(
  metadata: dict[str, Any],
  tensors: list[tuple[str, tuple[int, ...], int, int]],
) -> bytes:
  """The bytes before the data of the first tensor, padded.

  Args:
    metadata: str, bool, int (as uint32), float (as float32), and lists of str,
      int (as int32) or float.
    tensors: (name, shape as numpy has it, ggml type, size in bytes), in the
      order of their data; each is padded to ALIGNMENT.
  """
  out = bytearray(MAGIC)
  out += struct.pack('<IQQ', WRITTEN_VERSION, len(tensors), len(metadata))
  for key, value in metadata.items():
    out += _packed_string(key) + _packed(value)
  offset = 0
  for name, shape, kind, size in tensors:
    out += _packed_string(name) + struct.pack('<I', len(shape))
    out += struct.pack(f'<{len(shape)}Q', *reversed(shape))
    out += struct.pack('<IQ', kind, offset)
    offset += padded(size)
  return bytes(out) + bytes(padded(len(out)) - len(out))


def padded(size: int) -> int:
  """The next multiple of ALIGNMENT."""
  return -(-size // ALIGNMENT) * ALIGNMENT


def _packed_string(text: str) -> bytes:
  data = text.encode()
  return struct.pack('<Q', len(data)) + data


def _packed(value: Any) -> bytes:
  """A metadata value with the number of its type in front."""
  if isinstance(value, bool):
    return struct.pack('<I?', BOOL, value)
  if isinstance(value, int):
    return struct.pack('<II', UINT32, value)
  if isinstance(value, float):
    return struct.pack('<If', FLOAT32, value)
  if isinstance(value, str):
    return struct.pack('<I', STRING) + _packed_string(value)
  head = struct.pack('<I', ARRAY)
  if value and isinstance(value[0], str):
    body = b''.join(map(_packed_string, value))
    return head + struct.pack('<IQ', STRING, len(value)) + body
  kind = FLOAT32 if value and isinstance(value[0], float) else INT32
  body = np.asarray(value, SCALARS[kind]).tobytes()
  return head + struct.pack('<IQ', kind, len(value)) + body
