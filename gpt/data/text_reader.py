"""Reads text files in bounded memory and repairs them.

Callers get str with '\\n' line ends, in blocks that end at a line. Every repair
is counted, so it can be logged.
"""

import codecs
import dataclasses
from collections.abc import Iterable, Iterator

from gpt.data.file_kinds import check_no_hole, check_text
from gpt.data.sources import Source
from gpt.errors import UserError
from gpt.tokenizers.base import iter_lines

READ_BYTES = 1 << 20
# A longer line is encoded in pieces of this many characters.
MAX_LINE_CHARS = 1 << 20
# A line that is a document is encoded at once, in up to 200 bytes a character.
MAX_DOCUMENT_CHARS = 1 << 22


@dataclasses.dataclass
class TextStats:
  """Counts that reading collects.

  Attributes:
    bytes: bytes read.
    crlf, bom, invalid_utf8: repairs of each kind.
    trimmed, skipped: conversations, see gpt/data/conversations.py.
    eos_marks: occurrences of EOS in a text read without a separator.
  """

  bytes: int = 0
  crlf: int = 0
  bom: int = 0
  invalid_utf8: int = 0
  trimmed: int = 0
  skipped: int = 0
  eos_marks: int = 0

  def add(self, other: 'TextStats') -> None:
    """Adds the counts of another part of the text."""
    for name, count in dataclasses.asdict(other).items():
      setattr(self, name, getattr(self, name) + count)

  def repairs(self) -> str:
    """The repairs in words; '' if the text was clean."""
    parts = []
    if self.crlf:
      parts.append(f'converted {self.crlf:,} CRLF line ends to LF')
    if self.bom:
      parts.append(f'removed {self.bom:,} byte-order mark(s)')
    if self.invalid_utf8:
      parts.append(
        f'replaced {self.invalid_utf8:,} invalid UTF-8 sequences by U+FFFD'
      )
    return '; '.join(parts)


def iter_text(source: Source, stats: TextStats) -> Iterator[str]:
  """Yields the text of one source in chunks; counts repairs in `stats`.

  CRLF becomes LF, a leading byte-order mark is removed, and invalid UTF-8
  becomes U+FFFD.

  Raises:
    UserError: the file cannot be read, is UTF-16 or UTF-32, or is no text.
  """
  decoder = codecs.getincrementaldecoder('utf-8')('replace')
  raw_tail, held, replaced, genuine = b'', '', 0, 0
  first = not source.offset
  # Blocks of a file are cut where they would be cut in the whole file.
  size = READ_BYTES - source.offset % READ_BYTES
  with source.open() as f:
    while True:
      raw = f.read(size)
      size = READ_BYTES
      if first:
        check_text(source.name, raw)
      check_no_hole(source.name, raw)
      if first and raw[:2] in (b'\xff\xfe', b'\xfe\xff'):
        raise UserError(
          f'{source.name} looks like UTF-16; only UTF-8 is read. Convert it: '
          f'iconv -f UTF-16 -t UTF-8 {source.name} > text.txt'
        )
      text = held + decoder.decode(raw, final=not raw)
      stats.bytes += len(raw)
      # A U+FFFD that the file itself contains is not a repair.
      genuine += (raw_tail + raw).count(b'\xef\xbf\xbd')
      raw_tail = (raw_tail + raw)[-2:]
      replaced += text.count('\ufffd', len(held))
      if first and text:
        first = False
        if text[0] == '\ufeff':
          text = text[1:]
          stats.bom += 1
      held = ''
      if raw and text.endswith('\r'):
        text, held = text[:-1], '\r'
      if '\r\n' in text:
        stats.crlf += text.count('\r\n')
        text = text.replace('\r\n', '\n')
      if text:
        yield text
      if not raw:
        break
  stats.invalid_utf8 += replaced - genuine


def iter_blocks(chunks: Iterable[str], keep_whole: str = '') -> Iterator[str]:
  """Regroups chunks into blocks that end at line ends.

  A line longer than MAX_LINE_CHARS is cut, but never inside `keep_whole`,
  whose first character must not occur in it again.
  """
  carry = ''
  for chunk in chunks:
    end = chunk.rfind('\n') + 1
    if end:
      yield carry + chunk[:end]
      carry = chunk[end:]
    else:
      carry += chunk
    while len(carry) > MAX_LINE_CHARS:
      cut = MAX_LINE_CHARS
      if keep_whole:
        at = carry.rfind(keep_whole[0], cut - len(keep_whole) + 1, cut)
        if at > 0 and keep_whole.startswith(carry[at : at + len(keep_whole)]):
          cut = at
      yield carry[:cut]
      carry = carry[cut:]
  if carry:
    yield carry


def iter_whole_lines(
  source: Source, stats: TextStats
) -> Iterator[tuple[int, str]]:
  """Yields (line number from 1, line without '\\n').

  Raises:
    UserError: a line of more than MAX_DOCUMENT_CHARS characters.
  """
  number, held, size = source.first, [], 0
  for block in iter_blocks(iter_text(source, stats)):
    for part in iter_lines(block):
      held.append(part.removesuffix('\n'))
      size += len(part)
      if size > MAX_DOCUMENT_CHARS:
        raise UserError(
          f'{source.name}: line {number} has more than {MAX_DOCUMENT_CHARS:,} '
          'characters, the most for a line that is a document: break it into '
          'lines, or read the file as one text (data.format=text)'
        )
      if part.endswith('\n'):
        yield number, ''.join(held)
        number, held, size = number + 1, [], 0
  if held:
    yield number, ''.join(held)
