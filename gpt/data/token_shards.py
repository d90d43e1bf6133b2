"""Tokens of a large corpus in many files, read as one array of memory maps.

corpus-<fingerprint>/ holds, for each shard, SEGMENT-NUMBER.bin (little-endian
uint16 or uint32 and nothing else), .ends (uint32: where documents end in it)
and .json, written last, which makes it valid. manifest.json lists them all.
"""

import bisect
import dataclasses
import json
import os
import pathlib
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from gpt.data.pieces import Before
from gpt.data.raw_blocks import Place
from gpt.data.text_reader import TextStats
from gpt.errors import UserError
from gpt.fields import Fields
from gpt.files import read_json, write_atomic

MOST = 1 << 62  # Of every count.
MANIFEST = 'manifest.json'
CHECKSUM = 'side_crc32'  # Of a JSON file's other entries.
MAX_MANIFEST_BYTES = 256 << 20
READ_BYTES = 1 << 20


class TokenShards:
  """uint16[n] or uint32[n] in several files; slices are copied out of maps."""

  def __init__(
    self, files: Iterable[tuple[pathlib.Path, int, int]], dtype: Any
  ) -> None:
    """Maps the files that are not empty.

    Args:
      files: (path, number of tokens, offset of the first in bytes).
    """
    self.dtype = np.dtype(dtype)
    self._maps = [
      np.memmap(path, self.dtype, 'r', offset, n)
      for path, n, offset in files
      if n
    ]
    counts = [len(tokens) for tokens in self._maps]
    self._ends = np.cumsum(counts, dtype=np.int64).tolist()

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def __getitem__(self, key: Any) -> Any:
    if not isinstance(key, slice):
      index = range(len(self))[key]
      return self[index : index + 1][0]
    start, stop, step = key.indices(len(self))
    if step != 1:
      raise ValueError('tokens are read in steps of 1')
    parts = []
    i = bisect.bisect_right(self._ends, start)
    while start < stop:
      map_, end = self._maps[i], self._ends[i]
      first = end - len(map_)
      parts.append(map_[start - first : min(stop, end) - first])
      start, i = end, i + 1
    if len(parts) == 1:
      return parts[0]
    return np.concatenate(parts or [np.zeros(0, self.dtype)])

  def __array__(
    self, dtype: Any = None, copy: bool | None = None
  ) -> np.ndarray:
    del copy  # A copy is the only way.
    return np.asarray(self[:], dtype)

  def tolist(self) -> list[int]:
    """All tokens."""
    return self[:].tolist()


@dataclasses.dataclass
class ShardInfo:
  """Content of a shard's .json.

  Attributes:
    fingerprint: of the corpus.
    start, next: the places in the corpus where it begins and ends.
    last: whether its segment ends with it.
    n_tokens, documents: numbers of tokens and ends of documents.
    crc32, ends_crc32: of the two files' bytes.
    chars, unknown, stats: as in token_cache.EncodedInfo.
  """

  fingerprint: str
  start: Place
  next: Place
  last: bool
  n_tokens: int
  documents: int
  crc32: int
  ends_crc32: int
  chars: int
  unknown: dict[str, int]
  stats: TextStats


def write_sealed(path: pathlib.Path, values: dict[str, Any]) -> None:
  """Writes a JSON object with a checksum, atomically."""
  sealed = {**values, CHECKSUM: _checksum(values)}
  write_atomic(path, json.dumps(sealed).encode())


def read_sealed(path: pathlib.Path) -> dict[str, Any]:
  """What write_sealed wrote.

  Raises:
    UserError: the file is missing or damaged.
  """
  values = read_json(path, max_bytes=MAX_MANIFEST_BYTES)
  if values.pop(CHECKSUM, None) != _checksum(values):
    raise UserError(f'{path} is damaged: its checksum is wrong')
  return values


def _checksum(values: dict[str, Any]) -> int:
  return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def name_of(segment: int, number: int) -> str:
  """The name of a shard, without a suffix."""
  return f'{segment:05d}-{number:05d}'


def read_info(base: pathlib.Path, fingerprint: str) -> ShardInfo | None:
  """A shard's .json; None unless it is intact and its files are there.

  Their bytes are checked later, all at once: `check_bytes`.
  """
  try:
    values = read_sealed(base.with_suffix('.json'))
    fields = Fields(values, base)
    for name in ('n_tokens', 'documents', 'crc32', 'ends_crc32', 'chars'):
      fields.integer(name, 0, MOST)
    info = ShardInfo(
      **{
        **values,
        'start': _place(values['start']),
        'next': _place(values['next']),
        'stats': TextStats(**values['stats']),
      }
    )
    if info.fingerprint != fingerprint:
      return None
    if os.path.getsize(base.with_suffix('.ends')) != 4 * info.documents:
      return None
    os.path.getsize(base.with_suffix('.bin'))
    return info
  except (OSError, ValueError, TypeError, KeyError):
    return None


def _place(values: dict[str, Any]) -> Place:
  return Place(**{**values, 'before': Before(**values['before'])})


def is_intact(base: pathlib.Path, info: ShardInfo, itemsize: int) -> bool:
  """Whether the bytes of a shard's files are those that were written."""
  try:
    if base.with_suffix('.bin').stat().st_size != info.n_tokens * itemsize:
      return False
    return (
      crc_of(base.with_suffix('.bin')) == info.crc32
      and crc_of(base.with_suffix('.ends')) == info.ends_crc32
    )
  except OSError:
    return False


def crc_of(path: pathlib.Path) -> int:
  """CRC-32 of a file."""
  crc = 0
  with open(path, 'rb') as file:
    while block := file.read(READ_BYTES):
      crc = zlib.crc32(block, crc)
  return crc


def stamp(base: pathlib.Path) -> list[int]:
  """Sizes and times of a shard's files: equal ones need no new check."""
  found = [os.stat(base.with_suffix(s)) for s in ('.bin', '.ends')]
  return [x for s in found for x in (s.st_size, s.st_mtime_ns)]


def check_all(
  directory: pathlib.Path,
  infos: dict[str, ShardInfo],
  itemsize: int,
  known: dict[str, Any],
) -> list[str]:
  """The names of shards whose files are damaged.

  Args:
    known: stamps of shards that were checked before, by name.
  """

  def damaged(name: str) -> bool:
    base = directory / name
    if known.get(name) == stamp(base):
      return False
    return not is_intact(base, infos[name], itemsize)

  with ThreadPoolExecutor() as threads:  # zlib.crc32 releases the GIL.
    found = list(threads.map(damaged, infos))
  return [name for name, bad in zip(infos, found) if bad]
