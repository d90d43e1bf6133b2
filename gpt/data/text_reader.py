"""Bytes of text files -> clean text -> documents, in bounded memory.

It exists so that everything later sees one thing: str with '\\n' line ends,
cut at line ends and documents, with every repair counted so that it is said.
"""

import codecs
import dataclasses
import re

from gpt.errors import UserError
from gpt.tokenizers.base import EOS, iter_lines

READ_BYTES = 1 << 20
# A longer line is encoded in pieces of this many characters.
MAX_LINE_CHARS = 1 << 20
LITERAL = re.compile(r'<[^<>\s]+>')


@dataclasses.dataclass
class TextStats:
  """What reading found: bytes read, and repairs made.

  trimmed, skipped: conversations, see gpt/data/conversations.py. eos_marks: how
  often EOS stands in a text that has no separator.
  """

  bytes: int = 0
  crlf: int = 0
  bom: int = 0
  invalid_utf8: int = 0
  trimmed: int = 0
  skipped: int = 0
  eos_marks: int = 0

  def repairs(self) -> str:
    """The repairs in words; '' if the text was clean."""
    said = []
    if self.crlf:
      said.append(f'{self.crlf:,} CRLF line ends became LF')
    if self.bom:
      said.append(f'{self.bom} byte-order mark removed')
    if self.invalid_utf8:
      said.append(
        f'{self.invalid_utf8:,} invalid UTF-8 sequences became U+FFFD'
      )
    return '; '.join(said)


def iter_text(source, stats: TextStats):
  """Yields the text of one source as str chunks; repairs go into `stats`.

  CRLF becomes LF, a leading byte-order mark goes, invalid UTF-8 becomes
  U+FFFD.

  Raises:
    UserError: the file cannot be read, or is UTF-16 or UTF-32.
  """
  decoder = codecs.getincrementaldecoder('utf-8')('replace')
  raw_tail, held, replaced, genuine = b'', '', 0, 0
  first = True
  with source.open() as f:
    while True:
      raw = f.read(READ_BYTES)
      if first and raw[:2] in (b'\xff\xfe', b'\xfe\xff'):
        raise UserError(
          f'{source.name} looks like UTF-16, only UTF-8 is read; convert it: '
          f'iconv -f UTF-16 -t UTF-8 {source.name} > text.txt'
        )
      text = held + decoder.decode(raw, final=not raw)
      stats.bytes += len(raw)
      # U+FFFD that stands in the file is no repair.
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


def iter_blocks(chunks, keep_whole: str = ''):
  """Regroups str chunks into blocks that end at line ends.

  Lines longer than MAX_LINE_CHARS are cut, but never inside `keep_whole`
  (whose first character it does not have again).
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


def iter_whole_lines(source, stats: TextStats):
  """Yields (number from 1, line without its end) of one source, uncut."""
  number, held = 1, []
  for block in iter_blocks(iter_text(source, stats)):
    for part in iter_lines(block):
      held.append(part.removesuffix('\n'))
      if part.endswith('\n'):
        yield number, ''.join(held)
        number, held = number + 1, []
  if held:
    yield number, ''.join(held)


def iter_pieces(sources, separator: str, stats: TextStats):
  """Yields pieces of text, with None wherever a document ends.

  Separators: 'none' (all files are one text, joined at a line end),
  'blank_line' (one or more blank lines, which are dropped), or a literal in
  angle brackets such as '<|eos|>' (each one ends a document; the text around
  it is kept as it is). With the last two each file begins a new document.

  Raises:
    UserError: unknown separator, or a file that cannot be read.
  """
  literal = separator if LITERAL.fullmatch(separator) else ''
  if not literal and separator not in ('none', 'blank_line'):
    raise UserError(
      f'data.document_separator {separator!r} is unknown: allowed are none, '
      f'blank_line, or a literal in angle brackets such as {EOS}'
    )
  last: str | None = ''  # the piece before; None after the end of a document
  for source in sources.items:
    # Between two files, neither of them empty.
    joined = not last or (separator == 'none' and last.endswith('\n'))
    pieces = iter_blocks(iter_text(source, stats), literal)
    if literal:
      pieces = _split_literal(pieces, literal)
    elif separator == 'blank_line':
      pieces = _split_blank(pieces)
    for last in pieces:
      if not joined:
        joined = True
        yield '\n' if separator == 'none' else None
      if separator == 'none' and last:
        stats.eos_marks += last.count(EOS)
      yield last


def _split_literal(blocks, literal: str):
  for block in blocks:
    for i, part in enumerate(block.split(literal)):
      if i:
        yield None
      if part:
        yield part


def _split_blank(blocks):
  started = ended = line_open = False
  for block in blocks:
    kept: list[str] = []
    for line in iter_lines(block):
      # A cut line goes on in the next block: its rest is not a blank line.
      if not line_open and not line.strip():
        ended = started
        continue
      if ended:
        if kept:
          yield ''.join(kept)
          kept = []
        yield None
        ended = False
      started = True
      kept.append(line)
      line_open = not line.endswith('\n')
    if kept:
      yield ''.join(kept)
