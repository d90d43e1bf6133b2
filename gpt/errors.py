"""The exception for a mistake the user can fix.

Launchers print it as one clear line with exit code 2; any other exception is a
bug in rgpt and keeps its traceback.
"""

import contextlib
import os
from collections.abc import Iterator


class UserError(ValueError):
  """Says what was given, what is allowed and what to change."""


@contextlib.contextmanager
def explained_writes(path: str | os.PathLike) -> Iterator[None]:
  """Turns an OSError into a UserError that names the path."""
  try:
    yield
  except OSError as e:
    raise UserError(f'cannot write to {path}: {e.strerror or e}') from e
