"""A sample from all over a large corpus, to train a tokenizer on."""

import dataclasses
from collections.abc import Iterator

from gpt.data import file_kinds
from gpt.data.raw_blocks import Place, is_packed, iter_blocks
from gpt.data.sources import Source, Sources
from gpt.data.text_reader import READ_BYTES

# What is read of a larger corpus; a tokenizer is trained on a part of it.
SAMPLE_BYTES = 64 << 20
MANY_FILES = 256


def every(sources: Sources) -> int:
  """Of how many blocks of a corpus one is in its sample."""
  return max(1, sources.size // SAMPLE_BYTES)


def sample(sources: Sources, whole_lines: bool) -> Sources:
  """Blocks in memory from all over a corpus.

  All of it if it is small, or if no line fits into a block.

  Every k-th block of READ_BYTES counts. Those between are skipped, or at least
  not decoded where a file is compressed. Of many such files, every k-th counts.

  Args:
    whole_lines: lines are documents.
  """
  share = every(sources)
  if share == 1:
    return sources
  items = list(_blocks(sources, share, whole_lines))
  return dataclasses.replace(sources, items=tuple(items)) if items else sources


def _blocks(
  sources: Sources, share: int, whole_lines: bool
) -> Iterator[Source]:
  position = -1  # In blocks of the corpus.
  packed = 0
  for index, source in enumerate(sources.items):
    if source.kind == file_kinds.PARQUET or is_packed(source):
      packed += 1
      few = len(sources.items) < MANY_FILES
      if few or packed % share == 1:
        end = (index + 1, 0)
        blocks = iter_blocks(sources, Place(index), end, 'none', whole_lines)
        for number, block in enumerate(blocks):
          if not few or number % share == 0:
            yield block.source
      continue
    n = -(-source.size // READ_BYTES)
    with source.open_raw() as file:
      for grid in range(n):
        position += 1
        if position % share:
          continue
        file.seek(grid * READ_BYTES)
        data = file.read(READ_BYTES)
        first = data.find(b'\n') + 1 if grid else 0
        if whole := data[first : data.rfind(b'\n') + 1]:
          offset = grid * READ_BYTES + first
          name = source.name
          if offset:  # Lines are counted from here.
            name += f', from byte {offset:,} on'
          yield dataclasses.replace(
            source, name=name, path=None, data=whole, offset=offset
          )
