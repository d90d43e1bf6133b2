"""Checkpoints of a run on disk: layout and reading. Orbax, numpy trees.

    W/checkpoints/latest/STEP/   the newest states (checkpoint.keep of them)
    W/checkpoints/best/STEP/     the state of the lowest validation loss
    W/checkpoints/replaced/      bests by earlier validation data

Each holds four items: `params` (a dict of arrays, readable without knowing the
optimizer), `ema` (likewise, if there is one), `rest` (step, optimizer state)
and `meta` (JSON: format version, best loss, patience, elapsed time, checksums).
Numpy trees carry no devices, so a checkpoint opens on every backend and JAX
version. Several processes write JAX arrays, each its part (divided.py); they
are read as numpy trees too, or onto any mesh. Orbax writes to a temporary name
and renames, so a killed run leaves complete checkpoints only.
checkpoint_writer.py writes them.
"""

import functools
import logging
import math
import os
import pathlib
import re
import sys
import types
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from gpt.errors import UserError
from gpt.model.params import Params
from gpt.runs import weights_file
from gpt.runs.array_sums import sum_of
from gpt.runs.checkpoint_meta import (
  BEST,
  LATEST,
  SUMS,
  list_steps,
  read_meta,
)
from gpt.runs.format_version import NewerFormat
from gpt.training.state import TrainState, untrained_state

logger = logging.getLogger(__name__)
Found = TypeVar('Found')

BYTES_ALLOWED = 200 << 20  # Beside 10 times the size of the files.
DAMAGED, DELETED, REPLACED = 'damaged', 'deleted', 'replaced'


class DamagedCheckpoint(Exception):
  """The arrays of a checkpoint do not match its checksums."""


@functools.cache
def orbax() -> types.ModuleType:
  """The module, imported on first use because that takes a second.

  Silences its loggers: a failed read or write raises anyway, and would fill
  pages of stderr as well.
  """
  import orbax.checkpoint as ocp

  logging.getLogger('absl').setLevel(logging.CRITICAL)
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  report = sys.unraisablehook

  def report_others(event: 'sys.UnraisableHookArgs') -> None:
    if 'Event loop is closed' not in str(event.exc_value):
      report(event)

  sys.unraisablehook = report_others
  return ocp


def checksum(*trees: Any) -> int:
  """CRC-32 of the leaves' bytes in tree order."""
  crc = 0
  for leaf in jax.tree.leaves(trees):
    crc = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).data, crc)
  return crc


def split_state(
  state: TrainState,
) -> tuple[Params, Params | None, dict[str, Any]]:
  """(params, ema, rest) of a state; only training needs `rest`."""
  rest = {
    'step': state.step,
    'opt_state': state.opt_state,
    'lr_scale': state.lr_scale,
  }
  return state.params, state.ema, rest


def reason(error: Exception) -> str:
  """The operating system's message if there is one, else one short line."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  if isinstance(error, UserError | DamagedCheckpoint):
    return str(error)
  if match := re.search(r': ([^:\[]+) \[os_error_code', str(error)):
    return match[1]
  lines = str(error).splitlines() or ['']
  return f'{type(error).__name__}: {lines[0][:150]}'


def restore_state(
  path: str | os.PathLike, target: TrainState
) -> tuple[TrainState, dict[str, Any]]:
  """(TrainState of numpy arrays, meta) from one checkpoint directory.

  Raises:
    DamagedCheckpoint: the checksum does not match. Orbax's errors otherwise.
  """
  if (pathlib.Path(path) / weights_file.FILE).exists():
    return _untrained(path, target)
  params, ema, rest = split_state(target)
  meta = read_meta(path)
  params = restore_item(path, 'params', params)
  ema = None if ema is None else restore_item(path, 'ema', ema)
  rest = restore_item(path, 'rest', rest)
  if SUMS in meta:
    check_sums(meta, params=params, ema=ema, rest=rest)
  elif checksum(params, ema, rest) != meta.get('checksum'):
    raise DamagedCheckpoint('the checksum does not match the arrays')
  return checked_state(params, ema, rest, meta), meta


def check_sums(meta: Mapping[str, Any], **items: Any) -> None:
  """Raises DamagedCheckpoint if arrays are not those that were written."""
  for name, tree in items.items():
    if tree is not None and sum_of(tree) != meta[SUMS].get(name):
      raise DamagedCheckpoint(f'the checksum does not match the {name}')


def checked_state(
  params: Params, ema: Params | None, rest: Any, meta: Mapping[str, Any]
) -> TrainState:
  """The state of a checkpoint, if arrays and metadata are of one step."""
  if int(rest['step']) != meta['step']:
    raise DamagedCheckpoint(
      f'its metadata has step {meta["step"]}, its arrays {int(rest["step"])}'
    )
  return TrainState(params=params, ema=ema, **rest)


def _untrained(
  path: str | os.PathLike, target: TrainState
) -> tuple[TrainState, dict[str, Any]]:
  """restore_state of an import, which has no optimizer state: None."""
  meta, params = read_meta(path), restore_params(path)
  found, wanted = (
    jax.tree.map(lambda x: tuple(x.shape), tree)
    for tree in (params, target.params)
  )
  if found != wanted:
    raise DamagedCheckpoint('its weights have other shapes than the config')
  # Imported bfloat16 weights may go on as float32 (model.param_dtype).
  params = jax.tree.map(lambda x, y: x.astype(y.dtype), params, target.params)
  ema = None if target.ema is None else jax.tree.map(np.copy, params)
  return untrained_state(meta['step'], params, ema), meta


def restore_params(path: str | os.PathLike) -> Params:
  """The weights to use (the EMA if there is one), as a numpy tree.

  Raises:
    DamagedCheckpoint: the checksum does not match. Orbax's errors otherwise.
  """
  item = 'ema' if (pathlib.Path(path) / 'ema').is_dir() else 'params'
  meta = read_meta(path)
  if (pathlib.Path(path) / weights_file.FILE).exists():
    params = weights_file.read(path)
  else:
    params = restore_item(path, item, None)
  if SUMS in meta:
    check_sums(meta, **{item: params})
  elif checksum(params) != meta.get('weights_checksum', checksum(params)):
    raise DamagedCheckpoint('the checksum does not match the weights')
  return params


def restore_item(path: str | os.PathLike, item: str, target: Any) -> Any:
  """One item of a checkpoint, read without a word to other processes.

  Args:
    target: a tree of arrays or ShapeDtypeStructs. Those with a sharding come
      as JAX arrays, all others as numpy. None: the tree that was written.
  """
  ocp = orbax()
  options = {}
  if jax.process_count() > 1:  # Each process reads independently: no barrier.
    index = jax.process_index()
    options['multiprocessing_options'] = ocp.options.MultiprocessingOptions(
      primary_host=index,
      active_processes={index},
      barrier_sync_key_prefix=f'read{index}',
    )
  handler = ocp.StandardCheckpointHandler(**options)
  path = pathlib.Path(path).absolute() / item
  _check_files(path)
  with ocp.Checkpointer(handler, **options) as checkpointer:
    metadata = _tree_of(checkpointer.metadata(path))
    _check_size(metadata, path, target)
    target = jax.tree.map(_wanted, metadata if target is None else target)
    return checkpointer.restore(path, args=ocp.args.StandardRestore(target))


def _check_files(path: pathlib.Path) -> None:
  """Raises DamagedCheckpoint for what Orbax would wait for, such as a pipe."""
  for file in path.rglob('*'):
    if not file.is_file() and not file.is_dir():
      raise DamagedCheckpoint(
        f'{file.relative_to(path.parent)} is no file but a pipe, a device or a '
        'broken link'
      )


def _tree_of(metadata: Any) -> Any:
  """Shapes and dtypes of Orbax's metadata, which its versions nest anew."""
  metadata = getattr(metadata, 'item_metadata', metadata)
  return getattr(metadata, 'tree', metadata)


def _wanted(x: Any) -> Any:
  if isinstance(x, jax.ShapeDtypeStruct) and x.sharding is not None:
    return x
  return np.zeros(x.shape, x.dtype)


def _check_size(metadata: Any, path: pathlib.Path, target: Any) -> None:
  """Raises DamagedCheckpoint for larger arrays than expected, before any is.

  Args:
    metadata: a tree of shapes and dtypes.
    target: the arrays expected; None: about as large as their files.
  """
  found = _bytes_of(metadata)
  if target is None:
    sizes = (x.stat().st_size for x in path.rglob('*') if x.is_file())
    allowed = BYTES_ALLOWED + 10 * sum(sizes)
  else:
    allowed = _bytes_of(target)
  if found > allowed:
    raise DamagedCheckpoint(
      f'its {path.name} have {found:,} bytes; allowed: {allowed:,}'
    )


def _bytes_of(tree: Any) -> int:
  return sum(
    math.prod(x.shape) * np.dtype(x.dtype).itemsize
    for x in jax.tree.leaves(tree)
  )


def candidates(
  workdir: str | os.PathLike, which: str = BEST
) -> list[pathlib.Path]:
  """The checkpoints of a run, in the order in which to use them.

  For BEST those with the lowest loss come first, then the newest; for LATEST
  the newest, then the best.

  Raises:
    UserError: no such run, or it has no checkpoint.
  """
  if which not in (LATEST, BEST):
    raise UserError(f'--which={which} is not known; allowed: best, latest')
  directory = pathlib.Path(workdir) / 'checkpoints'
  found = list_steps(directory)
  if not found:
    path = pathlib.Path(workdir)
    hint = (
      'it holds no checkpoint yet'
      if path.is_dir()
      else 'it is not a directory'
      if path.exists()
      else 'there is no such directory'
    )
    raise UserError(
      f'no trained model in {workdir}: {hint}. Train one with `python -m '
      'launch.train --workdir=...` or name another --workdir'
    )
  latest = [directory / w / str(step) for w, step in found if w == LATEST]
  best = [directory / w / str(step) for w, step in found if w == BEST]
  best.sort(key=loss_of)
  return best + latest if which == BEST else latest + best


def find(workdir: str | os.PathLike, which: str = BEST) -> pathlib.Path:
  """The directory of a run's best (lowest loss) or latest checkpoint.

  The latest stands in for a best that does not exist.

  Raises:
    UserError: no such run, or it has no checkpoint.
  """
  return candidates(workdir, which)[0]


def loss_of(path: str | os.PathLike) -> float:
  """The best loss in a checkpoint's metadata; inf if that is damaged."""
  try:
    return float(read_meta(path)['best_loss'])
  except NewerFormat:
    raise
  except (OSError, ValueError, KeyError, TypeError):
    return np.inf


def first_readable(
  paths: Sequence[pathlib.Path], read: Callable[[pathlib.Path], Found]
) -> tuple[pathlib.Path, Found]:
  """(path, read(path)) of the first checkpoint for which read does not raise.

  Args:
    paths: of `candidates`.

  Raises:
    UserError: there is none.
  """
  problems = []
  for path in paths:
    try:
      found = read(path)
    except NewerFormat:
      raise
    except Exception as e:
      text = f'{type(e).__name__}: {" ".join(str(e).split())[:200]}'
      if isinstance(e, UserError | DamagedCheckpoint):
        text = str(e)
      problems.append(f'checkpoint {path} cannot be used ({text})')
      continue
    for problem in problems:
      logger.warning(
        f'{problem}; using {path.parent.name} of step {path.name} instead'
      )
    return path, found
  raise UserError(
    f'no checkpoint in {paths[0].parents[2]} can be used:\n  '
    + '\n  '.join(problems)
  )
