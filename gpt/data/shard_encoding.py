"""Encodes a large corpus into shards, by all cores of all hosts.

A shard that is complete stays, whatever happens to the process: the same
command goes on with the next one.
"""

import contextlib
import dataclasses
import logging
import pathlib
import sys
import time
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tqdm

from gpt.data import token_shards
from gpt.data.block_encoding import Encoded
from gpt.data.encoder_pool import EncoderPool
from gpt.data.pieces import Before
from gpt.data.raw_blocks import Block, Place, iter_blocks
from gpt.data.segments import Segment, place_of, segments_of
from gpt.data.sources import Source, Sources
from gpt.data.text_reader import READ_BYTES, TextStats
from gpt.data.token_cache import EncodedInfo, Encoder
from gpt.data.token_shards import ShardInfo, TokenShards
from gpt.errors import UserError
from gpt.files import replacing, write_atomic
from gpt.tokenizers import Tokenizer

logger = logging.getLogger(__name__)

SHARD_BYTES = 64 << 20  # Of text, decompressed.
LOG_SECONDS = 30.0
WAIT_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Corpus:
  """A corpus to encode, with its tokenizer and its target directory.

  Attributes:
    sources: the text.
    tokenizer: encodes it.
    separator: data.document_separator; 'none' with an encoder.
    encode: see token_cache.load_or_encode.
    dtype: of the tokens.
    end: the value that ends a document.
    fingerprint: of all that determines the tokens.
    directory: of the shards.
  """

  sources: Sources
  tokenizer: Tokenizer
  separator: str
  encode: Encoder | None
  dtype: np.dtype
  end: int
  fingerprint: str
  directory: pathlib.Path

  @property
  def whole_lines(self) -> bool:
    """Whether lines are documents."""
    return self.encode is not None

  def info(self, segment: int, number: int) -> ShardInfo | None:
    """A shard that has been written, or None."""
    base = self.directory / token_shards.name_of(segment, number)
    return token_shards.read_info(base, self.fingerprint)


def shards_of(corpus: Corpus, segment: int) -> tuple[list[ShardInfo], bool]:
  """The shards of a segment from its first on, and whether it is complete."""
  found: list[ShardInfo] = []
  while info := corpus.info(segment, len(found)):
    if found and info.start != found[-1].next:
      break
    found.append(info)
    if info.last:
      return found, True
  return found, False


def load(
  corpus: Corpus, text_sha256: str
) -> tuple[TokenShards, np.ndarray, EncodedInfo] | None:
  """Tokens, ends of documents and totals; None if a shard is missing.

  Damaged shards are removed.
  """
  segments = segments_of(corpus.sources)
  manifest = corpus.directory / token_shards.MANIFEST
  try:
    known = token_shards.read_sealed(manifest)['checked']
  except (UserError, KeyError):
    known = {}
  infos: dict[str, ShardInfo] = {}
  for i in range(len(segments)):
    shards, complete = shards_of(corpus, i)
    if not complete:
      return None
    for k, info in enumerate(shards):
      infos[token_shards.name_of(i, k)] = info
  size = corpus.dtype.itemsize
  bad = token_shards.check_all(corpus.directory, infos, size, known)
  for name in bad:
    logger.warning(f'{corpus.directory / name}.bin is damaged: encoded again')
    (corpus.directory / f'{name}.json').unlink()
  if bad:
    return None
  totals = EncodedInfo(
    fingerprint=corpus.fingerprint,
    text_sha256=text_sha256,
    n_tokens=sum(info.n_tokens for info in infos.values()),
    dtype=corpus.dtype.str,
    crc32=0,
    chars=0,
    documents=1,
    unknown={},
    stats=TextStats(),
  )
  ends, first = [], 0
  for name, info in infos.items():
    path = corpus.directory / f'{name}.ends'
    ends.append(np.fromfile(path, '<u4').astype(np.int64) + first)
    first += info.n_tokens
    totals.chars += info.chars
    totals.documents += info.documents
    totals.stats.add(info.stats)
    for char, count in info.unknown.items():
      totals.unknown[char] = totals.unknown.get(char, 0) + count
  crcs = [info.crc32 for info in infos.values()]
  totals.crc32 = zlib.crc32(np.array(crcs, '<u4').tobytes())
  stamps = {n: token_shards.stamp(corpus.directory / n) for n in infos}
  if stamps != known:
    values = {
      **dataclasses.asdict(totals),
      'files': [s.name for s in corpus.sources.items],
      'shards': {n: info.n_tokens for n, info in infos.items()},
      'checked': stamps,
    }
    with contextlib.suppress(OSError):  # A cache that only may be read.
      token_shards.write_sealed(manifest, values)
  files = [
    (corpus.directory / f'{name}.bin', info.n_tokens, 0)
    for name, info in infos.items()
  ]
  tokens = TokenShards(files, corpus.dtype)
  return tokens, np.concatenate(ends), totals


def encode(corpus: Corpus, share: int = 0, shares: int = 1) -> None:
  """Encodes the segments of one share that are not complete.

  Args:
    share, shares: this host's number, from 0, and how many there are.

  Raises:
    UserError: the text cannot be read.
    OSError: the directory cannot be written to.
  """
  segments = segments_of(corpus.sources)
  n = len(segments)
  mine = range(n * share // shares, n * (share + 1) // shares)
  open_ = [i for i in mine if not shards_of(corpus, i)[1]]
  if not open_:
    return
  corpus.directory.mkdir(parents=True, exist_ok=True)
  with (
    EncoderPool(
      corpus.tokenizer,
      separator=corpus.separator,
      encode=corpus.encode,
      dtype=corpus.dtype.str,
      end=corpus.end,
    ) as pool,
    _Progress(corpus, [segments[i] for i in open_], pool.size) as progress,
  ):
    writer = _Writer(corpus)
    for mark, encoded in pool.map(_blocks(corpus, segments, open_)):
      progress.add(mark, encoded)
      writer.add(mark, encoded)


def wait(corpus: Corpus) -> None:
  """Waits until other processes have encoded their shares."""
  missing, shown = set(range(len(segments_of(corpus.sources)))), 0.0
  while missing := {i for i in missing if not shards_of(corpus, i)[1]}:
    if time.monotonic() - shown > LOG_SECONDS:
      shown = time.monotonic()
      logger.info(
        f'waiting for other processes, which encode {len(missing):,} more '
        'segments of the text'
      )
    time.sleep(WAIT_SECONDS)


class _Mark(NamedTuple):
  """A block that was cut: its shard, which it may end, and its segment's end.

  `stored` is its share of the bytes of the files.
  """

  segment: int
  number: int
  start: Place
  next: Place
  stored: int
  closes: bool
  last: bool


def _blocks(
  corpus: Corpus, segments: list[Segment], chosen: list[int]
) -> Iterator[tuple[_Mark, Source, Before]]:
  """Yields the blocks that no complete shard holds."""
  place: Place | None = None
  for i in chosen:
    segment = segments[i]
    if place is None or place.order != segment.start:
      place = _start_of(corpus, segments, i)
    blocks: Iterator[tuple[Block, bool]] | None = None
    number, last = 0, False
    while not last:
      info = corpus.info(i, number)
      if info and info.start == place:
        place, last, blocks, number = info.next, info.last, None, number + 1
        continue
      if blocks is None:
        blocks = _cut(corpus, place, segment)
      start, size, closes = place, 0, False
      while not closes:
        block, last = next(blocks)
        size += len(block.source.data or b'') or READ_BYTES
        place, closes = block.next, last or size >= SHARD_BYTES
        mark = _Mark(i, number, start, place, block.stored, closes, last)
        yield mark, block.source, block.place.before
      number += 1


def _cut(
  corpus: Corpus, place: Place, segment: Segment
) -> Iterator[tuple[Block, bool]]:
  """Yields the blocks up to the end of a segment, and whether one is the last.

  There is at least one, perhaps empty, and the last one ends at that end.
  """
  blocks = iter_blocks(
    corpus.sources, place, segment.end, corpus.separator, corpus.whole_lines
  )
  held = next(blocks, None) or Block(place, Source('', data=b''), place)
  for block in blocks:
    yield held, False
    held = block
  end = held.next
  if end.order != segment.end:
    before = Before(end.before.open, end.before.line_end)
    end = Place(*segment.end, before=before)
  yield held._replace(next=end), True


def _start_of(corpus: Corpus, segments: list[Segment], i: int) -> Place:
  """The start of a segment: the end of the previous one, if known."""
  if i:
    shards, complete = shards_of(corpus, i - 1)
    if complete:
      return shards[-1].next
  start = segments[i].start
  return place_of(corpus.sources, start, corpus.separator, corpus.whole_lines)


class _Writer:
  """Collects the tokens of a shard and writes it when it is complete."""

  def __init__(self, corpus: Corpus) -> None:
    self._corpus = corpus
    self._begin()

  def _begin(self) -> None:
    self._tokens: list[np.ndarray] = []
    self._ends: list[np.ndarray] = []
    self._n = self._chars = 0
    self._unknown: dict[str, int] = {}
    self._stats = TextStats()

  def add(self, mark: _Mark, encoded: Encoded) -> None:
    """Adds the tokens of a block; raises OSError if it cannot be written."""
    self._tokens.append(encoded.tokens)
    self._ends.append(encoded.ends.astype('<u4') + np.uint32(self._n))
    self._n += len(encoded.tokens)
    self._chars += encoded.chars
    self._stats.add(encoded.stats)
    for char, count in encoded.unknown.items():
      self._unknown[char] = self._unknown.get(char, 0) + count
    if mark.closes:
      self._write(mark)
      self._begin()

  def _write(self, mark: _Mark) -> None:
    name = token_shards.name_of(mark.segment, mark.number)
    base = self._corpus.directory / name
    crc = 0
    with replacing(base.with_suffix('.bin')) as file:
      for tokens in self._tokens:
        crc = zlib.crc32(tokens.data, crc)
        file.write(tokens.data)
    ends = np.concatenate(self._ends)
    write_atomic(base.with_suffix('.ends'), ends.tobytes())
    info = ShardInfo(
      fingerprint=self._corpus.fingerprint,
      start=mark.start,
      next=mark.next,
      last=mark.last,
      n_tokens=self._n,
      documents=len(ends),
      crc32=crc,
      ends_crc32=zlib.crc32(ends.tobytes()),
      chars=self._chars,
      unknown=self._unknown,
      stats=self._stats,
    )
    side = dataclasses.asdict(info)
    token_shards.write_sealed(base.with_suffix('.json'), side)


class _Progress:
  """A bar on a terminal, or a line in the log now and then."""

  def __init__(
    self, corpus: Corpus, segments: list[Segment], processes: int
  ) -> None:
    items = corpus.sources.items
    self._files = [item.size for item in items]
    self._total = sum(map(self._size, segments))
    self._done = self._tokens = 0
    self._began = self._shown = time.monotonic()
    bar = sys.stderr.isatty()
    logger.info(
      f'encoding {self._total / 1e6:,.0f} MB in {len(items):,} files by '
      f'{processes} processes into {corpus.directory}; if it is stopped, the '
      'same command goes on'
    )
    self._bar = tqdm.tqdm(
      total=self._total,
      unit='B',
      unit_scale=True,
      desc='encoding',
      leave=False,
      disable=not bar,
    )

  def _size(self, segment: Segment) -> int:
    """Bytes of a segment's files, as they are stored."""
    (a, first), (b, end) = segment.start, segment.end
    return sum(self._files[a:b]) - first + end

  def __enter__(self) -> '_Progress':
    return self

  def __exit__(self, kind: object, *_: object) -> None:
    self._bar.close()
    if kind is None:
      seconds = time.monotonic() - self._began
      logger.info(
        f'encoded {self._total / 1e6:,.0f} MB into {self._tokens:,} tokens in '
        f'{seconds:,.1f} s'
      )

  def add(self, mark: _Mark, encoded: Encoded) -> None:
    """Counts a block."""
    self._tokens += len(encoded.tokens)
    self._done += mark.stored
    self._bar.update(mark.stored)
    now = time.monotonic()
    if self._bar.disable and now - self._shown > LOG_SECONDS:
      self._shown = now
      rate = self._tokens / (now - self._began)
      logger.info(
        f'encoding: {min(1, self._done / self._total):.0%}, {self._tokens:,} '
        f'tokens, {rate:,.0f} tokens/s'
      )
