"""Directories that are complete or as they were before.

The new content is made beside its target and moved into place at the end.
"""

import contextlib
import errno
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator

from gpt import unfinished


@contextlib.contextmanager
def directory(
  target: str | os.PathLike, replaced: Iterable[str] = ()
) -> Iterator[pathlib.Path]:
  """A new directory whose content moves into `target` when the block succeeds.

  A target that does not exist, or is empty, becomes the new directory by one
  rename. Into another, entries are renamed one by one, and entries with other
  names stay. If the block raises, or a rename fails, everything is as before,
  and parents that were made are gone.

  Args:
    target: followed if it is a link.
    replaced: names of entries in `target` to delete if they are not replaced.

  Raises:
    OSError: no place can be written to.
  """
  target = pathlib.Path(os.path.realpath(target))
  made = _make_parents(target)
  staged = unfinished.name_beside(target)
  try:
    if _is_inside_only(target):
      unfinished.forget(staged)
      staged = unfinished.name_beside(target / target.name)
    staged.mkdir()
    yield staged
    if not target.exists() or not any(target.iterdir()):
      try:
        staged.rename(target)
      except OSError:  # A mount point, say.
        _move_entries(staged, target, replaced)
    else:
      _move_entries(staged, target, replaced)
  except BaseException:
    unfinished.remove(staged)
    for parent in reversed(made):
      with contextlib.suppress(OSError):
        parent.rmdir()
    raise
  unfinished.remove(staged)


def _make_parents(target: pathlib.Path) -> list[pathlib.Path]:
  """Makes the parents; returns those that did not exist, outermost first."""
  missing = [p for p in target.parents if not p.exists()]
  for parent in target.parents:
    if parent.exists() and not parent.is_dir():
      raise NotADirectoryError(
        errno.ENOTDIR, f'{parent} is a file', str(parent)
      )
  target.parent.mkdir(parents=True, exist_ok=True)
  return missing[::-1]


def _is_inside_only(target: pathlib.Path) -> bool:
  """Whether nothing can be renamed into place from beside the target."""
  if not target.is_dir():
    return False
  mounted = target.stat().st_dev != target.parent.stat().st_dev
  return mounted or not os.access(target.parent, os.W_OK)


def _move_entries(
  staged: pathlib.Path, target: pathlib.Path, replaced: Iterable[str]
) -> None:
  """Renames every entry of `staged` into `target`, or none of them."""
  new = sorted(path.name for path in staged.iterdir())
  old = unfinished.name_beside(target / 'replaced')
  undo: list[Callable[[], object]] = []

  def move(source: pathlib.Path, to: pathlib.Path) -> None:
    source.rename(to)
    undo.append(lambda: to.rename(source))

  target.mkdir(exist_ok=True)
  old.mkdir()
  try:
    for name in sorted({*new, *replaced}):
      if os.path.lexists(target / name):
        move(target / name, old / name)
    for name in new:
      move(staged / name, target / name)
  except BaseException:
    for action in reversed(undo):
      action()
    unfinished.remove(old)
    raise
  unfinished.remove(old)
