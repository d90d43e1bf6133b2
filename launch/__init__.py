"""Commands: thin entry points over gpt and serving."""

import sys
import types


def _quiet_interrupt(
  kind: type[BaseException],
  value: BaseException,
  trace: types.TracebackType | None,
) -> None:
  """Ctrl-C during the imports of a command, before `cli.run` can catch it."""
  if issubclass(kind, KeyboardInterrupt):
    print('\ninterrupted', file=sys.stderr)
  else:
    sys.__excepthook__(kind, value, trace)


if sys.argv[:1] == ['-m']:  # `python -m launch.NAME` imports this package.
  sys.excepthook = _quiet_interrupt
