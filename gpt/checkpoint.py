"""Checkpoints of a run: Orbax, asynchronous, plain numpy trees.

    W/checkpoints/latest/STEP/   the newest states (checkpoint.keep of them)
    W/checkpoints/best/STEP/     the state of the lowest validation loss

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
import zlib

import jax
import numpy as np

from gpt.errors import UserError
from gpt.train_state import TrainState

LATEST, BEST = 'latest', 'best'


class DamagedCheckpoint(Exception):
  """A checkpoint whose bytes are not what was written."""


def _orbax():
  """Orbax takes a second to import; only those who use it pay."""
  import orbax.checkpoint as ocp

  logging.getLogger('absl').setLevel(logging.ERROR)
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
  """The checkpoints of one workdir, for a run that writes them."""

  def __init__(self, workdir, keep: int = 2):
    if keep < 1:
      raise UserError(f'checkpoint.keep is {keep}; it must be at least 1')
    self.directory = pathlib.Path(workdir).absolute() / 'checkpoints'
    self._keep = keep
    self._error = None

  @functools.cached_property
  def _managers(self):
    ocp = _orbax()
    return {
      LATEST: _manager(ocp, self.directory / LATEST, self._keep),
      BEST: _manager(ocp, self.directory / BEST, None),
    }

  def save(self, which: str, state: TrainState, meta: dict) -> bool:
    """Starts writing a host copy of the state; returns before it is on disk.

    Args:
      which: LATEST or BEST.
      state: on device or host.
      meta: JSON-able; 'step' and checksums are added.

    Returns:
      False if an earlier write has failed (say, a full disk); the message is
      then in `last_error` and the earlier checkpoints are untouched.
    """
    ocp = _orbax()
    manager = self._managers[which]
    params, ema, rest = to_host(split_state(state))
    step = int(rest['step'])
    if step in manager.all_steps():
      return True  # A resumed run passes here again, with the same numbers.
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
    self._error = None
    self._guard(
      lambda: manager.save(step, args=ocp.args.Composite(**items), force=True)
    )
    return self._error is None

  def wait(self) -> bool:
    """Blocks until everything is on disk; False if something could not be."""
    self._error = None
    for which, manager in self._managers.items():
      self._guard(manager.wait_until_finished)
      if which == BEST and self._error is None:
        self._drop_beaten(manager)
    return self._error is None

  @property
  def last_error(self) -> str:
    return self._error or ''

  def close(self) -> None:
    if '_managers' in self.__dict__:
      for manager in self._managers.values():
        self._guard(manager.close)

  def _guard(self, write) -> None:
    """Turns a failed write into a message: the run goes on."""
    try:
      write()
    except Exception as e:
      self._error = f'{type(e).__name__}: {str(e).splitlines()[0]}'

  def _drop_beaten(self, manager) -> None:
    losses = {
      step: read_meta(self.directory / BEST / str(step)).get('best_loss')
      for step in manager.all_steps()
    }
    for step in sorted(losses, key=lambda s: (losses[s], s))[1:]:
      manager.delete(step)

  def restore_latest(self, target: TrainState, log=print):
    """(state, meta) of the newest whole checkpoint, or None if there is none.

    Damaged ones are moved to checkpoints/damaged/ and the one before is taken;
    after the latest, the best ones are tried.

    Args:
      target: a TrainState of arrays or ShapeDtypeStructs, for the structure.

    Raises:
      UserError: there are checkpoints, and none of them can be read.
    """
    found = list_steps(self.directory)
    if not found:
      return None
    for which, step in found:
      path = self.directory / which / str(step)
      try:
        return restore_state(path, target)
      except Exception as e:
        log(
          f'warning: checkpoint {path} cannot be read '
          f'({type(e).__name__}: {str(e).splitlines()[0][:200]}); '
          'trying the one before'
        )
        self._set_aside(which, step)
    raise UserError(
      f'none of the {len(found)} checkpoints under {self.directory} can be '
      'read; they are kept in checkpoints/damaged. Nothing was overwritten: '
      'choose another --workdir to start afresh'
    )

  def _set_aside(self, which: str, step: int) -> None:
    damaged = self.directory / 'damaged'
    damaged.mkdir(exist_ok=True)
    name, n = f'{which}-{step}', 0
    while (damaged / name).exists():
      n += 1
      name = f'{which}-{step}.{n}'
    (self.directory / which / str(step)).rename(damaged / name)


def _manager(ocp, directory, keep):
  directory.mkdir(parents=True, exist_ok=True)
  return ocp.CheckpointManager(
    directory,
    options=ocp.CheckpointManagerOptions(
      max_to_keep=keep, enable_async_checkpointing=True
    ),
  )


def list_steps(directory) -> list[tuple[str, int]]:
  """[(which, step)] of the finished checkpoints: latest, newest first; best."""
  found = []
  for which in (LATEST, BEST):
    folder = pathlib.Path(directory) / which
    steps = [int(p.name) for p in folder.glob('*') if p.name.isdigit()]
    found += [(which, step) for step in sorted(steps, reverse=True)]
  return found


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
  handler = ocp.StandardCheckpointHandler()
  path = pathlib.Path(path).absolute() / item
  with ocp.Checkpointer(handler) as checkpointer:
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
