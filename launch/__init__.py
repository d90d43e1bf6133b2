"""Commands: thin entry points over gpt and serving."""

import os
import sys
import types


def _quiet_start(
  kind: type[BaseException],
  value: BaseException,
  trace: types.TracebackType | None,
) -> None:
  """Ctrl-C during the first imports, before signals.take_over."""
  if issubclass(kind, KeyboardInterrupt):
    os.write(2, b'\ninterrupted\n')
    os._exit(130)
  sys.__excepthook__(kind, value, trace)


def _is_command() -> bool:
  """Whether this process is a command: `python -m launch.NAME` or `rgpt`.

  With -m, Python imports this package before anything else.
  """
  name = os.path.basename(sys.argv[0]) if sys.argv[:1] else ''
  return name in ('-m', 'rgpt', 'rgpt.exe')


if _is_command():
  sys.excepthook = _quiet_start
  from launch import limits, signals

  signals.take_over()
  limits.check()
