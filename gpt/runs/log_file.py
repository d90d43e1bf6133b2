"""A log of a run (metrics.jsonl, samples.txt), which never stops the run.

What cannot be read is set aside with its bytes, what cannot be written is
lost; either takes one warning.
"""

import logging
import os
import pathlib

from gpt.files import write_atomic

logger = logging.getLogger(__name__)

MAX_BYTES = 4 << 30  # A larger one is no log: 30 million steps write as much.


def read(path: str | os.PathLike) -> bytes:
  """The bytes of a log; b'' and a warning if it cannot be read.

  Raises:
    FileNotFoundError: there is none.
  """
  path = pathlib.Path(path)
  try:
    if path.exists() and not path.is_file():  # A pipe would block forever.
      raise OSError(0, 'it is not a regular file')
    if path.stat().st_size > MAX_BYTES:
      raise OSError(0, f'it has more than {MAX_BYTES:,} bytes')
    return path.read_bytes()
  except FileNotFoundError:
    raise
  except OSError as e:
    logger.warning(f'{path} is left out: {e.strerror or e}')
    return b''


def unused_name(path: pathlib.Path) -> pathlib.Path:
  """PATH.damaged, or PATH.damaged.1 and so on if that exists."""
  name = path.with_name(f'{path.name}.damaged')
  n = 0
  while os.path.lexists(name):
    n += 1
    name = path.with_name(f'{path.name}.damaged.{n}')
  return name


def set_aside(path: pathlib.Path) -> None:
  """Renames what stands in the way of a readable log, with a warning."""
  if not os.path.lexists(path):
    return
  if path.is_file() and os.access(path, os.R_OK):
    if path.stat().st_size <= MAX_BYTES:
      return
  kept = unused_name(path)
  try:
    path.rename(kept)
  except OSError as e:
    logger.warning(f'{path} cannot be read or renamed: {e.strerror or e}')
    return
  logger.warning(f'{path} cannot be read; it is now {kept.name}')


def replace(path: pathlib.Path, data: bytes) -> None:
  """Replaces a log; a warning if that is impossible."""
  try:
    write_atomic(path, data)
  except OSError as e:
    logger.warning(f'{path} cannot be written: {e.strerror or e}')


def lacks_line_end(path: str | os.PathLike) -> bool:
  """Whether the last line lacks its end: a kill or a full disk cut it."""
  try:
    with open(path, 'rb') as file:
      if not file.seek(0, os.SEEK_END):
        return False
      file.seek(-1, os.SEEK_END)
      return file.read(1) != b'\n'
  except FileNotFoundError:
    return False


class LogFile:
  """A log that is appended to; its bytes are in the file after `append`."""

  def __init__(self, path: str | os.PathLike) -> None:
    """Opens the file, creates it if it is missing."""
    self._path, self._file = path, None
    self._failed = self._cut = False
    try:
      self._cut = lacks_line_end(path)
      self._file = open(path, 'ab', buffering=0)
    except OSError as e:
      self._warn(e)

  def append(self, data: bytes) -> None:
    """Writes `data`, or warns at the first failure."""
    if self._file is None:
      return
    if self._cut:
      data = b'\n' + data
    try:
      written = self._file.write(data)
      self._cut = written != len(data)
      if self._cut:
        raise OSError(0, 'only a part of a line was written')
    except OSError as e:
      self._warn(e)

  def _warn(self, error: OSError) -> None:
    if not self._failed:
      logger.warning(
        f'{self._path} cannot be written ({error.strerror or error}): training '
        'goes on without these lines'
      )
    self._failed = True

  def close(self) -> None:
    if self._file is not None:
      self._file.close()
