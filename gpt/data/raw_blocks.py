"""A corpus as blocks: bytes that end with a line, or values of records.

Whoever encodes a block needs no other one. `Place` says where it begins and
what came before, so that the tokens of the blocks, joined, are those of the
whole text.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from gpt.data import file_kinds, records
from gpt.data.compressed import method_of
from gpt.data.pieces import Before, literal_of
from gpt.data.sources import Source, Sources
from gpt.data.text_reader import READ_BYTES

# A line of more bytes is cut where it happens to be, in plain text.
LINE_BYTES = 8 << 20
# Lines that are documents are never cut; text_reader refuses longer ones.
DOCUMENT_LINE_BYTES = 32 << 20
SHORT = 1 << 10
BOM = b'\xef\xbb\xbf'


@dataclasses.dataclass(frozen=True)
class Place:
  """A place in a corpus between two blocks.

  Attributes:
    source: index of the file.
    offset: bytes, decompressed, or rows of the file before the place.
    line: number of its line or row, from 1.
    before: what comes before.
  """

  source: int = 0
  offset: int = 0
  line: int = 1
  before: Before = Before()

  @property
  def order(self) -> tuple[int, int]:
    """Sorts places."""
    return self.source, self.offset


class Block(NamedTuple):
  """A part of a corpus: where it is, its content, and the place behind it.

  `stored` counts bytes of the file on disk: for files that are compressed, all
  of them at their first block.
  """

  place: Place
  source: Source
  next: Place
  stored: int = 0


def iter_blocks(
  sources: Sources,
  place: Place,
  end: tuple[int, int],
  separator: str,
  whole_lines: bool,
) -> Iterator[Block]:
  """Yields the blocks between two places, of about READ_BYTES each.

  Args:
    end: source and offset; between two files, of the second one.
    separator: data.document_separator, or 'none'.
    whole_lines: lines are documents.

  Raises:
    UserError: a file cannot be read.
  """
  literal = literal_of(separator).encode()
  while place.order < end:
    source = sources.items[place.source]
    stop = end[1] if end[0] == place.source else None
    parts: Iterator[Source]
    if source.kind == file_kinds.PARQUET:
      parts = _row_blocks(source, place.offset)
    else:
      whole = whole_lines or source.are_records
      parts = _byte_blocks(source, place, stop, literal, whole)
    packed = source.kind == file_kinds.PARQUET or is_packed(source)
    for part in parts:
      following = _after(place, part, separator, literal)
      stored = len(part.data or b'')
      if packed:
        stored = 0 if place.offset else source.size
      yield Block(place, part, following, stored)
      place = following
    before = place.before
    place = Place(place.source + 1, before=Before(before.open, before.line_end))


def _row_blocks(source: Source, skip: int) -> Iterator[Source]:
  """Rows of a Parquet file, about READ_BYTES of text at a time."""
  held: list[Any] = []
  first, size = skip + 1, 0
  for _, values in records.iter_rows(source, skip):
    for value in values:
      held.append(value)
      size += len(value) if isinstance(value, str) else SHORT
      if size >= READ_BYTES:
        yield dataclasses.replace(
          source, path=None, records=tuple(held), first=first
        )
        first, size, held = first + len(held), 0, []
  if held:
    yield dataclasses.replace(
      source, path=None, records=tuple(held), first=first
    )


def _byte_blocks(
  source: Source,
  place: Place,
  stop: int | None,
  literal: bytes,
  whole_lines: bool,
) -> Iterator[Source]:
  """Bytes of a file up to the last line end before each grid point."""
  offset, line, held = place.offset, place.line, b''
  longest = DOCUMENT_LINE_BYTES if whole_lines else LINE_BYTES
  with source.open() as file:
    skip(file, offset)
    while True:
      at = offset + len(held)
      size = READ_BYTES - at % READ_BYTES
      if stop is not None:
        size = min(size, stop - at)
      chunk = file.read(size)
      end = chunk.rfind(b'\n') + 1
      if end:
        data, held = held + chunk[:end], chunk[end:]
      elif not chunk:
        data, held = held, b''
      elif len(held) + len(chunk) > longest:
        held += chunk
        end = _between_characters(held, literal)
        data, held = held[:end], held[end:]
      else:
        held += chunk
        continue
      if data:
        yield dataclasses.replace(
          source, path=None, data=data, first=line, offset=offset
        )
        offset += len(data)
        line += data.count(b'\n')
      if not chunk:
        return


def is_packed(source: Source) -> bool:
  """Whether a file is compressed as a whole."""
  with source.open_raw() as file:
    return bool(method_of(file, source.name))


def skip(file: Any, n: int) -> None:
  """Moves a reader n bytes forward from its beginning."""
  if file.seekable():
    file.seek(n)
    return
  while n > 0 and (data := file.read(min(n, READ_BYTES))):
    n -= len(data)


def _between_characters(data: bytes, literal: bytes) -> int:
  """The last index that cuts neither a UTF-8 character nor `literal`."""
  end = len(data)
  at = data.rfind(literal[:1], end - len(literal) + 1) if literal else -1
  if at > 0 and literal.startswith(data[at:]):
    return at
  for back in range(1, 5):
    if data[-back] & 0xC0 == 0xC0:  # The first byte of a character.
      return end - back
    if data[-back] < 0x80:
      break
  return end


def _after(place: Place, part: Source, separator: str, literal: bytes) -> Place:
  """The place behind a block."""
  before = place.before
  if part.records:
    n = len(part.records)
    return Place(
      place.source, place.offset + n, place.line + n, Before(begun=True)
    )
  data = part.data or b''
  offset, line = place.offset + len(data), place.line + data.count(b'\n')
  if part.are_records:
    return Place(place.source, offset, line, Before(begun=True))
  text = data.removeprefix(BOM) if not place.offset else data
  line_end = data.endswith(b'\n')
  if separator == 'blank_line':
    # The rest of a cut line is no blank line.
    written = not is_blank(text) or before.line_open
    begun = before.begun or written
    start = text.rfind(b'\n', 0, -1) + 1
    rest = before.line_open and not start
    ended = begun and not rest and is_blank(text[start:])
    before = Before(
      before.open or written, line_end, begun, ended, not line_end
    )
  elif text:
    ends = bool(literal) and data.endswith(literal)
    before = Before(not ends, line_end, True, line_open=not line_end)
  return Place(place.source, offset, line, before)


def is_blank(text: bytes) -> bool:
  """Whether bytes are a text of nothing but white space."""
  left = text.strip()
  return not left or (
    len(left) < SHORT and not left.decode('utf-8', 'replace').strip()
  )
