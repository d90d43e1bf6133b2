"""Notices that the directories of a run are not those it was started in."""

import contextlib
import os
import pathlib
import shutil
import stat
import time
from typing import TYPE_CHECKING

from gpt.errors import UserError
from gpt.runs import samples

if TYPE_CHECKING:  # It imports JAX.
  from gpt.runs.checkpoint_writer import Checkpoints


FILE = (0, 0)


class Gone(UserError):
  """A part of the run was removed, renamed or unmounted."""


class Presence:
  """Notices that a directory is gone, before anything is written there.

  A write would make the directory anew, with a part of the run in it.
  """

  def __init__(self) -> None:
    self._known: dict[pathlib.Path, tuple[int, int]] = {}
    self._held: list[int] = []  # Descriptors.
    self._gone: pathlib.Path | None = None
    self._writing: set[int] = set()

  def watch(self, *paths: pathlib.Path) -> None:
    """Remembers directories, outer ones first, and files.

    `rm -r` leaves a directory in which a checkpoint appears meanwhile; its
    files are gone.
    """
    for path in paths:
      if found := _identity(path):
        self._known[path.absolute()] = found
        if found != FILE:  # While it is open, no other gets its inode.
          with contextlib.suppress(OSError):  # Windows opens no directory.
            self._held.append(os.open(path, os.O_RDONLY))

  def close(self) -> None:
    """Closes the directories."""
    while self._held:
      os.close(self._held.pop())

  def check(self, step: int, checkpoints: 'Checkpoints') -> None:
    """Raises Gone if a directory is another one, or files are missing.

    Args:
      step: completed.
    """
    for path, known in self._known.items():
      if _identity(path) != known:
        self._gone = path.parent if known == FILE else path
        break
    else:
      if not checkpoints.are_lost():
        return
      path = self._gone = checkpoints.directory
    self._writing = checkpoints.writing
    raise Gone(_message(path, step, checkpoints.newest))

  def remove_remains(self) -> None:
    """Removes what the checkpoints being written have made anew.

    And the sample that was written there meanwhile. A directory with anything
    else in it is somebody's: it stays. The threads of a writer that has failed
    may write for another moment, and nothing can wait for them.
    """
    quiet = 0
    while self._gone and quiet < 5:
      quiet = 0 if self._remove_once(self._gone) else quiet + 1
      time.sleep(0.2)

  def _remove_once(self, gone: pathlib.Path) -> bool:
    """Whether there was something that could be removed."""
    try:
      found = [path.relative_to(gone) for path in gone.rglob('*')]
    except OSError:
      return True  # Something moves there.
    sample = pathlib.PurePath(samples.FILE)
    made = [path for path in found if path != sample]
    if not made or not all(map(self._is_remains, made)):
      return False
    shutil.rmtree(gone, ignore_errors=True)
    return not gone.exists()

  def _is_remains(self, path: pathlib.PurePath) -> bool:
    """Whether a path is one of those checkpoints, or in it, or around it."""
    names = path.parts[path.parts[0] == 'checkpoints' :]
    if not names or names in (('latest',), ('best',)):
      return True
    step = names[1].partition('.')[0] if names[0] in ('latest', 'best') else ''
    return step.isdecimal() and int(step) in self._writing


def _identity(path: pathlib.Path) -> tuple[int, int] | None:
  """Device and inode, FILE for a file, which may be replaced; None: nothing."""
  try:
    found = os.stat(path)
  except OSError:
    return None
  is_directory = stat.S_ISDIR(found.st_mode)
  return (found.st_dev, found.st_ino) if is_directory else FILE


def _message(gone: pathlib.Path, step: int, saved: int | None) -> str:
  lost = f'its {step} steps were not saved yet and are lost'
  if saved is not None:
    lost = f'the newest checkpoint there, if it still exists, has step {saved}'
  if gone.name in ('checkpoints', 'config.json'):
    change = 'Put it back and run the same command again'
  else:
    change = 'If it was moved, name its new place as --workdir'
  return (
    f'{gone} was removed, renamed or unmounted: the run ends at step '
    f'{step}; {lost}. {change}'
  )
