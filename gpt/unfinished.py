"""Files and directories of this process that are still being written.

They have names of their own beside their target, and are renamed at the end.
Whoever ends the process early removes them first. What a killed process left is
removed when its target is written again.
"""

import contextlib
import functools
import os
import pathlib
import re
import secrets
import shutil
import socket
import tempfile
import zlib
from collections.abc import Callable, Iterator

_names: set[str] = set()
_cleared: set[str] = set()  # Targets.
_actions: list[Callable[[], object]] = []


def name_beside(path: pathlib.Path) -> pathlib.Path:
  """An unused name in the directory of `path`, remembered until `forget`.

  It is `.NAME.tmp-PID-HOST-*`, where NAME is that of `path`, shortened if it is
  long. Those of processes that have ended are removed.
  """
  name = path.name.encode('utf-8', 'surrogateescape')[:150]
  start = f'.{name.decode("utf-8", "ignore")}.tmp-'
  if str(path) not in _cleared:
    _cleared.add(str(path))
    _remove_abandoned(path.parent, start)
  unique = f'{os.getpid()}-{_host()}-{secrets.token_hex(4)}'
  found = path.parent / f'{start}{unique}'
  _names.add(str(found))
  return found


@functools.cache
def _host() -> str:
  """Names the processes among which a PID is unique: machine and container."""
  try:
    space = os.readlink('/proc/self/ns/pid')
  except OSError:
    space = ''
  return f'{zlib.crc32(f"{socket.gethostname()} {space}".encode()):08x}'


def _remove_abandoned(directory: pathlib.Path, start: str) -> None:
  if os.name != 'posix':  # Elsewhere os.kill(pid, 0) may end a process.
    return
  try:
    names = os.listdir(directory)
  except OSError:
    return
  for name in names:
    parts = name[len(start) :].split('-')
    if not name.startswith(start) or len(parts) != 3 or parts[1] != _host():
      continue
    if not re.fullmatch('[1-9][0-9]{0,9}', parts[0]):
      continue
    try:
      os.kill(int(parts[0]), 0)
    except ProcessLookupError:
      remove(directory / name)
    except (OSError, OverflowError):
      pass  # Somebody else's.


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


@contextlib.contextmanager
def if_abandoned(action: Callable[[], object]) -> Iterator[None]:
  """Calls `action` if the process is ended while the block runs."""
  _actions.append(action)
  try:
    yield
  finally:
    _actions.remove(action)


def remove_all() -> None:
  """Deletes everything that is unfinished."""
  for name in list(_names):
    remove(pathlib.Path(name))
  for action in reversed(_actions):
    with contextlib.suppress(OSError):
      action()
