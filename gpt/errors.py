"""The one exception a user's own mistake raises.

It exists so that launchers can tell "you gave something we cannot use" (one
clear line on stderr, exit code 2) from a fault of ours (a traceback).
"""


class UserError(ValueError):
  """What was given, what is allowed and what to change, in plain words."""
