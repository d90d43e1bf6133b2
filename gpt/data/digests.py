"""Hashes of files: by all cores, and of large ones only once.

A file whose size and time of change are those of an earlier start has not
changed.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, Protocol

from gpt.data.file_kinds import PARQUET, check_no_hole
from gpt.errors import UserError
from gpt.files import read_json, write_atomic

READ_BYTES = 1 << 20
REMEMBERED_FROM = 32 << 20  # Bytes of all files together.
FILE = 'hashes.json'


class Readable(Protocol):
  """The interface of a Source."""

  @property
  def name(self) -> str: ...
  @property
  def kind(self) -> str: ...
  @property
  def path(self) -> pathlib.Path | None: ...
  @property
  def size(self) -> int: ...
  def open_raw(self) -> BinaryIO: ...


def digests(
  items: Sequence[Readable], memory: pathlib.Path | None
) -> list[str]:
  """SHA-256 (hex) of each file.

  Args:
    memory: directory of FILE, which remembers the hashes of large corpora.

  Raises:
    UserError: a file cannot be read.
  """
  if memory is None or sum(item.size for item in items) < REMEMBERED_FROM:
    return [_digest(item) for item in items]
  path = memory / FILE
  try:
    known = read_json(path)
  except UserError:
    known = {}
  with ThreadPoolExecutor() as threads:  # hashlib releases the GIL.
    found = list(threads.map(lambda item: _known(item, known), items))
  values = {key: [*stamp, digest] for key, stamp, digest in found}
  if values != known:
    try:
      memory.mkdir(parents=True, exist_ok=True)
      write_atomic(path, json.dumps(values).encode())
    except OSError:
      pass  # The next start hashes again.
  return [digest for *_, digest in found]


def _known(item: Readable, known: dict[str, Any]) -> tuple[str, list[int], str]:
  """(path, [size, time of change], hash); read only if they differ."""
  if item.path is None:
    return '', [], _digest(item)
  try:
    found = os.stat(item.path)
  except OSError as e:
    raise UserError(f'cannot read {item.path}: {e.strerror}') from e
  stamp = [found.st_size, found.st_mtime_ns]
  match known.get(key := str(item.path.absolute())):
    case [*before, str(digest)] if before == stamp:
      return key, stamp, digest
  return key, stamp, _digest(item)


def _digest(item: Readable) -> str:
  digest = hashlib.sha256()
  with item.open_raw() as file:
    while block := file.read(READ_BYTES):
      if item.kind != PARQUET:
        check_no_hole(item.name, block)
      digest.update(block)
  return digest.hexdigest()
