"""Creates the workdir of an import, in the form that training leaves.

Everything else then treats it like any run.
"""

import contextlib
import copy
import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt import staging
from gpt.data import record
from gpt.errors import UserError, explained_writes, quoted
from gpt.model import GPTConfig
from gpt.runs.checkpoint import BEST, LATEST
from gpt.runs.checkpoint_meta import MODEL, options_of
from gpt.runs.checkpoint_writer import Checkpoints, write_weights
from gpt.runs.config_file import CONFIG, save_config
from gpt.runs.workdir import lock_workdir
from gpt.tokenizers import Tokenizer
from gpt.training.plateau import Plateau
from gpt.training.state import TrainState

MAX_STEP = 2**31 - 1  # Of an int32.


def check_free(workdir: str | os.PathLike) -> None:
  """Raises UserError if the directory holds a run or parts of one.

  The lock and the tokenizer that an import of an earlier version left when it
  failed do not count.
  """
  workdir = pathlib.Path(workdir)
  if os.path.lexists(workdir) and not workdir.is_dir():
    raise UserError(f'{workdir} is not a directory: choose another --workdir')
  for name in (CONFIG, 'checkpoints', 'tokenizer'):
    if (workdir / name).exists() and not _is_leftover(workdir, name):
      raise UserError(
        f'{workdir} already holds {name}; nothing in it will be overwritten. '
        'Choose a new --workdir'
      )


def _is_leftover(workdir: pathlib.Path, name: str) -> bool:
  """Whether a failed import made it: there is a lock, and nothing else."""
  found = {path.name for path in workdir.iterdir()}
  return name == 'tokenizer' and found == {'tokenizer', '.lock'}


def checked_step(step: Any, source: str | os.PathLike) -> int:
  """`step` if it is a number of steps; 0 for None.

  Raises:
    UserError: it is not.
  """
  if step is None:
    return 0
  if type(step) is int and 0 <= step < MAX_STEP:
    return step
  raise UserError(
    f'{source} has the step {quoted(step)}; allowed: a whole number from 0 to '
    f'{MAX_STEP - 1}'
  )


def check_state(
  state: TrainState, best_loss: Any, source: str | os.PathLike
) -> None:
  """Checks what a file from elsewhere says about its training.

  Raises:
    UserError: a step or a best loss that no training has, or weights that are
      not finite.
  """
  checked_step(int(state.step), source)
  if best_loss is not None and not (
    type(best_loss) in (int, float) and 0 <= best_loss < math.inf
  ):
    raise UserError(
      f'{source} has the best loss {quoted(best_loss)}; allowed: a number of '
      'nats/token, or none'
    )
  trees = {'weights': state.params, 'averages of weights': state.ema}
  trees['moments'] = state.opt_state
  for noun, tree in trees.items():
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      x = np.asarray(leaf)
      if jnp.issubdtype(x.dtype, jnp.floating) and not np.isfinite(x).all():
        name = jax.tree_util.keystr(path)
        raise UserError(
          f'{source} holds {noun} that are not finite ({name}): the model has '
          'diverged or the file is damaged. Nothing was imported'
        )


def create(
  workdir: str | os.PathLike,
  config: Any,
  tokenizer: Tokenizer,
  state: TrainState,
  best_loss: float | None,
  *,
  source: str | os.PathLike = 'the model',
  data: Mapping[str, str] | None = None,
  **meta: Any,
) -> None:
  """Writes a run: all of it, or nothing.

  Without optimizer state only the weights are written, which takes little
  memory; the optimizer starts with the first step.

  Args:
    config: ConfigDict, saved as config.json.
    state: TrainState of numpy arrays, saved as the latest checkpoint, and as
      the best if its loss is known. Its opt_state may be None.
    best_loss: nats/token, or None.
    source: where the state comes from, for errors.
    data: 'kind', 'description' and 'text_sha256' of the training text.
    meta: more metadata for the checkpoints.

  Raises:
    UserError: see check_state; the workdir cannot be written to, or is in use.
  """
  check_state(state, best_loss, source)
  step = int(state.step)
  plateau = Plateau() if best_loss is None else Plateau(best_loss, step)
  meta = {
    'plateau': dataclasses.asdict(plateau),
    'best_loss': math.inf if best_loss is None else best_loss,
    'validation': '',  # Unknown: the loss was measured elsewhere.
    'elapsed_s': 0.0,
    **meta,
  }
  kinds = (LATEST,) if best_loss is None else (LATEST, BEST)
  tokenizer = copy.copy(tokenizer)
  tokenizer.requested_vocab_size = 0  # This run did not choose it.
  with (
    explained_writes(workdir),
    _locked(pathlib.Path(workdir)),
    staging.directory(workdir) as staged,
  ):
    tokenizer.save(staged / 'tokenizer')
    cfg = GPTConfig.from_config(config.model, tokenizer.vocab_size)
    model = options_of(cfg, config.opt)
    if state.opt_state is None:
      write_weights(staged, kinds, state.params, step, {**meta, MODEL: model})
    else:
      checkpoints = Checkpoints(staged, config.checkpoint.keep, model)
      saved = all([checkpoints.save(kind, state, meta) for kind in kinds])
      saved = checkpoints.wait() and saved
      checkpoints.close()
      if not saved:
        raise UserError(
          f'cannot write to {workdir}: {checkpoints.last_error}. Nothing was '
          'imported'
        )
    if data:
      record.write(staged, **data)
    save_config(staged, config)
    check_free(workdir)  # Again: another process may have made a run.


def _locked(workdir: pathlib.Path) -> contextlib.AbstractContextManager:
  """The lock of a directory in which a run was started once."""
  if (workdir / '.lock').exists():
    return lock_workdir(workdir)
  return contextlib.nullcontext()
