"""Batches of windows from a text, for training and evaluation.

A batch is a pure function of (seed, step), so every machine, process and
resumed run gets the same one. The dataset has no state, and the corpus is a
memory map.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from gpt.data.shuffle import permuted
from gpt.data.token_cache import EncodedInfo
from gpt.data.token_shards import TokenShards
from gpt.errors import UserError
from gpt.tokenizers import Tokenizer

SPLITS = ('train', 'val', 'all')
# Random streams: the last word of the initial Philox counter.
TRAIN_STREAM, EVAL_STREAM = 0, 1
OFFSET_STREAM = 5  # documents.py and document_dataset.py use 2, 3 and 4.
ORDERS = ('random', 'shuffled')

Batch = dict[str, np.ndarray]


@dataclasses.dataclass
class Corpus:
  """A corpus of one text: tokens, document starts and the validation split.

  Attributes:
    tokens: uint16[n] or uint32[n], a read-only memory map; each document but
      the last ends with the EOS id.
    doc_starts: int64[n_docs], the index of each document's first token.
    n_train: tokens[:n_train] train, tokens[n_train:] validate.
    description: where the text comes from, in words.
    info: facts about the encoding.
    kind: as in gpt.data.sources.Sources.
  """

  tokens: np.ndarray | TokenShards
  doc_starts: np.ndarray
  n_train: int
  description: str
  info: EncodedInfo
  kind: str = 'files'

  @property
  def n_val(self) -> int:
    """Number of validation tokens."""
    return len(self.tokens) - self.n_train

  def size(self, split: str) -> int:
    """Number of tokens in 'train', 'val' or 'all'."""
    first, end = self.bounds(split)
    return end - first

  def bounds(self, split: str) -> tuple[int, int]:
    """(first, end) token index of 'train', 'val' or 'all'."""
    n = len(self.tokens)
    if split not in SPLITS:
      raise UserError(
        f'unknown split {split!r}: allowed are {", ".join(SPLITS)}'
      )
    return {
      'train': (0, self.n_train),
      'val': (self.n_train, n),
      'all': (0, n),
    }[split]


class Window(NamedTuple):
  """Tokens from `start` to before `end`; `bos` puts a BOS in front."""

  start: int
  end: int
  bos: bool


def random_uniform(seed: int, step: int, stream: int, n: int) -> np.ndarray:
  """float64[n] in [0, 1), a pure function of its arguments.

  NumPy guarantees the raw output of the counter-based Philox across versions,
  but not the streams of its Generator methods.
  """
  key = np.array([seed % 2**64, step], np.uint64)
  counter = np.array([0, 0, 0, stream], np.uint64)
  raw = np.random.Philox(key=key, counter=counter).random_raw(n)
  return (raw >> np.uint64(11)) * 2.0**-53


class TextDataset:
  """Batches of windows from a Corpus.

  A window has block_size targets. By default it is any block_size + 1
  consecutive tokens. With document_aware it stays inside one document, and a
  BOS precedes the document's first token, which thereby becomes a target too;
  positions past the end of a short document have weight 0. All targets are
  drawn about equally often (with document_aware within a factor of two).
  """

  # As in DocumentDataset: every target counts.
  losses: tuple[str, ...] = ('all',)
  loss_on = 'all'

  def __init__(
    self,
    corpus: Corpus,
    block_size: int,
    batch_size: int,
    seed: int,
    tokenizer: Tokenizer,
    document_aware: bool = False,
    splits: Iterable[str] = ('train', 'val'),
    order: str = 'random',
  ) -> None:
    """Checks that the splits are long enough.

    Args:
      corpus: the text.
      block_size: targets per window.
      batch_size: windows per training batch.
      seed: of the training order.
      tokenizer: the one that encoded the corpus.
      document_aware: keep windows inside documents.
      splits: the splits that will be used.
      order: of the training windows: 'random', drawn with replacement, or
        'shuffled', every window of an epoch once.

    Raises:
      UserError: a split is too short for one window.
    """
    self.corpus = corpus
    self.block_size = block_size
    self.batch_size = batch_size
    self.seed = seed
    self.document_aware = document_aware
    self.order = order
    self._bos, self._eos = tokenizer.bos_id, tokenizer.eos_id
    # int32[V]: UTF-8 bytes of each token, for bits per byte.
    self.bytes_V = np.array(
      [len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)],
      np.int32,
    )
    self._cached_documents: dict[str, tuple] = {}
    self._check_lengths(splits)

  def _check_lengths(self, splits: Iterable[str]) -> None:
    need = 1 if self.document_aware else self.block_size + 1
    lengths = {split: self.corpus.size(split) for split in splits}
    if any(n < need for n in lengths.values()):
      given = ', '.join(f'{n:,} {split}' for split, n in lengths.items())
      raise UserError(
        f'the text is too short for the window: {given} tokens, but '
        f'block_size={self.block_size} needs at least {need:,} in each. Give '
        'more text, lower --config.model.block_size or change '
        '--config.data.val_fraction'
      )

  def targets(self, split: str) -> int:
    """Number of predicted tokens of a split."""
    return max(0, self.corpus.size(split) - (not self.document_aware))

  def batch_at(self, step: int, rows: slice = slice(None)) -> Batch:
    """The training batch of `step` (0-based), or some of its rows.

    Returns:
      tokens int32[B, T+1]; weights float32[B, T] of the targets
      tokens[:, 1:]; rows int32[B], indices into the whole batch. T is
      block_size.
    """
    if self.order == 'shuffled':
      windows = self._shuffled(step)[rows]
    else:
      windows = self._choose('train', self._draws(step)[rows])
    batch = self._read(windows)
    batch['rows'] = np.arange(self.batch_size, dtype=np.int32)[rows]
    return batch

  def eval_batches(
    self,
    split: str,
    windows: int | None = None,
    batch_size: int | None = None,
  ) -> Iterator[Batch]:
    """Yields batches that cover a split, or a fixed random part of it.

    Args:
      split: 'val', 'train' or 'all'.
      windows: None for every target exactly once, in order; otherwise the
        number of random windows, the same ones on every call and for every
        seed.
      batch_size: rows per batch, by default as in training. The last batch is
        padded with rows of weight 0.

    Yields:
      tokens, weights and rows as in batch_at.
    """
    batch_size = batch_size or self.batch_size
    if windows is None:
      chosen = self._all_windows(split)
    else:
      draws = random_uniform(0, SPLITS.index(split), EVAL_STREAM, 2 * windows)
      chosen = iter(self._choose(split, draws.reshape(-1, 2)))
    while part := list(itertools.islice(chosen, batch_size)):
      batch = self._read(part)
      missing = (0, batch_size - len(part))
      yield {
        'tokens': np.pad(batch['tokens'], (missing, (0, 0))),
        'weights': np.pad(batch['weights'], (missing, (0, 0))),
        'rows': np.arange(batch_size, dtype=np.int32),
      }

  def _draws(self, step: int) -> np.ndarray:
    """float64[B, 2] in [0, 1): the random draws of a step's windows."""
    n = 2 * self.batch_size
    return random_uniform(self.seed, step, TRAIN_STREAM, n).reshape(-1, 2)

  def _shuffled(self, step: int) -> list[Window]:
    """The windows of a step; those of an epoch do not overlap.

    An epoch has whole batches only. Its windows begin at an offset of its own,
    so that no target is always the first of its window.
    """
    first, end = self.corpus.bounds('train')
    T, B = self.block_size, self.batch_size
    n = (end - first - T) // T  # With room for the offset.
    if n < B:  # Too few for a batch: a text of a page or two.
      return self._choose('train', self._draws(step))
    epoch, i = divmod(step, n // B)
    offset = int(random_uniform(self.seed, epoch, OFFSET_STREAM, 1)[0] * T)
    numbers = permuted(np.arange(i * B, (i + 1) * B), n, self.seed, epoch)
    starts = first + offset + numbers * T
    return [Window(start, end, False) for start in starts.tolist()]

  def _choose(self, split: str, draws: np.ndarray) -> list[Window]:
    """The windows that the float64[n, 2] `draws` select."""
    T = self.block_size
    if not self.document_aware:
      first, end = self.corpus.bounds(split)
      starts = first + (draws[:, 0] * (end - first - T)).astype(np.int64)
      return [Window(start, end, False) for start in starts.tolist()]
    # A document of n targets has n + T - 1 window offsets; those that begin
    # before or end after the document are clipped to it. So T to 2T offsets
    # cover each target, whatever its document's length and its place there.
    starts, ends, positions = self._documents(split)
    which = np.searchsorted(positions, draws[:, 0] * positions[-1], 'right')
    which = np.minimum(which, len(starts) - 1)
    n = ends[which] - starts[which]
    offsets = (draws[:, 1] * (n + T - 1)).astype(np.int64) - (T - 1)
    offsets = np.clip(offsets, 0, np.maximum(n - T, 0))
    return [
      Window(a + max(offset - 1, 0), b, offset == 0)
      for a, b, offset in zip(
        starts[which].tolist(), ends[which].tolist(), offsets.tolist()
      )
    ]

  def _all_windows(self, split: str) -> Iterator[Window]:
    """Yields windows that cover each target of the split once, in order."""
    T = self.block_size
    if not self.document_aware:
      first, end = self.corpus.bounds(split)
      for start in range(first, end - 1, T):
        yield Window(start, end, False)
      return
    starts, ends, _ = self._documents(split)
    for a, b in zip(starts.tolist(), ends.tolist()):
      yield Window(a, b, True)
      for start in range(a + T - 1, b - 1, T):
        yield Window(start, b, False)

  def _documents(self, split: str) -> tuple[np.ndarray, ...]:
    """int64[n] starts, ends and cumulative window offsets of the documents."""
    if split not in self._cached_documents:
      first, end = self.corpus.bounds(split)
      docs = self.corpus.doc_starts
      inner = docs[(docs > first) & (docs < end)]
      starts = np.concatenate([[first], inner]).astype(np.int64)
      ends = np.concatenate([inner, [end]]).astype(np.int64)
      positions = np.cumsum(ends - starts + self.block_size - 1)
      self._cached_documents[split] = starts, ends, positions
    return self._cached_documents[split]

  def _read(self, windows: list[Window]) -> Batch:
    """tokens and weights of the windows, padded with EOS of weight 0."""
    T = self.block_size
    tokens = np.full((len(windows), T + 1), self._eos, np.int32)
    weights = np.zeros((len(windows), T), np.float32)
    for i, (start, end, bos) in enumerate(windows):
      text = self.corpus.tokens[start : min(start + T + 1 - bos, end)]
      if bos:
        tokens[i, 0] = self._bos
      tokens[i, bos : bos + len(text)] = text
      weights[i, : bos + len(text) - 1] = 1
    return {'tokens': tokens, 'weights': weights}
