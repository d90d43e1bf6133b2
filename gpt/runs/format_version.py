"""The version number in a run's files."""

import os
from typing import Any

from gpt.errors import UserError, quoted

# Raised when older versions would misread the file. 0.1 wrote no number.
FORMAT_VERSION = 1
# Of checkpoints that several processes wrote.
DIVIDED_VERSION = 2
FORMAT_KEY = 'format_version'


class NewerFormat(UserError):
  """A file that a newer version of rgpt wrote."""


def check_version(
  version: Any, path: str | os.PathLike, newest: int = FORMAT_VERSION
) -> None:
  """Raises NewerFormat if `version` is above `newest`, which can be read."""
  if type(version) is int and version <= newest:
    return
  raise NewerFormat(
    f'{path} has {FORMAT_KEY} {quoted(version)}, and this version of rgpt '
    f'reads up to {newest}: upgrade rgpt (pip install --upgrade rgpt)'
  )
