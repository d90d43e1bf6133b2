"""Progress of a run on the console: a line at every eval, and a progress bar.

Only a terminal shows the bar; the lines scroll above it. The same numbers go
to metrics.jsonl.
"""

import collections
import logging
import math
import statistics
import sys
import time
from collections.abc import Iterable, MutableMapping
from typing import Any

import jax
from tqdm import tqdm

from gpt import terminal
from gpt.runs.metrics import Clock, count, duration
from gpt.training.plateau import Plateau

logger = logging.getLogger(__name__)


# The order in which parts of an eval's line are shortened (see terminal.Line).
SHORTEN = (
  'val',
  'time',
  'best',
  'lr',
  'patience',
  'speed',
  'best',
  'speed',
  'time',
  'loss',
)


class Bar(tqdm):
  """A progress bar whose time left is that of the steps after the first.

  The first step compiles. The median of the intervals between steps leaves out
  evals, samples and checkpoints, too.
  """

  def __init__(self, *args, **kwargs) -> None:
    self._last: float | None = None
    self._intervals = collections.deque(maxlen=64)
    super().__init__(*args, **kwargs)

  def step(self) -> None:
    """Another step has been dispatched."""
    now = time.perf_counter()
    if self._last is not None and self.n > self.initial + 1:
      self._intervals.append(now - self._last)
    self._last = now
    self.update()

  @property
  def format_dict(self) -> MutableMapping[str, Any]:
    """The fields of the bar; see tqdm."""
    fields = super().format_dict
    if self._intervals:
      fields['rate'] = 1 / max(statistics.median(self._intervals), 1e-9)
    else:  # A rate of 0 steps is shown as '?'.
      fields['rate'], fields['initial'] = None, fields['n']
    return fields


class Console:
  """Collects the steps since the last eval and reports on them.

  Timing leaves out evals, checkpoints and the first step of a process, which
  compiles.
  """

  def __init__(
    self,
    config: Any,
    clock: Clock,
    first: int,
    losses: Iterable[tuple[float, float]] = (),
  ) -> None:
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
      self._bar = Bar(
        total=config.total_steps,
        initial=first,
        unit='step',
        leave=False,
        dynamic_ncols=True,
      )
    self._losses, self._lr = list(losses), 0.0
    self._steps, self._tokens = 0, 0.0

  def aim_at(self, total_steps: int) -> None:
    """The target has moved."""
    if self._bar is not None:
      self._bar.total = total_steps

  def tick(self) -> None:
    """Another step has been dispatched."""
    if self._bar is not None:
      self._bar.step()

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

  def _line(self, step: int, values: dict, track: Plateau) -> terminal.Line:
    total = self._config.total_steps
    val = f'val {values["val_loss"]:.4f}'
    best = f'best {track.best_loss:.4f}'
    elapsed = f'{duration(values["elapsed_s"])} elapsed'
    parts = {
      'step': [f'step {step}/{total}'],
      'loss': [f'loss {values.get("train_loss", math.nan):.4f}', ''],
      'val': [f'{val} ppl {values["val_ppl"]:.2f}', val],
      'lr': [f'lr {self._lr:.2e}', ''],
      'best': [f'{best} @{track.best_step}', best, ''],
    }
    if 'ms_per_step' in values:
      ms = values['ms_per_step']
      speed = f'{ms:.{0 if ms >= 10 else 1}f} ms/step'
      left = f'{duration((total - step) * ms / 1e3)} left'
      parts['speed'] = [
        f'{speed} {count(values["tokens_per_s"])} tok/s',
        speed,
        '',
      ]
      parts['time'] = [f'{elapsed}, {left}', left, '']
    else:
      parts['time'] = [elapsed, '']
    patience = self._config.opt.plateau_patience
    if patience:
      waited = f'{track.evals_since_best}/{patience}'
      parts['patience'] = [f'patience {waited}', '']
    colors = {'step': 'bold', 'lr': 'dim', 'speed': 'dim', 'time': 'dim'}
    if track.best_step == step:
      colors['val'] = 'green'
    order = [name for name in SHORTEN if name in parts]
    return terminal.Line(parts, order, colors)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()
