"""Checks of output paths: no run and no other file is overwritten unasked.

Imports no JAX: launchers check their --output first.
"""

import os
import pathlib
import stat

from gpt.data import record
from gpt.errors import UserError, quoted
from gpt.runs.config_file import CONFIG

# The entries of a workdir that are the run.
_RUN_FILES = {
  CONFIG,
  record.FILE,
  'metrics.jsonl',
  'plan.json',
  'samples.txt',
  'tokenizer',
  'checkpoints',
  'cache',
  'tensorboard',
  'profile',
  '.lock',
  'checkpoint.bin',
  'checkpoint_best.bin',
}


def check_file(
  path: str | os.PathLike,
  flag: str = '--output',
  overwrite: bool = False,
  earlier: bytes = b'',
) -> None:
  """Checks that a file may be written.

  Args:
    path: the file.
    flag: names it in errors.
    overwrite: whether an existing regular file or a link may be replaced.
    earlier: a file with these bytes near its start is an earlier output, and
      may be replaced in any case.

  Raises:
    UserError: it may not; nothing has been written.
  """
  path = check_place(path, flag)
  if path.is_dir():
    raise UserError(f'{path} is a directory; {flag} must name a file')
  if not path.parent.is_dir():
    raise UserError(f'cannot write {path}: there is no directory {path.parent}')
  if not os.path.lexists(path) or overwrite:
    return
  if earlier and not path.is_symlink() and _starts_with(path, earlier):
    return
  raise exists(path, flag)


def exists(path: pathlib.Path, flag: str = '--output') -> UserError:
  """The error for something that only --overwrite replaces."""
  what = 'is a link' if path.is_symlink() else 'exists already'
  return UserError(
    f'{path} {what}: add --overwrite to replace it, or choose another {flag}'
  )


def check_place(
  path: str | os.PathLike, flag: str = '--output'
) -> pathlib.Path:
  """`path`, if it is no part of a run, no pipe and no device.

  Raises:
    UserError: it is, or no such name can exist.
  """
  path = pathlib.Path(path)
  try:
    mode = path.stat().st_mode
  except (FileNotFoundError, NotADirectoryError):
    mode = stat.S_IFREG
  except (OSError, ValueError) as e:
    reason = getattr(e, 'strerror', None) or e
    raise UserError(f'cannot write {quoted(str(path))}: {reason}') from e
  if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
    raise UserError(f'{path} is a pipe or a device: choose another {flag}')
  for place in {path.absolute(), pathlib.Path(os.path.realpath(path))}:
    if run := _run_around(place):
      if run == place:
        raise UserError(f'{path} is a run; choose another {flag}')
      raise UserError(
        f'{path} belongs to the run in {run}: choose another {flag}'
      )
  return path


def _run_around(path: pathlib.Path) -> pathlib.Path | None:
  """The run whose own file or directory `path` is, or is in; or None."""
  inner = path
  for directory in path.parents:
    if inner.name in _RUN_FILES and _is_run(directory):
      return directory
    inner = directory
  return path if _is_run(path) else None


def _is_run(directory: pathlib.Path) -> bool:
  return (directory / CONFIG).is_file() and (directory / 'checkpoints').is_dir()


def _starts_with(path: pathlib.Path, mark: bytes) -> bool:
  try:
    with open(path, 'rb') as file:
      return mark in file.read(300)
  except OSError:
    return False
