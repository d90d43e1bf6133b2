"""Writes the checkpoints of a run asynchronously and keeps a few of them.

Their layout is described in checkpoint.py.
"""

import contextlib
import functools
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gpt.errors import UserError
from gpt.files import write_atomic
from gpt.model.params import Params
from gpt.runs import divided, weights_file
from gpt.runs.checkpoint import (
  BEST,
  DAMAGED,
  DELETED,
  LATEST,
  REPLACED,
  checksum,
  list_steps,
  loss_of,
  orbax,
  read_meta,
  reason,
  restore_state,
  split_state,
)
from gpt.runs.checkpoint_meta import MODEL, sealed
from gpt.runs.format_version import NewerFormat
from gpt.training.state import TrainState

logger = logging.getLogger(__name__)


def to_host(tree: Any) -> Any:
  """Numpy copies of every leaf (copies: the originals may be donated next)."""
  return jax.tree.map(lambda x: np.array(x, copy=True), jax.device_get(tree))


def write_weights(
  workdir: str | os.PathLike,
  kinds: Sequence[str],
  params: Params,
  step: int,
  meta: dict,
) -> None:
  """Writes weights as a run's first checkpoints, with little memory.

  Args:
    kinds: LATEST, or both.
    params: numpy arrays.
    step, meta: as in `Checkpoints.save`.

  Raises:
    OSError: the checkpoint cannot be written.
  """
  meta = {**meta, 'step': step, 'weights_checksum': checksum(params)}
  text = json.dumps(sealed(meta))
  directory = pathlib.Path(workdir) / 'checkpoints'
  for which in kinds:
    path = directory / which / str(step)
    (path / 'meta').mkdir(parents=True)
    try:  # One file, two names.
      first = directory / kinds[0] / str(step)
      os.link(first / weights_file.FILE, path / weights_file.FILE)
    except OSError:
      weights_file.write(path, params)
    write_atomic(path / 'meta' / 'metadata', text.encode())


class Checkpoints:
  """The checkpoints of one workdir, for the run that writes them.

  All processes of a run call every method together, in the same order; only
  process 0 renames and deletes.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    keep: int = 2,
    options: Mapping[str, Any] | None = None,
  ) -> None:
    """`options` (see options_of) show later that a config.json has changed."""
    if keep < 1:
      raise UserError(f'checkpoint.keep is {keep}; it must be at least 1')
    self._model = {MODEL: dict(options)} if options else {}
    self.directory = pathlib.Path(workdir).absolute() / 'checkpoints'
    self._keep = keep
    # By kind: {step: loss} on disk, (step, loss) being written, and the reason
    # why the last write failed.
    self._saved = {LATEST: {}, BEST: {}}
    for which, step in list_steps(self.directory):
      path = self.directory / which / str(step)
      self._saved[which][step] = loss_of(path)
    self._pending = {}
    self._failed = {}
    self._lost = False  # See are_lost.

  @functools.cached_property
  def _writers(self) -> dict[str, Any]:
    """One asynchronous writer per kind."""
    ocp = orbax()
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
    """Creates the folders; removes what killed processes left in them."""
    for which in (LATEST, BEST):
      folder = self.directory / which
      folder.mkdir(parents=True, exist_ok=True)
      if jax.process_index() == 0:
        for path in folder.glob('*.orbax-checkpoint-tmp*'):
          shutil.rmtree(path, ignore_errors=True)
      self._delete_superseded(which)
    if jax.process_index() == 0:
      shutil.rmtree(self.directory / DELETED, ignore_errors=True)

  def has(self, which: str, step: int) -> bool:
    return step in self._saved[which]

  def save(self, which: str, state: TrainState, meta: dict) -> bool:
    """Starts writing a copy of the state; returns before it is on disk.

    Args:
      which: LATEST or BEST.
      state: on device or host; with several processes, on their mesh.
      meta: JSON-able; 'step', the model's options and checksums are added.

    Returns:
      False if the previous write, or starting this one, failed (a full disk,
      say); `last_error` then holds the reason. Earlier checkpoints are
      untouched.
    """
    ocp = orbax()
    # With several processes, one write at a time.
    for kind in (LATEST, BEST) if jax.process_count() > 1 else (which,):
      self._finish(kind)
    failed_before = which in self._failed
    together = jax.process_count() > 1
    copied = divided.copied if together else to_host
    params, ema, rest = copied(split_state(state))
    step, loss = int(rest['step']), float(meta.get('best_loss', np.inf))
    if step in self._saved[which]:
      self._delete(which, step)
    if together:
      checksums = divided.checksums(params, ema, rest)
    else:
      checksums = {
        'checksum': checksum(params, ema, rest),
        'weights_checksum': checksum(params if ema is None else ema),
      }
    items = {
      'params': ocp.args.StandardSave(params),
      'rest': ocp.args.StandardSave(rest),
      'meta': ocp.args.JsonSave(
        sealed({**meta, **self._model, 'step': step, **checksums})
      ),
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
    """Blocks until all is on disk; False if the newest of a kind failed."""
    for which in (LATEST, BEST):
      self._finish(which)
    return not self._failed

  @property
  def newest(self) -> int | None:
    """The step of the newest checkpoint on disk."""
    return max(
      (step for of in self._saved.values() for step in of), default=None
    )

  def are_lost(self) -> bool:
    """Whether all that were saved of a kind are gone, or were when last asked.

    `rm -r` may leave the directory if a checkpoint is being written there. With
    several processes always False: process 0 may have deleted a checkpoint
    before this process knows of the one that supersedes it.
    """
    if jax.process_count() == 1:
      self._lost |= any(
        steps
        and not any((self.directory / which / str(x)).is_dir() for x in steps)
        for which, steps in self._saved.items()
      )
    return self._lost

  @property
  def writing(self) -> set[int]:
    """The steps of the checkpoints that are being written."""
    return {step for step, _ in self._pending.values()}

  @property
  def last_error(self) -> str:
    return next(iter(self._failed.values()), '')

  def close(self) -> None:
    self.wait()
    if '_writers' in self.__dict__:
      for which, writer in self._writers.items():
        try:
          writer.close()
        except Exception as e:  # The folder is gone, say.
          self._failed[which] = reason(e)

  def _finish(self, which: str) -> None:
    """Waits for the pending write, then deletes what it supersedes."""
    if which not in self._pending:
      return
    step, loss = self._pending.pop(which)
    try:
      self._writers[which].wait_until_finished()
    except Exception as e:
      self._failed[which] = reason(e)
      return
    self._failed.pop(which, None)
    self.are_lost()  # Before the new one counts.
    self._saved[which][step] = loss
    self._delete_superseded(which)

  def _delete_superseded(self, which: str) -> None:
    """Keeps the newest `keep` of LATEST and the lowest loss of BEST."""
    saved = self._saved[which]
    if which == LATEST:
      superseded = sorted(saved)[: -self._keep]
    else:
      superseded = sorted(saved, key=lambda s: (saved[s], s))[1:]
    for step in superseded:
      self._delete(which, step)

  def _delete(self, which: str, step: int) -> None:
    """Renames first, so that a kill leaves no partial checkpoint."""
    del self._saved[which][step]
    if jax.process_index() == 0:
      with contextlib.suppress(FileNotFoundError):  # Somebody else removed it.
        trash = _move(self.directory, which, step, DELETED)
        shutil.rmtree(trash, ignore_errors=True)

  def set_aside(self, which: str, step: int) -> None:
    """Moves a checkpoint to checkpoints/damaged, unless it is the only one."""
    self.wait()
    if step in self._saved[which] and sum(map(len, self._saved.values())) > 1:
      del self._saved[which][step]
      if jax.process_index() == 0:
        _move(self.directory, which, step, DAMAGED)

  def replace_best(
    self, state: TrainState, meta: dict, validation: str
  ) -> bool:
    """Moves bests measured on other validation data to checkpoints/replaced.

    Args:
      state, meta: as restored; saved as the latest first, so that the run
        always has a checkpoint on disk.
      validation: bests whose metadata has another value are moved.

    Returns:
      False if the latest could not be written; then nothing was moved.
    """
    if not self.has(LATEST, int(state.step)):
      self.save(LATEST, state, meta)
    if not self.wait():
      return False
    for step in sorted(self._saved[BEST]):
      try:
        of = read_meta(self.directory / BEST / str(step)).get('validation')
      except NewerFormat:
        raise
      except (OSError, ValueError):
        of = None
      if of != validation:
        del self._saved[BEST][step]
        if jax.process_index() == 0:
          _move(self.directory, BEST, step, REPLACED)
    return True

  def restore_latest(
    self, target: TrainState
  ) -> tuple[TrainState, dict[str, Any]] | None:
    """(state, meta) of the newest intact checkpoint, or None if there is none.

    Bests count too: each holds the complete state, and a run killed between two
    saves of the latest may have left a newer best. Once a checkpoint was read,
    newer ones that could not be are moved to checkpoints/damaged.

    Args:
      target: a TrainState of arrays or ShapeDtypeStructs, for the structure;
        with several processes ShapeDtypeStructs with shardings.

    Raises:
      UserError: there are checkpoints and none can be read; nothing was
        changed.
    """
    found = list_steps(self.directory)
    restore = restore_state
    if jax.process_count() > 1:
      found, restore = divided.agreed(found), divided.restore_together
    problems = []
    for i, (which, step) in enumerate(found):
      path = self.directory / which / str(step)
      try:
        restored = restore(path, target)
      except NewerFormat:
        raise
      except Exception as e:
        problems.append(f'checkpoint {path} cannot be read ({reason(e)})')
        continue
      for problem in problems:
        logger.warning(
          f'{problem}; moving it to checkpoints/{DAMAGED} and using '
          f'{which}/{step} instead'
        )
      for bad_which, bad_step in found[:i]:
        self._saved[bad_which].pop(bad_step, None)
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


def _move(
  directory: pathlib.Path, which: str, step: int, folder: str
) -> pathlib.Path:
  """Renames a checkpoint into another folder, under an unused name.

  Raises:
    FileNotFoundError: there is no such checkpoint; nothing was made.
  """
  source = directory / which / str(step)
  source.stat()
  target = directory / folder
  target.mkdir(exist_ok=True)
  name, n = f'{which}-{step}', 0
  while (target / name).exists():
    n += 1
    name = f'{which}-{step}.{n}'
  return source.rename(target / name)
