"""Raw logits of given token ids, to compare with another implementation."""

import dataclasses
import pathlib

import jax
import numpy as np

from gpt.errors import UserError
from gpt.files import replacing
from gpt.model import GPT

# Positions whose logits are computed at once.
TOKENS_AT_ONCE = 4096


def write_logits(loaded, ids_BL, path) -> tuple[int, int, int]:
  """Writes the logits of token ids as a .npy file.

  Always in float32 with the most exact matrix products, whatever the run's
  dtype. The file appears when it is complete.

  Args:
    loaded: LoadedModel.
    ids_BL: int[B, L], L <= block_size.
    path: of the file, float32[B, L, V].

  Returns:
    (B, L, V).

  Raises:
    UserError: ids of another shape, type or range; a path not writable.
  """
  cfg = dataclasses.replace(loaded.cfg, dtype='float32', attention='plain')
  ids_BL = check_ids(ids_BL, cfg)
  batch, length = ids_BL.shape
  rows = min(batch, max(1, TOKENS_AT_ONCE // length))
  forward = jax.jit(GPT(cfg).apply)
  variables = {'params': jax.device_put(loaded.params)}
  shape = batch, length, cfg.vocab_size
  path = pathlib.Path(path)
  try:
    with replacing(path) as file, jax.default_matmul_precision('highest'):
      np.lib.format.write_array_header_1_0(
        file, {'descr': '<f4', 'fortran_order': False, 'shape': shape}
      )
      for i in range(0, batch, rows):
        part = ids_BL[i : i + rows]
        padded = np.zeros((rows, length), np.int32)
        padded[: len(part)] = part
        out = np.asarray(forward(variables, padded)[: len(part)], '<f4')
        file.write(out.tobytes())
  except OSError as e:
    raise UserError(f'cannot write {path}: {e.strerror}') from e
  return shape


def check_ids(ids, cfg) -> np.ndarray:
  """int32[B, L] of valid token ids; UserError otherwise."""
  if not np.issubdtype(ids.dtype, np.integer):
    raise UserError(f'ids are {ids.dtype}; integers are wanted')
  if ids.ndim != 2 or not ids.size:
    raise UserError(
      f'ids have the shape {list(ids.shape)}; [B, L] is wanted: B rows of L '
      'tokens, at least one of each'
    )
  if ids.shape[1] > cfg.block_size:
    raise UserError(
      f'rows of {ids.shape[1]} ids are longer than the context of '
      f'{cfg.block_size} tokens'
    )
  low, high = int(ids.min()), int(ids.max())
  if low < 0 or high >= cfg.vocab_size:
    raise UserError(
      f'ids run from {low} to {high}; allowed are 0 to {cfg.vocab_size - 1}'
    )
  return ids.astype(np.int32)
