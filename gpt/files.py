"""Atomic file writes: a file is complete or absent.

Data goes to a temporary file in the same directory, is fsynced and renamed over
the target. A killed process leaves a temporary file named `.NAME.tmp-*`.
"""

import contextlib
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Any, BinaryIO

# Younger temporary files may belong to a live process.
STALE_SECONDS = 3600.0


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Opens a binary file that replaces `path` when the block succeeds.

  If the block raises, `path` is unchanged. The file's mode is 0o644.

  Raises:
    OSError: the directory is not writable, or `path` is a directory.
  """
  path = pathlib.Path(path)
  fd, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.tmp-')
  try:
    with os.fdopen(fd, 'wb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.chmod(name, 0o644)
    os.replace(name, path)
  except BaseException:
    pathlib.Path(name).unlink(missing_ok=True)
    raise


def write_atomic(path: str | os.PathLike, data: bytes) -> None:
  """Writes `data` to `path` atomically; raises OSError like `replacing`."""
  with replacing(path) as file:
    file.write(data)


@contextlib.contextmanager
def locked(file: IO[Any]) -> Iterator[None]:
  """Waits until no other process holds the lock of an open file; holds it.

  The lock ends with the process. Without effect on Windows, and on file systems
  that have no locks.
  """
  try:
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX)
  except (ImportError, OSError):
    yield
    return
  try:
    yield
  finally:
    fcntl.flock(file, fcntl.LOCK_UN)


def remove_leftovers(directory: str | os.PathLike) -> None:
  """Removes temporary files that killed processes left over an hour ago."""
  for path in pathlib.Path(directory).glob('.*.tmp-*'):
    try:
      if time.time() - path.stat().st_mtime > STALE_SECONDS:
        path.unlink()
    except OSError:
      pass  # Another process removed it first.
