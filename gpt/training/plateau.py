"""ReduceLROnPlateau and early stopping, decided at eval time on the host.

The state is a few numbers in the checkpoint's metadata, so a resumed run keeps
its patience and its best loss.
"""

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class Plateau:
  """Best loss and patience.

  Attributes:
    best_loss: lowest validation loss so far, nats/token.
    best_step: completed steps at that eval; -1 before any eval.
    evals_since_best: evals without a new best since then or the last cut.
    reductions: cuts of the learning rate so far.
    stopped: whether the run has ended early.
  """

  best_loss: float = math.inf
  best_step: int = -1
  evals_since_best: int = 0
  reductions: int = 0
  stopped: bool = False


def update(
  plateau: Plateau, opt: Any, val_loss: float, step: int
) -> tuple[Plateau, str]:
  """The state after an eval, and a message to log ('' if nothing happened).

  Args:
    opt: `config.opt` (plateau_patience, plateau_max_reductions).
  """
  if val_loss < plateau.best_loss:
    return dataclasses.replace(
      plateau, best_loss=val_loss, best_step=step, evals_since_best=0
    ), ''
  waited = plateau.evals_since_best + 1
  plateau = dataclasses.replace(plateau, evals_since_best=waited)
  if not opt.plateau_patience or waited < opt.plateau_patience:
    return plateau, ''
  if plateau.reductions >= opt.plateau_max_reductions:
    return dataclasses.replace(plateau, stopped=True), (
      f'early stop at step {step}: no new best in {waited} evals after '
      f'{plateau.reductions} reductions of the learning rate (best '
      f'{plateau.best_loss:.4f} at step {plateau.best_step})'
    )
  plateau = dataclasses.replace(
    plateau, evals_since_best=0, reductions=plateau.reductions + 1
  )
  return plateau, (
    f'plateau: no new best in {waited} evals; peak learning rate x '
    f'{opt.plateau_factor} (reduction {plateau.reductions} of '
    f'{opt.plateau_max_reductions})'
  )


def judge_again(plateau: Plateau, val_loss: float, step: int) -> Plateau:
  """The state after the validation data has changed.

  Args:
    val_loss: of the weights of `step` on the new data; nan if it has no
      targets.
  """
  best = val_loss if math.isfinite(val_loss) else math.inf
  return dataclasses.replace(
    plateau, best_loss=best, best_step=step, evals_since_best=0
  )


def lr_scale(plateau: Plateau, opt: Any) -> float:
  """Multiplier of the peak learning rate: plateau_factor ** reductions."""
  return opt.plateau_factor**plateau.reductions
