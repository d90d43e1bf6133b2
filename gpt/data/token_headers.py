"""Headers of token files: offset, number and dtype of the ids.

  nanoGPT                 ids and nothing else
  llm.c, modded-nanogpt   256 int32: magic number, version, number of tokens
  NeMo AutoModel          the same, then the bytes of an id
  build-nanogpt           a NumPy array (.npy)

Sources: karpathy/nanoGPT data/openwebtext/prepare.py; karpathy/llm.c
dev/data/data_common.py; KellerJordan/modded-nanogpt data/fineweb.py;
NVIDIA-NeMo/Automodel nanogpt_dataset.py; karpathy/build-nanogpt fineweb.py.
"""

import pathlib
import re
from typing import NamedTuple

import numpy as np

from gpt.data.file_kinds import MAGIC, not_text
from gpt.data.sources import Source
from gpt.data.token_cache import token_dtype
from gpt.errors import UserError, quoted

HEADER_BYTES = 1024
# First int32 -> (versions, dtype of the ids, if the header does not say it).
GPT2, LLAMA3, NEMO = 20240520, 20240801, 278895051
HEADERS = {GPT2: ((1,), '<u2'), LLAMA3: ((1, 7), '<u4'), NEMO: ((1,), '')}
# Other files of llm.c, with the same header.
OTHERS = {
  20240326: 'a GPT-2 model of llm.c',
  20240327: 'a debug state of llm.c',
  20240328: 'a tokenizer of llm.c',
  20240522: 'an evaluation of llm.c (multiple choice)',
  20240803: 'a Llama 3 model of llm.c',
}
NPY = b'\x93NUMPY'
NPY_HEADER = re.compile(
  r"\{'descr': '([^']{1,9})', 'fortran_order': \w+, 'shape': \(([^()]*)\), \}"
)
DTYPES = ('<u2', '<u4')
# Longer than the two bytes that may as well be the first id.
GZIP = b'\x1f\x8b\x08'


class TokenFile(NamedTuple):
  """A file with `count` ids of a dtype ('<u2' or '<u4') from byte `offset`."""

  path: pathlib.Path
  offset: int
  count: int
  dtype: str


def read(source: Source, vocab_size: int) -> TokenFile:
  """Reads the header of a token file.

  Args:
    vocab_size: decides about the dtype of ids without a header.

  Raises:
    UserError: the file is another kind of file, or damaged.
  """
  assert source.path
  with source.open_raw() as file:
    start = file.read(HEADER_BYTES)
  if start.startswith(NPY):
    offset, count, dtype = _npy(source.name, start)
  elif found := _header(source.name, start):
    offset, count, dtype = HEADER_BYTES, *found
  else:
    _refuse_others(source.name, start)
    dtype = token_dtype(vocab_size).str
    count, odd = divmod(source.size, np.dtype(dtype).itemsize)
    if odd or not count:
      raise UserError(
        f'{source.name} has {source.size:,} bytes, which are no token ids of '
        f'{np.dtype(dtype).itemsize} bytes (the tokenizer has {vocab_size:,} '
        'tokens): name a file of nanoGPT or llm.c, or the tokenizer that made '
        'it'
      )
    return TokenFile(source.path, 0, count, dtype)
  expected = offset + count * np.dtype(dtype).itemsize
  if expected != source.size:
    raise UserError(
      f'{source.name}: its header announces {count:,} tokens, so '
      f'{expected:,} bytes, but it has {source.size:,}: get the file again'
    )
  if not count:
    raise UserError(f'{source.name} holds no tokens: leave it out of data.path')
  return TokenFile(source.path, offset, count, dtype)


def _header(name: str, start: bytes) -> tuple[int, str] | None:
  """(count, dtype) by a header of 256 int32; None without one."""
  if len(start) < HEADER_BYTES:
    return None
  magic, version, count, size = np.frombuffer(start, '<i4', 4).tolist()
  if magic in OTHERS:
    raise not_text(name, OTHERS[magic], '')
  if magic not in HEADERS:
    return None
  versions, dtype = HEADERS[magic]
  if version not in versions:
    raise UserError(
      f'{name}: version {version} of its header is not known; allowed: '
      f'{", ".join(map(str, versions))}'
    )
  if not dtype:
    if size not in (2, 4):
      raise UserError(
        f'{name}: its header announces ids of {size} bytes; allowed: 2 and 4'
      )
    dtype = f'<u{size}'
  if count < 0:
    raise UserError(f'{name}: its header announces {count:,} tokens')
  return count, dtype


def _npy(name: str, start: bytes) -> tuple[int, int, str]:
  """(offset, count, dtype) of a NumPy array (numpy.lib.format)."""
  length = 2 if start[6:7] == b'\1' else 4
  first = 8 + length
  offset = first + int.from_bytes(start[8:first], 'little')
  header = start[first:offset].decode('latin-1').rstrip()
  if not (found := NPY_HEADER.fullmatch(header)):
    raise UserError(
      f'{name}: {quoted(header)} is no header of an array of numbers: get the '
      'file again'
    )
  dtype, shape = found.groups()
  count = re.fullmatch(r'(\d{1,18}),', shape)
  if dtype not in DTYPES or not count:
    raise UserError(
      f'{name} is a NumPy array of {quoted(dtype)} and shape ({shape}); '
      f'allowed: one axis of {" or ".join(DTYPES)}'
    )
  return offset, int(count[1]), dtype


def _refuse_others(name: str, start: bytes) -> None:
  """Raises UserError for files without ids that are known by their start."""
  for magic, what, advice in ((GZIP, 'gzip data', 'unpack it'), *MAGIC):
    if len(magic) > 2 and start.startswith(magic):
      raise not_text(name, what, advice)
