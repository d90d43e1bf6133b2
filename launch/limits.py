"""Limits of the shell (ulimit) under which no command can work.

Below them libraries abort with pages of C++ frames that no handler can catch.
"""

import os
import sys

FILES, WANTED_FILES = 64, 1024
# Address space that JAX takes before it computes anything: for itself, and for
# the stacks and heaps of the threads of each core. Measured with jax 0.12.
BASE_BYTES, CORE_BYTES = 2 << 30, 128 << 20


def check() -> None:
  """Exits with one line if a limit is too low; raises a soft one if it can."""
  try:
    import resource
  except ImportError:  # Windows
    return
  unlimited = resource.RLIM_INFINITY
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft != unlimited and soft < WANTED_FILES:
    soft = WANTED_FILES if hard == unlimited else min(hard, WANTED_FILES)
    try:
      resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    except (OSError, ValueError):
      soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES:
      _refuse(f'{soft} open files', f'{FILES}', 'ulimit -n 1024')
  space, _ = resource.getrlimit(resource.RLIMIT_AS)
  needed = BASE_BYTES + CORE_BYTES * (os.cpu_count() or 1)
  if space != unlimited and space < needed:
    _refuse(
      f'{space / 2**30:.2f} GiB of address space',
      f'{needed / 2**30:.2f} GiB',
      'ulimit -v unlimited',
    )


def _refuse(given: str, needed: str, change: str) -> None:
  print(
    f'error: this shell allows {given}, and at least {needed} are needed: '
    f'{change}',
    file=sys.stderr,
  )
  sys.exit(2)
