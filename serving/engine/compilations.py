"""How many programs this process has compiled, and compiles."""

import functools
import logging
import threading
from typing import Any

import jax

log = logging.getLogger('rgpt.serve')

COMPILE_EVENT = '/jax/core/compile/backend_compile_duration'


class CompileCount:
  """Counts this process's compilations from its creation on."""

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self.value = 0
    jax.monitoring.register_event_duration_secs_listener(self._listen)

  def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
    if event == COMPILE_EVENT:
      with self._lock:
        self.value += 1


@functools.cache
def compile_count() -> CompileCount:
  """The only counter of the process: JAX never drops a listener."""
  return CompileCount()


def log_progress(done: int, total: int, seconds: float) -> None:
  """Logs that compilation is under way, and that it is worth waiting for."""
  cached = jax.config.jax_compilation_cache_dir
  later = '; later starts reuse what is compiled now' if cached else ''
  log.info(
    'compiling: %d of %d programs after %.0f s%s', done, total, seconds, later
  )
