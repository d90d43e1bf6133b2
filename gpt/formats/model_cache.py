"""Runs made once from models of other programs, and kept: ~/.cache/rgpt/models.

    models/NAME-HASH/NAME/         an imported run, an ordinary workdir
    models/NAME-HASH/source.json   what it was made from, the sizes of its files

A run appears by rename and source.json after it, so an interrupted import
leaves nothing that counts. This module imports no JAX.
"""

import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

from gpt import files
from gpt.errors import UserError, explained_writes

logger = logging.getLogger(__name__)
VERSION = 1  # Of what imports write; with another one they are made anew.
RECORD = 'source.json'
MAKING = '.making-'


def cache_directory() -> pathlib.Path:
  """rgpt/models in $XDG_CACHE_HOME, by default in ~/.cache."""
  home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(os.path.expanduser(home)) / 'rgpt' / 'models'


def name_of(source: str) -> str:
  """'hf://owner/name' -> 'name', '/models/tiny.gguf' -> 'tiny'."""
  last = source.rstrip('/').rpartition('/')[2].partition('@')[0]
  last = last.removesuffix('.gguf')
  return re.sub(r'[^\w.-]', '-', last).strip('.-') or 'model'


class CachedRun:
  """The place of one imported model in the cache.

  Args:
    source: what identifies the model: its address or absolute path.
    options: all else that its run depends on, such as its context.

  Attributes:
    workdir: where the run is, or will be.
  """

  def __init__(self, source: str, **options: Any) -> None:
    self._key = {'version': VERSION, 'source': source, **options}
    name = name_of(source)
    text = json.dumps([source, options], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    self._place = cache_directory() / f'{name}-{digest}'
    self.workdir = self._place / name

  def exists(self, stamp: object = None) -> bool:
    """Whether the run is there, and complete.

    Args:
      stamp: of the source's files; must be what it was when the run was made.
    """
    wanted = {**self._key, 'stamp': stamp, 'files': _sizes(self.workdir)}
    return self._read() == wanted

  def make(
    self, fill: Callable[[pathlib.Path], object], stamp: object = None
  ) -> pathlib.Path:
    """The run's workdir; made if it is missing, incomplete or outdated.

    Where several processes ask, one makes it and the others wait.

    Args:
      fill: makes the run in a directory that does not exist yet.
      stamp: as of `exists`.

    Raises:
      UserError: the cache cannot be written to. What `fill` raises.
    """
    if self.exists(stamp):
      return self.workdir
    with explained_writes(self._place):
      self._place.mkdir(parents=True, exist_ok=True)
      lock = open(self._place / '.lock', 'w')
    with lock, files.locked(lock):
      if not self.exists(stamp):
        with explained_writes(self._place):
          self._clear()
          making = tempfile.mkdtemp(prefix=MAKING, dir=self._place)
        try:
          fill(pathlib.Path(making) / 'run')
          with explained_writes(self._place):
            (pathlib.Path(making) / 'run').rename(self.workdir)
            sizes = _sizes(self.workdir)
            record = {**self._key, 'stamp': stamp, 'files': sizes}
            data = json.dumps(record, indent=2) + '\n'
            files.write_atomic(self._place / RECORD, data.encode())
        finally:
          shutil.rmtree(making, ignore_errors=True)
    return self.workdir

  def discard(self) -> None:
    """Makes the next `make` start afresh."""
    with explained_writes(self._place):
      (self._place / RECORD).unlink(missing_ok=True)

  def _clear(self) -> None:
    """Removes what is damaged, and what killed processes left behind."""
    if (self.workdir / 'metrics.jsonl').exists():
      raise UserError(
        f'{self.workdir} was trained after it was imported: move it out of the '
        'cache, and the model is imported again (launch.train --init_from '
        'starts a run of your own)'
      )
    self.discard()
    for path in self._place.glob(f'{MAKING}*'):
      shutil.rmtree(path, ignore_errors=True)
    if self.workdir.exists():
      logger.info(f'making {self.workdir} anew')
      shutil.rmtree(self.workdir)

  def _read(self) -> dict[str, Any] | None:
    """The content of the record; None if there is none or it is damaged."""
    try:
      return files.read_json(self._place / RECORD)
    except UserError:
      return None


def _sizes(workdir: pathlib.Path) -> dict[str, int]:
  """Bytes of each file of a run, locks and temporary files left out."""
  try:
    return {
      path.relative_to(workdir).as_posix(): path.stat().st_size
      for path in sorted(workdir.rglob('*'))
      if path.is_file() and not path.name.startswith('.')
    }
  except OSError:  # Another process is replacing it.
    return {}
