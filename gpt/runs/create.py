"""A run made of weights from elsewhere: what an import writes.

It is one that training could have left, so that everything else takes it as it
takes any run.
"""

import copy
import dataclasses
import math
import pathlib

from gpt.errors import UserError, explained_writes
from gpt.runs.checkpoint import BEST, LATEST
from gpt.runs.checkpoint_writer import Checkpoints
from gpt.runs.config_file import CONFIG, save_config
from gpt.runs.workdir import lock_workdir, make_workdir
from gpt.training.plateau import Plateau


def check_free(workdir) -> None:
  """Raises UserError where there is a run, or the remains of one."""
  for name in (CONFIG, 'checkpoints', 'tokenizer'):
    if (pathlib.Path(workdir) / name).exists():
      raise UserError(
        f'{workdir} already holds {name}; nothing in it will be overwritten. '
        'Choose a new --workdir'
      )


def create(
  workdir, config, tokenizer, state, best_loss: float | None, **meta
) -> None:
  """Writes a run, its config.json last.

  Args:
    config: ConfigDict, saved as the run's.
    state: TrainState of numpy arrays: the latest checkpoint, and the best too
      if its loss is known (there is no better one).
    best_loss: nats/token, or None.
    meta: more metadata for the checkpoints.

  Raises:
    UserError: the workdir cannot be written to, or is being written to.
  """
  workdir, step = pathlib.Path(workdir), int(state.step)
  plateau = Plateau() if best_loss is None else Plateau(best_loss, step)
  meta = {
    'plateau': dataclasses.asdict(plateau),
    'best_loss': math.inf if best_loss is None else best_loss,
    'validation': '',  # Of what data the loss is, is not known here.
    'elapsed_s': 0.0,
    **meta,
  }
  kinds = (LATEST,) if best_loss is None else (LATEST, BEST)
  make_workdir(workdir)
  with explained_writes(workdir), lock_workdir(workdir):
    tokenizer = copy.copy(tokenizer)
    tokenizer.requested_vocab_size = 0  # It was not this run that asked.
    tokenizer.save(workdir / 'tokenizer')
    checkpoints = Checkpoints(workdir, config.checkpoint.keep)
    saved = all([checkpoints.save(kind, state, meta) for kind in kinds])
    saved = checkpoints.wait() and saved
    checkpoints.close()
    if not saved:
      raise UserError(
        f'cannot write to {workdir}: {checkpoints.last_error}. Free some '
        'space and choose a new --workdir'
      )
    save_config(workdir, config)  # Last: now it is a run.
