"""How the processes of a run find each other, and how long they wait."""

import contextlib
import inspect
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gpt import logs
from gpt.errors import LOST_PEER, UserError

logger = logging.getLogger(__name__)

POLL_S, POLL_STEPS = 2.0, 10  # See Poll.
EVERY_S = 10  # Seconds between lines about the wait.
# JAX's own limits, which must not come first: of the start beyond ours, and of
# the end, where the others wait for the files that process 0 writes.
LATER_S, END_S = 60, 24 * 3600
HOW = (
  'Start each process with JAX_COORDINATOR_ADDRESS=HOST:PORT, '
  'JAX_NUM_PROCESSES=N and JAX_PROCESS_ID=0 .. N-1 in its environment'
)


class Poll:
  """Asks all processes now and then whether one of them wants to stop.

  Every two seconds or so: a collective at each step would slow quick steps
  down, and a node that is preempted has no time for ten slow ones.
  """

  def __init__(self) -> None:
    self._next = 0
    self._asked_at = 0, time.monotonic()  # Step and time.

  def any(self, flag: bool, step: int, now: bool) -> bool:
    """Whether `flag` is set on any process; the same answer in all of them.

    All must call it with the same step and `now`.

    Args:
      now: ask at this step; else False is the answer between questions.
    """
    if not now and step < self._next:
      return False
    (last, then), time_now = self._asked_at, time.monotonic()
    seconds = (time_now - then) / max(1, step - last)
    every = np.asarray([flag, seconds], np.float32)
    flags, slowest = np.max(multihost_utils.process_allgather(every), axis=0)
    # All compute the same next step from the same numbers.
    self._next = step + int(np.clip(POLL_S / max(slowest, 1e-3), 1, POLL_STEPS))
    self._asked_at = step, time_now
    return bool(flags)


def join(parallel: Mapping[str, Any]) -> None:
  """Connects the processes of a run; call it before anything else uses JAX.

  JAX finds the coordinator by itself on Slurm, Kubernetes, Open MPI and TPU
  pods. Elsewhere, start each process with JAX_COORDINATOR_ADDRESS=HOST:PORT
  (of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID in its environment.

  Logs a line every 10 s while others are missing. If they are after
  `parallel.join_s`, the process ends: nothing else gets it out of JAX's wait.

  Args:
    parallel: `config.parallel`; reads `join_s` and `heartbeat_s`.

  Raises:
    UserError: no coordinator was found, or it cannot be reached.
  """
  number = os.environ.get('JAX_NUM_PROCESSES')
  index = os.environ.get('JAX_PROCESS_ID')
  limit = parallel.get('join_s', 300)
  # XLA:CPU needs a collectives library; jax 0.5 does not choose one itself.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  # Not news: "Connecting to JAX distributed service".
  logging.getLogger('jax._src.distributed').setLevel(logging.WARNING)
  # Its handler of SIGTERM would come before ours.
  with contextlib.suppress(AttributeError):
    jax.config.update('jax_enable_preemption_service', False)
  options = {
    'num_processes': int(number) if number else None,
    'process_id': int(index) if index else None,
    'initialization_timeout': limit + LATER_S,
    'heartbeat_timeout_seconds': parallel.get('heartbeat_s', 15),
    'shutdown_timeout_seconds': END_S,
  }
  known = inspect.signature(jax.distributed.initialize).parameters
  options = {name: x for name, x in options.items() if name in known}
  try:
    _wait_for(lambda: jax.distributed.initialize(**options), limit)
  except (ValueError, RuntimeError) as e:
    raise UserError(
      f'parallel.distributed: cannot connect the processes of the run ({e}). '
      f'{HOW}'
    ) from e


def _wait_for(connect: Callable[[], None], limit: int) -> None:
  """Runs connect(), says how long it takes, and ends the process at the limit.

  In a thread: C++ waits there, and Ctrl-C has to be heard.
  """
  results: list[Exception | None] = []

  def run() -> None:
    try:
      connect()
    except Exception as e:
      results.append(e)
    else:
      results.append(None)

  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  for waited in range(1, limit + 1):
    thread.join(1.0)
    if results:
      break
    if waited % EVERY_S == 0 and waited < limit:
      with logs.shown_by_default():
        logger.info(f'waiting for {_missing()}: {waited} s of {limit} s')
  else:
    text = (
      f'error: parallel.distributed: {_missing()} did not come within {limit} '
      f's. {HOW}; --config.parallel.join_s=N waits longer'
    )
    print(text, file=sys.stderr, flush=True)
    os._exit(LOST_PEER)
  if error := results[0]:
    raise error


def _missing() -> str:
  """The processes that this one waits for, as far as it can know."""
  address = os.environ.get('JAX_COORDINATOR_ADDRESS', '')
  number = os.environ.get('JAX_NUM_PROCESSES', '')
  others = f'the other processes of {number}' if number else 'other processes'
  host, _, port = address.rpartition(':')
  if not port.isdecimal() or os.environ.get('JAX_PROCESS_ID') == '0':
    return others
  try:
    socket.create_connection((host.strip('[]'), int(port)), timeout=1).close()
  except OSError as e:
    reason = e.strerror or str(e)
    return f'process 0 at {address}, which cannot be reached ({reason})'
  return f'{others} (process 0 is there)'
