"""How many programs this process has compiled."""

import functools
import threading
from typing import Any

import jax

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
