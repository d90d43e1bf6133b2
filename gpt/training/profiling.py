"""Profiling: a trace of a few training steps."""

import logging
import os
from typing import Any

import jax

logger = logging.getLogger(__name__)

# Steps of this process before the trace (compilation, warm-up) and in it.
SKIP, STEPS = 3, 5


class Profiler:
  """Traces STEPS steps for TensorBoard or https://ui.perfetto.dev.

  Args:
    directory: where the trace is written.
    first_step: number of steps completed before this process.
  """

  def __init__(self, directory: str | os.PathLike, first_step: int) -> None:
    self._directory = str(directory)
    self._start = first_step + 1 + SKIP
    self._running = False

  def before(self, step: int) -> None:
    """Starts the trace if it is due; call before dispatching a step."""
    if step == self._start:
      jax.profiler.start_trace(self._directory)
      self._running = True

  def after(self, step: int, state: Any) -> None:
    """Ends the trace if it is due; call with the dispatched step's result."""
    if self._running and step == self._start + STEPS - 1:
      jax.block_until_ready(state)
      self.close()

  def close(self) -> None:
    """Writes the trace; shorter if the run ends early."""
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
      logger.info(f'profile written to {self._directory}')
