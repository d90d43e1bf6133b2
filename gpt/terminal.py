"""Lines that fit the width of a terminal, in colour where that is wanted."""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

SEPARATOR = ' | '
RESET = '\x1b[0m'
COLORS = {'bold': '\x1b[1m', 'dim': '\x1b[2m', 'green': '\x1b[1;32m'}


class Line(str):
  """A log line of several parts; on a terminal it can be shortened.

  As a string it is the whole line, which is what files and pipes get.
  """

  parts: Mapping[str, Sequence[str]]
  order: Sequence[str]
  colors: Mapping[str, str]

  def __new__(
    cls,
    parts: Mapping[str, Sequence[str]],
    order: Sequence[str],
    colors: Mapping[str, str] | None = None,
  ) -> 'Line':
    """Joins the longest forms.

    Args:
      parts: {name: its forms, from the longest to the shortest}; '' as the last
        form lets the part be dropped.
      order: names of parts; each one in turn takes its next form until the
        line fits.
      colors: {name: key of COLORS}.
    """
    line = super().__new__(cls, _joined([forms[0] for forms in parts.values()]))
    line.parts, line.order, line.colors = parts, order, colors or {}
    return line

  def fitted(self, width: int, color: bool = False) -> str:
    """At most `width` columns if the order allows; colours take no columns."""
    chosen = dict.fromkeys(self.parts, 0)

    def texts():
      return {name: self.parts[name][i] for name, i in chosen.items()}

    for name in self.order:
      if len(_joined(texts().values())) <= width:
        break
      chosen[name] = min(chosen[name] + 1, len(self.parts[name]) - 1)
    return _joined(
      f'{COLORS[self.colors[name]]}{text}{RESET}'
      if color and text and name in self.colors
      else text
      for name, text in texts().items()
    )


def _joined(texts: Iterable[str]) -> str:
  return SEPARATOR.join(filter(None, texts))


def rendered(text: object, stream: TextIO) -> str:
  """The text to write for a line: all of it, unless a terminal is narrower."""
  if not isinstance(text, Line):
    return str(text)
  color = wants_color(stream)
  if not stream.isatty():
    return text.fitted(len(text), color)
  # The last column stays free: some terminals wrap when it is written.
  columns = shutil.get_terminal_size((80, 24)).columns
  return text.fitted(columns - 1, color)


def wants_color(stream: TextIO) -> bool:
  """True on a terminal; NO_COLOR, FORCE_COLOR and TERM=dumb are respected."""
  if os.environ.get('NO_COLOR'):  # See no-color.org.
    return False
  if os.environ.get('FORCE_COLOR'):
    return True
  return stream.isatty() and os.environ.get('TERM') != 'dumb'
