"""Checkpoints of a run: Orbax, asynchronous, plain numpy trees.

    W/checkpoints/latest/STEP/   the newest states (checkpoint.keep of them)
    W/checkpoints/best/STEP/     the state of the lowest validation loss
    W/checkpoints/replaced/      the best ones by other validation data

Each holds four items: `params` (a dict of arrays, readable without knowing the
optimizer), `ema` (likewise, where there is one), `rest` (step, optimizer state)
and `meta` (JSON: best loss, patience, elapsed time, checksums of the arrays).
Numpy trees know nothing of devices, so a checkpoint opens on every backend and
JAX version. Orbax writes to a temporary name and renames: a killed run leaves
whole checkpoints only.
"""

import functools
import json
import logging
import pathlib
import re
import shutil
import sys
import zlib

import jax
import numpy as np

from gpt.errors import UserError
from gpt.train_state import TrainState

LATEST, BEST = 'latest', 'best'
DAMAGED, DELETED, REPLACED = 'damaged', 'deleted', 'replaced'


class DamagedCheckpoint(Exception):
  """A checkpoint whose bytes are not what was written."""


@functools.cache
def _orbax():
  """Orbax takes a second to import; only those who use it pay.

  Its loggers are quiet from then on: a failed read or write raises, and would
  fill pages of stderr besides.
  """
  import orbax.checkpoint as ocp

  logging.getLogger('absl').setLevel(logging.CRITICAL)
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  report = sys.unraisablehook

  def report_others(event):
    if 'Event loop is closed' not in str(event.exc_value):
      report(event)

  sys.unraisablehook = report_others
  return ocp


def to_host(tree):
  """Numpy copies of every leaf (copies: the originals may be donated next)."""
  return jax.tree.map(lambda x: np.array(x, copy=True), jax.device_get(tree))


def checksum(*trees) -> int:
  """CRC-32 of the leaves' bytes in tree order."""
  crc = 0
  for leaf in jax.tree.leaves(trees):
    crc = zlib.crc32(np.ascontiguousarray(leaf).data.cast('B'), crc)
  return crc


def split_state(state: TrainState):
  """(params, ema, rest) of a state; `rest` is all that only training needs."""
  rest = {
    'step': state.step, 'opt_state': state.opt_state, 'lr_scale': state.lr_scale
  }
  return state.params, state.ema, rest


class Checkpoints:
  """The checkpoints of one workdir, for the run that writes them.

  Several processes of one run call every method together, in the same order;
  the first of them is the one that renames and deletes.
  """

  def __init__(self, workdir, keep: int = 2):
    if keep < 1:
      raise UserError(f'checkpoint.keep is {keep}; it must be at least 1')
    self.directory = pathlib.Path(workdir).absolute() / 'checkpoints'
    self._keep = keep
    # Of each kind: {step: loss} on disk, (step, loss) being written, and why
    # the last write failed.
    self._saved = {LATEST: {}, BEST: {}}
    for which, step in list_steps(self.directory):
      path = self.directory / which / str(step)
      self._saved[which][step] = _loss_of(path)
    self._pending = {}
    self._failed = {}

  @functools.cached_property
  def _writers(self):
    """An asynchronous writer for each kind."""
    ocp = _orbax()
    self.tidy()
    return {
      which: ocp.AsyncCheckpointer(
        ocp.CompositeCheckpointHandler(),
        multiprocessing_options=ocp.options.MultiprocessingOptions(
          barrier_sync_key_prefix=which
        ),
      )
      for which in (LATEST, BEST)
    }

  def tidy(self) -> None:
    """Makes the folders; removes what killed processes have left in them."""
    for which in (LATEST, BEST):
      folder = self.directory / which
      folder.mkdir(parents=True, exist_ok=True)
      if jax.process_index() == 0:
        for path in folder.glob('*.orbax-checkpoint-tmp*'):
          shutil.rmtree(path, ignore_errors=True)
      self._drop_superfluous(which)
    if jax.process_index() == 0:
      shutil.rmtree(self.directory / DELETED, ignore_errors=True)

  def has(self, which: str, step: int) -> bool:
    return step in self._saved[which]

  def save(self, which: str, state: TrainState, meta: dict) -> bool:
    """Starts writing a host copy of the state; returns before it is on disk.

    Args:
      which: LATEST or BEST.
      state: on device or host.
      meta: JSON-able; 'step' and checksums are added.

    Returns:
      False if the write before this one or the start of this one failed (say,
      a full disk); the reason is then in `last_error`. Earlier checkpoints are
      untouched.
    """
    ocp = _orbax()
    # Several processes agree on one write at a time.
    for kind in (LATEST, BEST) if jax.process_count() > 1 else (which,):
      self._finish(kind)
    failed_before = which in self._failed
    params, ema, rest = to_host(split_state(state))
    step, loss = int(rest['step']), float(meta.get('best_loss', np.inf))
    if step in self._saved[which]:
      self._delete(which, step)
    checksums = {
      'checksum': checksum(params, ema, rest),
      'weights_checksum': checksum(params if ema is None else ema),
    }
    items = {
      'params': ocp.args.StandardSave(params),
      'rest': ocp.args.StandardSave(rest),
      'meta': ocp.args.JsonSave({**meta, 'step': step, **checksums}),
    }
    if ema is not None:
      items['ema'] = ocp.args.StandardSave(ema)
    self._pending[which] = step, loss
    try:
      self._writers[which].save(
        self.directory / which / str(step), args=ocp.args.Composite(**items)
      )
    except Exception as e:
      del self._pending[which]
      self._failed[which] = reason(e)
      return False
    return not failed_before

  def wait(self) -> bool:
    """Blocks until all is on disk; False if the newest of a kind is not."""
    for which in (LATEST, BEST):
      self._finish(which)
    return not self._failed

  @property
  def last_error(self) -> str:
    return next(iter(self._failed.values()), '')

  def close(self) -> None:
    self.wait()
    if '_writers' in self.__dict__:
      for writer in self._writers.values():
        writer.close()

  def _finish(self, which: str) -> None:
    """Waits for the write under way; then what it replaces may go."""
    if which not in self._pending:
      return
    step, loss = self._pending.pop(which)
    try:
      self._writers[which].wait_until_finished()
    except Exception as e:
      self._failed[which] = reason(e)
      return
    self._failed.pop(which, None)
    self._saved[which][step] = loss
    self._drop_superfluous(which)

  def _drop_superfluous(self, which: str) -> None:
    """Keeps the newest of the latest, and the lowest loss of the best."""
    saved = self._saved[which]
    if which == LATEST:
      superfluous = sorted(saved)[: -self._keep]
    else:
      superfluous = sorted(saved, key=lambda s: (saved[s], s))[1:]
    for step in superfluous:
      self._delete(which, step)

  def _delete(self, which: str, step: int) -> None:
    """Out of sight by a rename first: a kill leaves no half checkpoint."""
    del self._saved[which][step]
    if jax.process_index() == 0:
      trash = _move(self.directory, which, step, DELETED)
      shutil.rmtree(trash, ignore_errors=True)

  def set_aside(self, which: str, step: int) -> None:
    """Moves a checkpoint to checkpoints/damaged, unless it is the only one."""
    self.wait()
    if step in self._saved[which] and len(self._saved[which]) > 1:
      del self._saved[which][step]
      if jax.process_index() == 0:
        _move(self.directory, which, step, DAMAGED)

  def replace_best(self, state, meta: dict, validation: str) -> bool:
    """Moves the best checkpoints aside whose meta has another `validation`.

    To checkpoints/replaced: their losses do not compare with those to come.

    Args:
      state, meta: as restored; kept as the latest before, lest the run have no
        checkpoint until its next best is on disk.

    Returns:
      False if that could not be written. Then nothing was moved.
    """
    if not self.has(LATEST, int(state.step)):
      self.save(LATEST, state, meta)
    if not self.wait():
      return False
    for step in sorted(self._saved[BEST]):
      try:
        of = read_meta(self.directory / BEST / str(step)).get('validation')
      except (OSError, ValueError):
        of = None
      if of != validation:
        del self._saved[BEST][step]
        if jax.process_index() == 0:
          _move(self.directory, BEST, step, REPLACED)
    return True

  def restore_latest(self, target: TrainState, log=print):
    """(state, meta) of the newest whole checkpoint, or None if there is none.

    Best ones count too: each holds all there is, and a run killed between two
    saves of the latest may have left a newer best. Once one could be read,
    those newer than it, which could not, are moved to checkpoints/damaged.

    Args:
      target: a TrainState of arrays or ShapeDtypeStructs, for the structure.

    Raises:
      UserError: there are checkpoints, and none of them can be read. All is
        left as it was.
    """
    found = list_steps(self.directory)
    problems = []
    for i, (which, step) in enumerate(found):
      path = self.directory / which / str(step)
      try:
        restored = restore_state(path, target)
      except Exception as e:
        problems.append(
          f'checkpoint {path} cannot be read ({reason(e)})'
        )
        continue
      for problem in problems:
        log(
          f'warning: {problem}; it is moved to checkpoints/{DAMAGED} and '
          f'{which}/{step} is taken'
        )
      for bad_which, bad_step in found[:i]:
        del self._saved[bad_which][bad_step]
        if jax.process_index() == 0:
          _move(self.directory, bad_which, bad_step, DAMAGED)
      return restored
    if problems:
      raise UserError(
        '\n  '.join(['no checkpoint can be read:', *problems])
        + '\nNothing was changed. Put a copy back, or choose another '
        '--workdir to start afresh'
      )
    return None


def _move(directory, which: str, step: int, folder: str) -> pathlib.Path:
  """Renames a checkpoint into a folder beside, under a name not yet used."""
  target = directory / folder
  target.mkdir(exist_ok=True)
  name, n = f'{which}-{step}', 0
  while (target / name).exists():
    n += 1
    name = f'{which}-{step}.{n}'
  return (directory / which / str(step)).rename(target / name)


def reason(error: Exception) -> str:
  """The operating system's words if there are any, else one short line."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  if match := re.search(r': ([^:\[]+) \[os_error_code', str(error)):
    return match[1]
  lines = str(error).splitlines() or ['']
  return f'{type(error).__name__}: {lines[0][:150]}'


def list_steps(directory) -> list[tuple[str, int]]:
  """[(which, step)] of the finished checkpoints, newest first."""
  found = []
  for which in (LATEST, BEST):
    folder = pathlib.Path(directory) / which
    found += [(which, int(p.name)) for p in folder.glob('*')
              if p.name.isdigit()]
  return sorted(found, key=lambda x: (-x[1], x[0] != LATEST))


def read_meta(path) -> dict:
  """The metadata of one checkpoint directory."""
  return json.loads((pathlib.Path(path) / 'meta' / 'metadata').read_text())


def restore_state(path, target: TrainState):
  """(TrainState of numpy arrays, meta) from one checkpoint directory.

  Raises:
    DamagedCheckpoint: the checksum does not fit. Orbax's own errors otherwise.
  """
  params, ema, rest = split_state(target)
  meta = read_meta(path)
  params = _restore_item(path, 'params', params)
  ema = None if ema is None else _restore_item(path, 'ema', ema)
  rest = _restore_item(path, 'rest', rest)
  if checksum(params, ema, rest) != meta['checksum']:
    raise DamagedCheckpoint('the checksum does not fit the arrays')
  return TrainState(params=params, ema=ema, **rest), meta


def restore_params(path):
  """The weights to use (the average where there is one), as a numpy tree.

  Raises:
    DamagedCheckpoint: the checksum does not fit. Orbax's own errors otherwise.
  """
  item = 'ema' if (pathlib.Path(path) / 'ema').is_dir() else 'params'
  meta = read_meta(path)
  params = _restore_item(path, item, None)
  if checksum(params) != meta.get('weights_checksum', checksum(params)):
    raise DamagedCheckpoint('the checksum does not fit the weights')
  return params


def _restore_item(path, item, target):
  ocp = _orbax()
  options = {}
  if jax.process_count() > 1:  # Each process reads for itself, without others.
    index = jax.process_index()
    options['multiprocessing_options'] = ocp.options.MultiprocessingOptions(
      primary_host=index, active_processes={index},
      barrier_sync_key_prefix=f'read{index}',
    )
  handler = ocp.StandardCheckpointHandler(**options)
  path = pathlib.Path(path).absolute() / item
  with ocp.Checkpointer(handler, **options) as checkpointer:
    if target is None:
      return checkpointer.restore(path)
    target = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), target)
    return checkpointer.restore(path, args=ocp.args.StandardRestore(target))


def candidates(workdir, which: str = BEST) -> list[pathlib.Path]:
  """The checkpoints of a run, in the order in which to use them.

  For BEST those of the lowest loss come first, then the newest; for LATEST the
  newest, then the best.

  Raises:
    UserError: there is no such run or it has no checkpoint.
  """
  if which not in (LATEST, BEST):
    raise UserError(f'--which={which} is not known; allowed: best, latest')
  directory = pathlib.Path(workdir) / 'checkpoints'
  found = list_steps(directory)
  if not found:
    hint = (
      'it holds no checkpoint yet'
      if pathlib.Path(workdir).is_dir()
      else 'there is no such directory'
    )
    raise UserError(
      f'no trained model in {workdir}: {hint}. Train one with `python -m '
      'launch.train --workdir=...` or name another --workdir'
    )
  latest = [directory / w / str(step) for w, step in found if w == LATEST]
  best = [directory / w / str(step) for w, step in found if w == BEST]
  best.sort(key=_loss_of)
  return best + latest if which == BEST else latest + best


def find(workdir, which: str = BEST) -> pathlib.Path:
  """The directory of a run's best (lowest loss) or latest checkpoint.

  Asked for the best of a run that has none, gives the latest.

  Raises:
    UserError: there is no such run or it has no checkpoint.
  """
  return candidates(workdir, which)[0]


def _loss_of(path) -> float:
  """The best loss in a checkpoint's metadata; inf where that is damaged."""
  try:
    return float(read_meta(path)['best_loss'])
  except (OSError, ValueError, KeyError, TypeError):
    return np.inf
