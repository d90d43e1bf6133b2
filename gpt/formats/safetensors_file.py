"""safetensors files in numpy: a JSON header, then the tensors' bytes.

Written out here because the library's numpy side has no bfloat16 in all of its
versions; the tests read and write the same files with the library. Format:
u64 header length, JSON {name: {dtype, shape, data_offsets}}, bytes; all
little-endian, row-major, without gaps (huggingface.co/docs/safetensors).
"""

import json
import math
import pathlib
import struct

import ml_dtypes
import numpy as np

from gpt.errors import UserError
from gpt.files import write_atomic

# What is written, by the name on the command line.
DTYPES = {
  'f32': ('F32', np.dtype('<f4')),
  'f16': ('F16', np.dtype('<f2')),
  'bf16': ('BF16', np.dtype(ml_dtypes.bfloat16)),
}
READ = {**dict(DTYPES.values()), 'F64': np.dtype('<f8')}
LENGTH = struct.Struct('<Q')
MAX_HEADER = 100_000_000  # The library's own limit.
ALIGNMENT = 8


def round_to(tensors: dict, dtype: str) -> dict:
  """The float32 tensors in `dtype`, rounded to the nearest.

  Args:
    tensors: name -> float32 array.
    dtype: a key of DTYPES.

  Raises:
    UserError: a number too large for the type.
  """
  rounded = {}
  for name, x in tensors.items():
    x = np.asarray(x, np.float32)
    with np.errstate(over='ignore'):
      rounded[name] = x.astype(DTYPES[dtype][1])
    if not np.isfinite(rounded[name]).all() and np.isfinite(x).all():
      raise UserError(
        f'{name} holds {np.abs(x).max():.3g}, too large for {dtype}; use '
        '--dtype=bf16 or --dtype=f32'
      )
  return rounded


def write(path, tensors: dict, dtype: str, metadata=None) -> int:
  """Writes all of a file or none of it; returns its size in bytes.

  Args:
    tensors: name -> float32 array, converted to `dtype`.
    metadata: {str: str} for the header.
  """
  header = {'__metadata__': dict(metadata)} if metadata else {}
  chunks, offset = [], 0
  for name, x in round_to(tensors, dtype).items():
    data = np.ascontiguousarray(x).tobytes()
    header[name] = {
      'dtype': DTYPES[dtype][0],
      'shape': list(x.shape),
      'data_offsets': [offset, offset + len(data)],
    }
    chunks.append(data)
    offset += len(data)
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % ALIGNMENT)
  data = b''.join([LENGTH.pack(len(text)), text, *chunks])
  try:
    write_atomic(path, data)
  except OSError as e:
    raise UserError(f'cannot write {path}: {e.strerror or e}') from e
  return len(data)


def read(path) -> tuple[dict, dict]:
  """({name: float32 array}, metadata) of a file; other floats are converted.

  Raises:
    UserError: no such file, or not whole.
  """
  path = pathlib.Path(path)
  try:
    data = path.read_bytes()
  except OSError as e:
    raise UserError(f'cannot read {path}: {e.strerror or e}') from e
  try:
    return _parse(data)
  except (struct.error, ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError(f'{path} is not a whole safetensors file: {e}') from e


def _parse(data: bytes) -> tuple[dict, dict]:
  (length,) = LENGTH.unpack_from(data)
  start = LENGTH.size + length
  if length > MAX_HEADER or start > len(data):
    raise ValueError(f'a header of {length} bytes in {len(data)}')
  header = json.loads(data[LENGTH.size : start])
  metadata = header.pop('__metadata__', {})
  tensors = {}
  for name, entry in header.items():
    if entry['dtype'] not in READ:
      raise ValueError(
        f'{name} is {entry["dtype"]}; allowed: {", ".join(READ)}'
      )
    dtype, shape = READ[entry['dtype']], tuple(entry['shape'])
    first, end = entry['data_offsets']
    if not 0 <= first <= end <= len(data) - start:
      raise ValueError(f'{name} lies outside the file')
    if end - first != math.prod(shape) * dtype.itemsize:
      raise ValueError(f'{name} has {end - first} bytes for shape {shape}')
    x = np.frombuffer(data, dtype, math.prod(shape), start + first)
    tensors[name] = x.reshape(shape).astype(np.float32)
  return tensors, metadata
