"""A trace of a few training steps, to see where their time goes."""

import logging

import jax

logger = logging.getLogger(__name__)

# Steps of this process before the trace (compiling, warming up) and in it.
SKIP, STEPS = 3, 5


class Profiler:
  """Writes W/profile, for TensorBoard or https://ui.perfetto.dev."""

  def __init__(self, directory, first_step: int):
    self._directory = str(directory)
    self._start = first_step + 1 + SKIP
    self._running = False

  def before(self, step: int) -> None:
    """Call before a step is started."""
    if step == self._start:
      jax.profiler.start_trace(self._directory)
      self._running = True

  def after(self, step: int, state) -> None:
    """Call after a step was started; `state` is its result."""
    if self._running and step == self._start + STEPS - 1:
      jax.block_until_ready(state)
      self.close()

  def close(self) -> None:
    """Ends the trace; a run that ends earlier has a shorter one."""
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
      logger.info(f'profile of {STEPS} steps written to {self._directory}')
