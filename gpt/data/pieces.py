"""Text as pieces that end at a line or a document, for every kind of source."""

import dataclasses
import re
from collections.abc import Iterable, Iterator

from gpt.data import records
from gpt.data.sources import Source, Sources
from gpt.data.text_reader import TextStats, iter_blocks, iter_text
from gpt.errors import UserError
from gpt.tokenizers.base import EOS, iter_lines

LITERAL = re.compile(r'<[^<>\s]+>')


@dataclasses.dataclass(frozen=True)
class Before:
  """State carried over from the preceding part of a corpus.

  Attributes:
    open: text since the last end of a document.
    line_end: that text ends with a line.
    begun: the part's own file has had pieces before.
    ended: blank lines, after text, came last (separator blank_line).
    line_open: the part continues a line.
  """

  open: bool = False
  line_end: bool = True
  begun: bool = False
  ended: bool = False
  line_open: bool = False


def literal_of(separator: str) -> str:
  """The literal that separates documents; '' for 'none' and 'blank_line'.

  Raises:
    UserError: the separator is unknown.
  """
  if LITERAL.fullmatch(separator):
    return separator
  if separator not in ('none', 'blank_line'):
    raise UserError(
      f'data.document_separator {separator!r} is not known; allowed: none, '
      f'blank_line, or a literal in angle brackets such as {EOS}'
    )
  return ''


def iter_pieces(
  sources: Sources,
  separator: str,
  stats: TextStats,
  before: Before = Before(),
) -> Iterator[str | None]:
  """Yields pieces of text, and None between documents.

  Args:
    sources: the files.
    separator: 'none' (all files are one text, joined at a line end);
      'blank_line' (one or more blank lines, which are dropped, separate
      documents); or a literal in angle brackets such as '<|eos|>' (it
      separates documents, the text around it stays unchanged). With the last
      two, each file starts a new document. A record is a document anyway, and
      None follows each.
    stats: counts of what was read.
    before: what comes before the first source.

  Raises:
    UserError: the separator is unknown, or a file cannot be read.
  """
  literal = literal_of(separator)
  is_open, line_end = before.open, before.line_end
  for source in sources.items:
    joined = before.begun
    for piece in _source_pieces(source, separator, literal, stats, before):
      # Empty files need no join.
      if not joined and is_open:
        if separator != 'none' or source.are_records:
          yield None
        elif not line_end:
          yield '\n'
      joined = True
      is_open = piece is not None
      line_end = bool(piece) and piece.endswith('\n')
      if separator == 'none' and piece:
        stats.eos_marks += piece.count(EOS)
      yield piece
    before = Before()


def _source_pieces(
  source: Source, separator: str, literal: str, stats: TextStats, before: Before
) -> Iterator[str | None]:
  if source.are_records:
    for text in records.iter_texts(source, stats):
      yield text
      yield None
    return
  blocks = iter_blocks(iter_text(source, stats), literal)
  if literal:
    yield from _split_literal(blocks, literal)
  elif separator == 'blank_line':
    yield from _split_blank(blocks, before)
  else:
    yield from blocks


def _split_literal(blocks: Iterable[str], literal: str) -> Iterator[str | None]:
  for block in blocks:
    for i, part in enumerate(block.split(literal)):
      if i:
        yield None
      if part:
        yield part


def _split_blank(blocks: Iterable[str], before: Before) -> Iterator[str | None]:
  started, ended = before.begun, before.ended
  line_open = before.line_open
  for block in blocks:
    kept: list[str] = []
    for line in iter_lines(block):
      # A cut line continues in the next block; its rest is not a blank line.
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
