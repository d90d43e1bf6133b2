"""The one exception a user's own mistake raises.

It exists so that launchers can tell "you gave something we cannot use" (one
clear line on stderr, exit code 2) from a fault of ours (a traceback).
"""

import contextlib


class UserError(ValueError):
  """What was given, what is allowed and what to change, in plain words."""


@contextlib.contextmanager
def explained_writes(path):
  """Turns a place that cannot be written to into a UserError that names it."""
  try:
    yield
  except OSError as e:
    raise UserError(f'cannot write to {path}: {e.strerror or e}') from e
