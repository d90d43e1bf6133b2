"""Creates the workdir of an import, in the form that training leaves.

Everything else then treats it like any run.
"""

import copy
import dataclasses
import math
import os
import pathlib
from typing import Any

from gpt.errors import UserError, explained_writes
from gpt.model import GPTConfig
from gpt.runs.checkpoint import BEST, LATEST
from gpt.runs.checkpoint_meta import options_of
from gpt.runs.checkpoint_writer import Checkpoints
from gpt.runs.config_file import CONFIG, save_config
from gpt.runs.workdir import lock_workdir, make_workdir
from gpt.tokenizers import Tokenizer
from gpt.training.plateau import Plateau
from gpt.training.state import TrainState


def check_free(workdir: str | os.PathLike) -> None:
  """Raises UserError if the directory holds a run or parts of one."""
  for name in (CONFIG, 'checkpoints', 'tokenizer'):
    if (pathlib.Path(workdir) / name).exists():
      raise UserError(
        f'{workdir} already holds {name}; nothing in it will be overwritten. '
        'Choose a new --workdir'
      )


def create(
  workdir: str | os.PathLike,
  config: Any,
  tokenizer: Tokenizer,
  state: TrainState,
  best_loss: float | None,
  **meta: Any,
) -> None:
  """Writes a run, its config.json last.

  Args:
    config: ConfigDict, saved as config.json.
    state: TrainState of numpy arrays, saved as the latest checkpoint, and as
      the best if its loss is known.
    best_loss: nats/token, or None.
    meta: more metadata for the checkpoints.

  Raises:
    UserError: the workdir cannot be written to, or is in use.
  """
  workdir, step = pathlib.Path(workdir), int(state.step)
  plateau = Plateau() if best_loss is None else Plateau(best_loss, step)
  meta = {
    'plateau': dataclasses.asdict(plateau),
    'best_loss': math.inf if best_loss is None else best_loss,
    'validation': '',  # Unknown: the loss was measured elsewhere.
    'elapsed_s': 0.0,
    **meta,
  }
  kinds = (LATEST,) if best_loss is None else (LATEST, BEST)
  make_workdir(workdir)
  with explained_writes(workdir), lock_workdir(workdir):
    tokenizer = copy.copy(tokenizer)
    tokenizer.requested_vocab_size = 0  # This run did not choose it.
    tokenizer.save(workdir / 'tokenizer')
    cfg = GPTConfig.from_config(config.model, tokenizer.vocab_size)
    checkpoints = Checkpoints(
      workdir, config.checkpoint.keep, options_of(cfg, config.opt)
    )
    saved = all([checkpoints.save(kind, state, meta) for kind in kinds])
    saved = checkpoints.wait() and saved
    checkpoints.close()
    if not saved:
      raise UserError(
        f'cannot write to {workdir}: {checkpoints.last_error}. Free some '
        'space and choose a new --workdir'
      )
    save_config(workdir, config)  # Last: only now has the run begun.
