"""The clock of a run with a budget: it moves the target, and writes that down.

A plan only predicts the number of steps. After the first real steps the clock
sets it from their time, and later moves it wherever the run would end late (the
decay of the learning rate then begins earlier) or much too early. Every target
is recorded with the step at which it was set, so a run that resumes sets the
same ones at the same steps. Time spent stopped does not count.
"""

import collections
import logging
import math
import os
import pathlib
import time
from typing import Any

import jax

from gpt.planning import law, recipe
from gpt.planning.entropy import Entropy
from gpt.planning.record import MOST_TARGETS, Record, Target
from gpt.runs.metrics import Clock, duration

logger = logging.getLogger(__name__)

# A run ends at this part of its budget: what follows the last measurement, the
# end of the process included, varies.
AIM = 0.98
# Steps and part of the budget to measure before the target is first set.
FIRST_STEPS, FIRST_SHARE, FIRST_SECONDS = 4, 0.02, 3.0
# The target moves if the run would miss its end by this part of the budget,
LATE, EARLY = 0.01, 0.03
# the newest target is older than this part,
PATIENCE = 0.03
# and, to end later, if at least this part is left.
WORTH_RAISING = 0.05
# The window of recent steps that predicts the remaining ones: the shortest of a
# number of seconds, a share of the budget, and a share of the time left. Shared
# machines slow down for seconds at a time, which should not move a distant end.
RECENT_S, RECENT_SHARE, RECENT_OF_LEFT = 60.0, 0.05, 0.25
# Of a forward pass, relative to a training step, until an eval was timed.
FORWARD = 0.4
# A step that takes that long, with so little of it computing, was stopped.
STOPPED_S, STOPPED_STEPS, IDLE = 3.0, 20, 0.05
# Seconds between saves of the latest state.
SAVE_S = 300.0
# From this part of the steps on, losses of the run itself correct the law. The
# rate has yet to fall then: by the median of ten runs of 1 and 5 minutes, the
# loss is above that of a run that ends here by EXCESS at HALFWAY, and by less
# and less until the end.
HALFWAY, EXCESS = 0.5, 0.04


def evals_of(seconds: float) -> int:
  """How often a run of that many seconds is evaluated, about."""
  for most, evals in (30, 5), (300, 6), (1200, 10):
    if seconds < most:
      return evals
  return 20


class BudgetClock:
  """Keeps a run within its budget.

  Attributes:
    record: of the run; its targets grow.
  """

  def __init__(
    self,
    record: Record,
    workdir: str | os.PathLike,
    began: float,
    end_s: float = 1.0,
  ) -> None:
    """A clock that stands still until `start`.

    Args:
      record: planned, or read from the workdir.
      workdir: of the run.
      began: time.perf_counter() at the start of the process.
      end_s: seconds from the last full pass to the end of the process.
    """
    self.record, self._workdir = record, pathlib.Path(workdir)
    self._began, self._end_s = began, end_s
    self._recent: collections.deque[tuple[float, int]] = collections.deque()
    self._trained = 0.0  # Seconds in steps, without the first of the process.
    self._lap: float | None = None
    self._cpu = 0.0
    self._paused, self._compiled = 0.0, False
    # In steps, whose time follows the machine's: an eval with what belongs to
    # it, and a token of a forward pass. 0: not measured.
    self._pause_steps = self._token_steps = 0.0
    self._finished = 0

  def start(self, elapsed: float | None) -> Clock:
    """The clock of the run.

    Args:
      elapsed: seconds until the checkpoint from which the run resumes; None
        for a run that starts: what passed since the process began counts.
    """
    if elapsed is None:
      elapsed = time.perf_counter() - self._began
    self._clock = Clock(elapsed)
    return self._clock

  def begin(self, step: int, total_steps: int) -> int:
    """The target in force for a process that starts at `step`; it is written.

    Args:
      total_steps: of the config. Another one than the newest target was given
        by the user, and from then on the clock leaves it alone.
    """
    record = self.record
    if total_steps != record.last.total_steps:
      earlier = [x for x in record.targets if x.step < step]
      record.targets[:] = [*earlier, Target(step, total_steps, 'given')]
      record.end.clear()
    record.write(self._workdir)
    return record.target_at(step).total_steps

  def pause(self, finished: int) -> None:
    """All steps have finished; an eval or a save begins."""
    self._add(finished)
    self._finished = finished
    self._lap, self._paused = None, time.perf_counter()

  def resume(self, evaluated: bool) -> None:
    """Steps are timed from now on; `evaluated`: after an eval."""
    self._lap, self._cpu = time.perf_counter(), time.process_time()
    if evaluated and (step_s := self.step_seconds()):
      self._pause_steps = (self._lap - self._paused) / step_s

  def evaluated(self, seconds: float, tokens: int, bits: float) -> None:
    """A quick eval took so long, the first of a process to compile.

    Args:
      tokens: that have a loss.
      bits: per byte, as measured.
    """
    if self._compiled and (step_s := self.step_seconds()):
      read = tokens / self._share_trained()
      self._token_steps = seconds / max(read, 1) / step_s
    self._compiled = True
    self._foresee(bits)

  def _share_trained(self) -> float:
    """Of the tokens of conversations, those with a loss; of text, all."""
    try:
      share = float(self.record.plan['text']['share_trained'])
    except (KeyError, TypeError, ValueError):
      return 1.0  # As in `expected`.
    return share if 0 < share <= 1 else 1.0

  def _foresee(self, bits: float) -> None:
    """Records, halfway, what a run with this loss will reach."""
    total, now = self.record.last.total_steps, self._finished
    known = self.record.plan.get('halfway')
    if known or not HALFWAY * total <= now < total or not math.isfinite(bits):
      return
    expected, here = self.expected(total), self.expected(now)
    if not expected or not here:
      return
    excess = EXCESS * (1 - now / total) / (1 - HALFWAY)
    foreseen = expected * bits / here / (1 + excess)
    self.record.plan['halfway'] = {'step': now, 'bits_per_byte': foreseen}
    self.record.write(self._workdir)
    logger.info(f'halfway; expected by its losses: {foreseen:.3f} bits/byte')

  def _add(self, finished: int) -> None:
    """Counts the time since the last call; `finished`: steps of the run."""
    if self._lap is None:
      return
    now, cpu = time.perf_counter(), time.process_time()
    seconds = now - self._lap
    usual = self.step_seconds() or math.inf
    if (
      seconds > max(STOPPED_S, STOPPED_STEPS * usual)
      and cpu - self._cpu < IDLE * seconds
      and jax.default_backend() == 'cpu'
    ):
      logger.info(f'stopped for {seconds:.0f} s, which do not count')
      self._clock.skip(seconds - usual)
      seconds = usual
    self._trained += seconds
    self._lap, self._cpu = now, cpu
    self._recent.append((self._trained, finished))
    budget = self.record.seconds
    left = max(0.0, budget - self._clock.elapsed())
    recent = min(RECENT_S, RECENT_SHARE * budget, RECENT_OF_LEFT * left)
    while len(self._recent) > 8 and (
      self._trained - self._recent[1][0] > recent
    ):
      self._recent.popleft()

  def step_seconds(self) -> float:
    """The mean seconds of recent steps; 0 before there are any."""
    if len(self._recent) < 2:
      return 0.0
    (began, first), (ended, last) = self._recent[0], self._recent[-1]
    return (ended - began) / max(last - first, 1)

  def after(self, step: int, config: Any, val_tokens: int) -> Target | None:
    """The target that is set after `step` was dispatched, if one is.

    Args:
      step: the one before it has finished.
      config: ConfigDict of the run, with the target in force.
      val_tokens: that the full pass at the end will read.
    """
    self._add(step - 1)
    record = self.record
    if step <= record.last.step:  # A run that resumed repeats what was done.
      return next((x for x in record.targets if x.step == step), None)
    if record.end or record.last.why == 'given':
      return None
    found = self._moved(step, config, val_tokens)
    if found and len(record.targets) < MOST_TARGETS:
      record.targets.append(found)
      record.write(self._workdir)
      return found
    return None

  def _moved(self, step: int, config: Any, val_tokens: int) -> Target | None:
    """The target after `step`, if another one is better."""
    record, elapsed = self.record, self._clock.elapsed()
    finished, total = step - 1, config.total_steps
    step_s, seconds = self.step_seconds(), record.seconds
    first = record.last.why == 'planned'
    if first:
      enough = min(FIRST_SHARE * seconds, FIRST_SECONDS)
      if len(self._recent) <= FIRST_STEPS or self._trained < enough:
        return None
      every = max(step + 1, math.ceil(total / evals_of(seconds)))
    else:
      if elapsed - record.last.elapsed_s < PATIENCE * seconds:
        return None
      every = config.eval.every
    if not step_s:
      return None
    end_s = self.end_seconds(config, step_s, val_tokens)
    pause_s = self._pause_steps * step_s or self.eval_seconds(config, step_s)
    left = AIM * seconds - elapsed - end_s - pause_s
    share = step_s + pause_s / every
    wanted = max(step + 1, finished + int(left / share))
    slack = left - (total - finished) * share
    why = 'measured' if first else 'late' if slack < 0 else 'early'
    if why == 'late' and slack > -LATE * seconds:
      return None
    if why == 'early' and (
      slack < EARLY * seconds or left < WORTH_RAISING * seconds
    ):
      return None
    if wanted == total and not first:
      return None
    expected = self.expected(wanted)
    logger.info(_describe(why, step, total, wanted, step_s, expected))
    return Target(step, wanted, why, elapsed, step_s, expected)

  def expected(self, total_steps: int) -> float:
    """Bits per byte after that many steps of the planned model; 0: unknown."""
    try:
      now, text = self.record.plan['now'], self.record.plan['text']
      width, depth = (
        now['options'][key] for key in ('model.n_embd', 'model.n_layer')
      )
      share = text['share_trained']
      seen = now['tokens_seen'] / now['steps'] * total_steps
      return law.bits_per_byte(
        recipe.block_parameters(width, depth),
        share * seen,
        share * now['tokens_seen'] / now['passes'],
        now['bytes_per_token'],
        now['vocab'],
        Entropy(**text['entropy']),
      )
    except (KeyError, TypeError, ValueError, ArithmeticError):
      return 0.0  # The facts of plan.json are for readers, who may edit them.

  def intervals(self, target: Target) -> dict[str, int]:
    """Steps between evals and saves that suit the first measured target.

    {} for later ones, and without what was given. No eval was due yet, so a
    run that starts over with them repeats this one.
    """
    if target.why != 'measured':
      return {}
    every = math.ceil(target.total_steps / evals_of(self.record.seconds))
    saves = int(SAVE_S / max(target.step_s, 1e-6))
    found = {
      'eval.every': max(every, target.step + 1),
      'checkpoint.every': max(
        min(math.ceil(target.total_steps / 2), saves), target.step + 1
      ),
    }
    return {k: x for k, x in found.items() if k in self.record.chosen}

  def eval_seconds(self, config: Any, step_s: float) -> float:
    """Seconds of a quick eval."""
    tokens = config.eval.windows * config.model.block_size
    return tokens * self._forward_seconds(config, step_s)

  def end_seconds(self, config: Any, step_s: float, val_tokens: int) -> float:
    """Seconds from the last eval to the end of the process."""
    full = config.eval.full_at_end
    tokens = val_tokens if full else 0
    return self._end_s + tokens * self._forward_seconds(config, step_s)

  def _forward_seconds(self, config: Any, step_s: float) -> float:
    """Seconds to evaluate a token."""
    tokens = config.batch_size * config.model.block_size
    return step_s * (self._token_steps or FORWARD / tokens)

  def finish(self, step: int, final: dict) -> None:
    """Records how the run ended, and logs what it used of its budget.

    Args:
      final: {'final': values, 'best': values} of the full passes, if any.
    """
    used = self._clock.elapsed()
    measured = {
      which: values['bits_per_byte'] for which, values in final.items()
    }
    self.record.end = {
      'step': step,
      'elapsed_s': used,
      'bits_per_byte': measured,
    }
    self.record.write(self._workdir)
    left = self.record.seconds - used
    told = f'{abs(left):.1f} s {"left" if left >= 0 else "too late"}'
    logger.info(f'used {duration(used)} of {self.record.budget}: {told}')


def _describe(
  why: str, step: int, total: int, wanted: int, step_s: float, expected: float
) -> str:
  speed = f'{1e3 * step_s:.3g} ms/step'
  promise = f'; expected now: {expected:.3f} bits/byte' if expected else ''
  if why == 'measured':
    return f'step {step}: {speed} measured, total_steps is {wanted:,}{promise}'
  reason = 'slower, the decay begins earlier' if why == 'late' else 'faster'
  return (
    f'step {step}: {speed}, {reason}: total_steps {total:,} -> {wanted:,}'
    f'{promise}'
  )
