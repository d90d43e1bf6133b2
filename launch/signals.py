"""Ctrl-C ends a command at any moment: exit code 130, no traceback.

An exception would be lost where a library calls Python and ignores what it
raises, and would be shown as a traceback before a command can catch it. So the
handler ends the process itself. Commands with something to save or to stop
(train, chat, serve) have handlers of their own while they do that.
"""

import atexit
import ctypes
import os
import signal
import sys
import types

DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of linux/prctl.h.
HELD = ('SIGINT', 'SIGTERM')
_state = {'taken': False}


def take_over() -> None:
  """Handles SIGINT from now on, unless it is ignored or handled already."""
  default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
  if default and not _state['taken']:
    signal.signal(signal.SIGINT, leave)
    # The first that is registered runs last. After it Python gives signals
    # their default back, and a command that has finished would be killed.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
  _state['taken'] = True
  if hasattr(signal, 'pthread_sigmask'):
    # What `hold` has blocked before an exec.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _numbers())


def give_back() -> None:
  """SIGINT is a KeyboardInterrupt again, in a command that has children."""
  if signal.getsignal(signal.SIGINT) is leave:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def hold() -> None:
  """Holds signals back until `take_over`, in this process or after an exec.

  Python starts with a handler that prints a traceback.
  """
  if hasattr(signal, 'pthread_sigmask'):
    signal.pthread_sigmask(signal.SIG_BLOCK, _numbers())


def _numbers() -> list[int]:
  return [getattr(signal, name) for name in HELD]


def leave(number: int, frame: types.FrameType | None) -> None:
  """Ends the process with 128 + number; removes unfinished files."""
  signal.signal(number, signal.SIG_IGN)
  try:
    if unfinished := sys.modules.get('gpt.unfinished'):
      unfinished.remove_all()
    sys.stdout.flush()  # Fails if the signal came in the middle of a write.
  except Exception:
    pass
  try:
    os.write(2, b'\ninterrupted\n')
  except OSError:
    pass
  os._exit(128 + number)


def end_with_parent(number: int) -> None:
  """In a child before its exec, on Linux: `number` when its parent dies."""
  if sys.platform == 'linux':
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, number)
