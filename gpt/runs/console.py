"""What a run tells the person who watches it.

A line at every eval; in a terminal a progress bar besides, which the lines
scroll above. The same numbers go to metrics.jsonl.
"""

import logging
import math
import sys

import jax
from tqdm import tqdm

from gpt.runs.metrics import Clock, count, duration
from gpt.training.plateau import Plateau

logger = logging.getLogger(__name__)


class Console:
  """Collects the steps since the last eval and reports on them.

  Timing leaves out evals, checkpoints and the first step of a process, which
  compiles.
  """

  def __init__(self, config, clock: Clock, first: int, losses=()):
    """A fresh interval.

    Args:
      config: ConfigDict of the run.
      first: completed steps at the start.
      losses: [(mean, targets)] of the steps since the last eval that an
        earlier process made.
    """
    self._config, self._clock = config, clock
    self._bar = None
    if sys.stderr.isatty() and jax.process_index() == 0:
      self._bar = tqdm(
        total=config.total_steps,
        initial=first,
        unit='step',
        leave=False,
        dynamic_ncols=True,
      )
    self._losses, self._lr = list(losses), 0.0
    self._steps, self._tokens = 0, 0.0

  def tick(self) -> None:
    """Another step has been dispatched."""
    if self._bar is not None:
      self._bar.update()

  def add(self, metrics: dict, timed: bool) -> None:
    """A step has finished; `timed`: the clock has run during it."""
    self._losses.append((metrics['loss'], metrics['tokens']))
    self._lr = metrics['lr']
    if timed:
      self._steps += 1
      self._tokens += metrics['tokens']

  def report(self, step: int, quick: dict, track: Plateau) -> dict:
    """Prints the line of an eval, starts a new interval.

    Args:
      quick: of gpt.training.evaluation.Evaluator, on the validation split.

    Returns:
      The values for metrics.jsonl.
    """
    values = {
      'val_loss': quick['nats_per_token'],
      'val_ppl': quick['ppl'],
      'val_bits_per_byte': quick['bits_per_byte'],
      'best_val_loss': track.best_loss,
      'patience': track.evals_since_best,
      'elapsed_s': self._clock.elapsed(),
    }
    targets = sum(n for _, n in self._losses)
    if targets:
      values['train_loss'] = sum(x * n for x, n in self._losses) / targets
    seconds = self._clock.lap()
    if self._steps and seconds > 0:
      values['ms_per_step'] = 1e3 * seconds / self._steps
      values['tokens_per_s'] = self._tokens / seconds
    self._losses, self._steps, self._tokens = [], 0, 0.0
    logger.info(self._line(step, values, track))
    return values

  def _line(self, step: int, values: dict, track: Plateau) -> str:
    total = self._config.total_steps
    parts = [
      f'step {step}/{total}',
      f'loss {values.get("train_loss", math.nan):.4f}',
      f'val {values["val_loss"]:.4f} ppl {values["val_ppl"]:.2f}',
      f'lr {self._lr:.2e}',
      f'best {track.best_loss:.4f} @{track.best_step}',
    ]
    elapsed = f'{duration(values["elapsed_s"])} elapsed'
    if 'ms_per_step' in values:
      ms = values['ms_per_step']
      left = duration((total - step) * ms / 1e3)
      parts += [
        f'{ms:.{0 if ms >= 10 else 1}f} ms/step '
        f'{count(values["tokens_per_s"])} tok/s',
        f'{elapsed}, {left} left',
      ]
    else:
      parts.append(elapsed)
    patience = self._config.opt.plateau_patience
    if patience:
      parts.append(f'patience {track.evals_since_best}/{patience}')
    return ' | '.join(parts)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()
