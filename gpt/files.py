"""Files that are there whole or not at all.

A file is written under a temporary name beside its place, brought to the disk
and renamed. What a killed process leaves of it is named `.NAME.tmp-*`.
"""

import contextlib
import os
import pathlib
import tempfile
import time

STALE_SECONDS = 3600.0  # Younger ones may belong to another process.


@contextlib.contextmanager
def replacing(path):
  """An open binary file that becomes `path` at the end, unless that fails."""
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


def write_atomic(path, data: bytes) -> None:
  """Writes a whole file."""
  with replacing(path) as file:
    file.write(data)


def remove_leftovers(directory) -> None:
  """Removes what processes that were killed long ago have left there."""
  for path in pathlib.Path(directory).glob('.*.tmp-*'):
    try:
      if time.time() - path.stat().st_mtime > STALE_SECONDS:
        path.unlink()
    except OSError:
      pass  # Another process was faster.
