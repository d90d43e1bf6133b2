"""A corpus in segments, which processes and hosts encode independently.

The segments depend on the files alone, not on who encodes them.
"""

import dataclasses

from gpt.data import file_kinds
from gpt.data.pieces import Before, literal_of
from gpt.data.raw_blocks import BOM, Place, is_blank, is_packed
from gpt.data.sources import Source, Sources
from gpt.data.text_reader import READ_BYTES

SEGMENT_BYTES = 256 << 20  # Of files as they are stored.


@dataclasses.dataclass(frozen=True)
class Segment:
  """A part of a corpus: (source, offset) of its first block and of its end."""

  start: tuple[int, int]
  end: tuple[int, int]


def segments_of(sources: Sources) -> list[Segment]:
  """Cuts a corpus into segments of about SEGMENT_BYTES.

  A large file is cut at line ends, unless it is compressed or Parquet.
  """
  cuts, size = [(0, 0)], 0
  for index, source in enumerate(sources.items):
    if size and size + source.size > SEGMENT_BYTES:
      cuts.append((index, 0))
      size = 0
    large = source.size > SEGMENT_BYTES and source.kind != file_kinds.PARQUET
    if large and not is_packed(source):
      for offset in _line_cuts(source):
        cuts.append((index, offset))
    size += source.size
  ends = [*cuts[1:], (len(sources.items), 0)]
  return [Segment(a, b) for a, b in zip(cuts, ends)]


def _line_cuts(source: Source) -> list[int]:
  """Offsets behind the last line end before multiples of SEGMENT_BYTES."""
  found = []
  with source.open_raw() as file:
    for grid in range(SEGMENT_BYTES, source.size, SEGMENT_BYTES):
      file.seek(grid - READ_BYTES)
      if end := file.read(READ_BYTES).rfind(b'\n') + 1:
        found.append(grid - READ_BYTES + end)
  return found


def place_of(
  sources: Sources, start: tuple[int, int], separator: str, whole_lines: bool
) -> Place:
  """The place at the start of a segment, found by looking back.

  Args:
    separator, whole_lines: see raw_blocks.iter_blocks.
  """
  index, offset = start
  source = sources.items[index]
  if not offset:
    return Place(index, before=_before_file(sources, index, separator))
  if whole_lines or source.are_records:
    return Place(index, offset, 1 + _lines_before(source, offset))
  if separator != 'blank_line':
    return Place(index, offset, before=Before(True, True, True))
  tail = b''
  with source.open() as file:
    for first in range(offset - READ_BYTES, -READ_BYTES, -READ_BYTES):
      file.seek(max(first, 0))
      tail = file.read(offset - max(first, 0))
      if not is_blank(tail):
        last = tail[tail.rfind(b'\n', 0, -1) + 1 :]
        return Place(
          index, offset, before=Before(True, True, True, is_blank(last))
        )
  return Place(index, offset, before=_before_file(sources, index, separator))


def _before_file(sources: Sources, index: int, separator: str) -> Before:
  literal = literal_of(separator).encode()
  for source in reversed(sources.items[:index]):
    if source.are_records:
      return Before()
    tail = _tail(source)
    line_end = tail.endswith(b'\n')
    if separator == 'blank_line':
      if not is_blank(tail):
        return Before(True, line_end)
    elif tail and tail != BOM:
      return Before(not (literal and tail.endswith(literal)), line_end)
  return Before()


def _tail(source: Source) -> bytes:
  """The last bytes of a file, at least the last READ_BYTES if it has them."""
  tail = b''
  with source.open() as file:
    if file.seekable():
      file.seek(max(0, source.size - READ_BYTES))
    while data := file.read(READ_BYTES):
      tail = tail[-READ_BYTES:] + data
  return tail


def _lines_before(source: Source, offset: int) -> int:
  count = 0
  with source.open() as file:
    while offset > 0 and (data := file.read(min(offset, READ_BYTES))):
      count += data.count(b'\n')
      offset -= len(data)
  return count
