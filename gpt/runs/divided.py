"""Checkpoints that several processes write and read together.

Every process writes its shards of the arrays, and reads those of its devices,
on the same mesh or any other. What one process cannot read, all of them leave
out.
"""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from gpt import devices
from gpt.runs.array_sums import sum_of
from gpt.runs.checkpoint import (
  DamagedCheckpoint,
  check_sums,
  checked_state,
  restore_item,
  restore_state,
  split_state,
)
from gpt.runs.checkpoint_meta import BEST, LATEST, SUMS, read_meta
from gpt.training.state import TrainState

KINDS = (LATEST, BEST)


def copied(tree: Any) -> Any:
  """The arrays to write, which the next step does not touch.

  Orbax copies from an accelerator before it returns; the memory of a CPU device
  it reads later, when its owner may have been donated.
  """
  if jax.default_backend() != 'cpu':
    return tree
  places = jax.tree.map(lambda x: x.sharding, tree)
  copy = jax.jit(lambda x: jax.tree.map(jnp.copy, x), out_shardings=places)
  return copy(tree)


def checksums(params: Any, ema: Any, rest: Any) -> dict[str, Any]:
  """The metadata that tells whether the items are as they were written."""
  items = {'params': params, 'ema': ema, 'rest': rest}
  return {SUMS: {name: sum_of(x) for name, x in items.items() if x is not None}}


def agreed(found: list[tuple[str, int]]) -> list[tuple[str, int]]:
  """What process 0 found: a shared file system may show others less."""
  rows = np.asarray([(KINDS.index(w), step) for w, step in found], np.int32)
  count = multihost_utils.broadcast_one_to_all(np.int32(len(found)))
  mine = np.zeros((int(count), 2), np.int32)
  if jax.process_index() == 0:
    mine[:] = rows.reshape(-1, 2)
  rows = multihost_utils.broadcast_one_to_all(mine)
  return [(KINDS[kind], int(step)) for kind, step in np.asarray(rows)]


def restore_together(
  path: str | os.PathLike, target: TrainState
) -> tuple[TrainState, dict[str, Any]]:
  """restore_state by all processes, of a checkpoint that any number wrote.

  Args:
    target: ShapeDtypeStructs with shardings.

  Returns:
    (state, meta): of JAX arrays where they belong, or of numpy arrays if one
    process wrote them.

  Raises:
    DamagedCheckpoint: on all processes, or another error of one of them.
  """
  meta = _unless_any_fails(lambda: read_meta(path))
  if SUMS not in meta:
    bare = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), target
    )
    return _unless_any_fails(lambda: restore_state(path, bare))
  params, ema, rest = split_state(target)

  def read() -> tuple[Any, Any, Any]:
    return (
      restore_item(path, 'params', params),
      None if ema is None else restore_item(path, 'ema', ema),
      restore_item(path, 'rest', rest),
    )

  params, ema, rest = _unless_any_fails(read)
  check_sums(meta, params=params, ema=ema, rest=rest)
  return checked_state(params, ema, rest, meta), meta


def _unless_any_fails(read: Any) -> Any:
  """read(), or an error on all processes if it raises on one of them."""
  found, error = None, None
  try:
    found = read()
  except Exception as e:
    error = e
  if devices.any_process(error is not None):
    raise error or DamagedCheckpoint('another process cannot read its part')
  return found
