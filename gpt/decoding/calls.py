"""Calls of functions in generated text: their grammar, and how they are read.

Which text surrounds a call depends on the model (gpt.tokenizers.tool_format).
"""

import dataclasses
import json
from collections.abc import Sequence

from gpt.decoding.grammars import JSON_OPTIONS, Source, literal
from gpt.tokenizers.tool_format import CallFormat, Tool

MOST_CALLS = 8  # In one reply.
BETWEEN = '\n'
NO_ARGUMENTS = {
  'type': 'object',
  'properties': {},
  'additionalProperties': False,
}


def calls_source(
  tools: Sequence[Tool], form: CallFormat, optional: bool, most: int
) -> Source:
  """A grammar of replies that call functions.

  Args:
    tools: the functions that may be called.
    optional: the reply may be a text instead. Where a call begins with a mark
      such as <tool_call>, a text may come before it, too; elsewhere a text that
      begins with '{' is a call.
    most: calls in one reply.
  """
  mark = form.before.strip() if optional else ''
  rules = []
  for i, tool in enumerate(tools):
    function = tool['function']
    schema = function.get('parameters') or NO_ARGUMENTS
    options = {'x-guidance': {**JSON_OPTIONS, 'lenient': False}}
    opening = form.opening(function['name'])
    rules += [
      f'first_{i}: {literal(opening[len(mark) :])} rest_{i}',
      f'next_{i}: {literal(BETWEEN + opening)} rest_{i}',
      f'rest_{i}: arguments_{i} {literal(form.closing)}',
      f'arguments_{i}: %json {json.dumps({**schema, **options})}',
    ]
  first, after = (
    ' | '.join(f'{name}_{i}' for i in range(len(tools)))
    for name in ('first', 'next')
  )
  more = f' ({after}){{0,{most - 1}}}' if most > 1 else ''
  rules.append(f'calls: ({first}){more}')
  if not optional:
    rules.append('start: calls')
  elif mark:
    rules += [
      'start: TEXT | marked calls',
      f'marked[lazy]: TEXT {literal(mark)}',
      r'TEXT: /(.|\n)*/',
    ]
  else:
    rules += ['start: calls | TEXT', r'TEXT: /([^{](.|\n)*)?/']
  return Source('grammar', '\n'.join(rules), 'tools')


@dataclasses.dataclass
class Piece:
  """New text of a reply.

  Attributes:
    call: number of the call it belongs to; -1: text beside the calls.
    name: of the function, with the first piece of a call; else ''.
    text: of the reply, or of the call's arguments.
  """

  call: int
  name: str
  text: str


class CallReader:
  """Reads calls from a reply that follows `calls_source`, piece by piece.

  Attributes:
    count: calls that have begun.
  """

  def __init__(
    self, names: Sequence[str], form: CallFormat, optional: bool
  ) -> None:
    self._openings = {form.opening(name): name for name in names}
    self._mark = form.before.strip() if optional else ''
    self._closing = form.closing
    self._state = 'text' if optional else 'opening'
    self._buffer = ''
    self._depth = 0
    self._quoted = self._escaped = False
    self.count = 0

  def feed(self, text: str) -> list[Piece]:
    """The pieces that `text` makes certain."""
    self._buffer += text
    pieces: list[Piece] = []
    while self._buffer and self._step(pieces):
      pass
    return pieces

  def finish(self) -> list[Piece]:
    """Returns the text held back; call it when the reply has ended."""
    held, self._buffer = self._buffer, ''
    return [Piece(-1, '', held)] if held and self._state == 'text' else []

  def _step(self, pieces: list[Piece]) -> bool:
    """Reads one part of the buffer; False if it needs more text."""
    match self._state:
      case 'text':
        return self._read_text(pieces)
      case 'opening':
        return self._read_opening(pieces)
      case 'arguments':
        return self._read_arguments(pieces)
    # After a call: what closes it, and what comes before the next.
    begun = self._closing + BETWEEN
    if len(self._buffer) < len(begun):
      return False
    self._buffer = self._buffer[len(begun) :]
    self._state = 'opening'
    return True

  def _read_text(self, pieces: list[Piece]) -> bool:
    buffer, mark = self._buffer, self._mark
    if not mark:
      plain = not buffer.startswith('{')
      self._state = 'opening' if not plain else 'text'
      if plain:
        self._mark = '\0'  # Nothing is a call from here on.
      return True
    at = buffer.find(mark)
    if at < 0:
      # A beginning of the mark may be completed by the next piece.
      ends = range(min(len(mark) - 1, len(buffer)), 0, -1)
      held = next((n for n in ends if mark.startswith(buffer[-n:])), 0)
      at = len(buffer) - held
    if at:
      pieces.append(Piece(-1, '', buffer[:at]))
    self._buffer = buffer[at:]
    if self._buffer.startswith(mark):
      self._state = 'opening'
      return True
    return False

  def _read_opening(self, pieces: list[Piece]) -> bool:
    for opening, name in self._openings.items():
      if self._buffer.startswith(opening):
        self._buffer = self._buffer[len(opening) :]
        pieces.append(Piece(self.count, name, ''))
        self.count += 1
        self._state, self._depth = 'arguments', 0
        return True
    return False

  def _read_arguments(self, pieces: list[Piece]) -> bool:
    end = len(self._buffer)
    for i, c in enumerate(self._buffer):
      if self._quoted:
        self._quoted = self._escaped or c != '"'
        self._escaped = c == '\\' and not self._escaped
      elif c == '"':
        self._quoted = True
      else:
        self._depth += (c in '{[') - (c in '}]')
        if not self._depth and c in '}]':
          self._state, end = 'closing', i + 1
          break
    text, self._buffer = self._buffer[:end], self._buffer[end:]
    last = pieces[-1] if pieces else None
    if last is not None and last.call == self.count - 1:
      last.text += text
    else:
      pieces.append(Piece(self.count - 1, '', text))
    return True
