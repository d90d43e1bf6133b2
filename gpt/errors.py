"""The exception for a mistake the user can fix.

Launchers print it as one clear line with exit code 2; any other exception is a
bug in rgpt and keeps its traceback.
"""

import contextlib
import os
import re
import reprlib
from collections.abc import Iterator
from typing import Any

# Exit code of a process that has lost another one of its run, or has not found
# it in time (EX_TEMPFAIL of sysexits.h): the same command goes on.
LOST_PEER = 75
MOST_QUOTED = 200  # Characters of a file that one message may quote.


# What a terminal obeys, but for line ends: control characters, and marks that
# change the direction of text.
OBEYED = re.compile('[\0-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]')


class UserError(ValueError):
  """Says what was given, what is allowed and what to change.

  As a string it is safe to print: names in damaged files may hold anything.
  """

  def __str__(self) -> str:
    return OBEYED.sub(lambda c: repr(c[0])[1:-1], super().__str__())


def quoted(value: Any) -> str:
  """`value` as Python source, shortened; safe to print on a terminal."""
  short = reprlib.Repr()
  short.maxstring = short.maxother = short.maxlong = MOST_QUOTED
  text = short.repr(value)
  return text if len(text) <= MOST_QUOTED else f'{text[: MOST_QUOTED - 3]}...'


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
  """Puts the name of a file before the message of a UserError."""
  try:
    yield
  except UserError as e:
    raise UserError(f'{path}: {e}') from e


@contextlib.contextmanager
def explained_writes(path: str | os.PathLike) -> Iterator[None]:
  """Turns an OSError into a UserError that names the path."""
  try:
    yield
  except OSError as e:
    raise UserError(f'cannot write to {path}: {e.strerror or e}') from e
