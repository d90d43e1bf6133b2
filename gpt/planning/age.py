"""How long this process has been running: a budget counts from its start."""

import os
import time

_imported = time.perf_counter()


def process_age() -> float:
  """Seconds since this process started; on Linux to 1/100 s.

  Elsewhere: since this module was imported.
  """
  try:
    with open('/proc/self/stat', encoding='ascii', errors='replace') as f:
      fields = f.read().rpartition(')')[2].split()
    started = int(fields[19]) / os.sysconf('SC_CLK_TCK')
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
  except (OSError, AttributeError, ValueError, IndexError):
    return time.perf_counter() - _imported
