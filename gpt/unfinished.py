"""Files and directories of this process that are still being written.

They have names of their own beside their target, and are renamed at the end.
Whoever ends the process early removes them first.
"""

import contextlib
import os
import pathlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator

_names: set[str] = set()


def name_beside(path: pathlib.Path) -> pathlib.Path:
  """An unused name in the directory of `path`, remembered until `forget`.

  It is `.NAME.tmp-*`, where NAME is that of `path`, shortened if it is long.
  """
  name = path.name.encode('utf-8', 'surrogateescape')[:150]
  text = name.decode('utf-8', 'ignore')
  found = path.parent / f'.{text}.tmp-{os.getpid()}-{secrets.token_hex(4)}'
  _names.add(str(found))
  return found


@contextlib.contextmanager
def temporary_directory(prefix: str) -> Iterator[pathlib.Path]:
  """A directory for temporary files that is deleted at the end."""
  path = name_beside(pathlib.Path(tempfile.gettempdir()) / prefix)
  path.mkdir(mode=0o700)
  try:
    yield path
  finally:
    remove(path)


def forget(path: pathlib.Path) -> None:
  """`path` is finished, or gone."""
  _names.discard(str(path))


def remove(path: pathlib.Path) -> None:
  """Deletes a file or a directory with its content, as far as that works."""
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path, ignore_errors=True)
  else:
    try:
      path.unlink(missing_ok=True)
    except OSError:
      pass
  forget(path)


def remove_all() -> None:
  """Deletes everything that is unfinished."""
  for name in list(_names):
    remove(pathlib.Path(name))
