"""The command line as it was typed: `rgpt NAME` or `python -m launch.NAME`.

Help, hints and errors are written with the second form; `as_called` turns
them into the first where the user typed that.
"""

import re

# Exit codes, as a shell has them: 2 for misuse, 128 + signal number for SIGINT
# and SIGPIPE.
USAGE_ERROR, INTERRUPTED, BROKEN_PIPE = 2, 130, 141
_COMMAND = re.compile(r'\bpython -m launch\.(?=[a-z])')
_state = {'rgpt': False}


def started_as_rgpt() -> None:
  """From now on commands are named `rgpt NAME`."""
  _state['rgpt'] = True


def command(name: str) -> str:
  """'train' -> 'rgpt train' or 'python -m launch.train'."""
  return as_called(f'python -m launch.{name}')


def as_called(text: str) -> str:
  """`text` with every command in the form in which this one was started."""
  return _COMMAND.sub('rgpt ', text) if _state['rgpt'] else text
