"""Corpus -> batch_at(step): windows of tokens for training and evaluation.

It exists so that training asks for the batch of a step and gets the same one
on every machine, in every process and after every resume: batches are a pure
function of (seed, step), the corpus is a memory map, and there is no state.
"""

import dataclasses

import numpy as np

from gpt.errors import UserError
from gpt.token_cache import EncodedInfo
from gpt.tokenizer import Tokenizer

SPLITS = ('train', 'val', 'all')
# Streams of random numbers: the last word of the counter they start from.
TRAIN_STREAM, EVAL_STREAM = 0, 1

Batch = dict[str, np.ndarray]


@dataclasses.dataclass
class Corpus:
  """Tokens of a text and what is known about it.

  tokens: uint16[n] or uint32[n], a read-only memory map; each document but
    the last ends with the EOS id.
  doc_starts: int64[n_docs], the index of each document's first token.
  n_train: tokens[:n_train] train, tokens[n_train:] validate.
  description: where the text comes from, in words.
  """

  tokens: np.ndarray
  doc_starts: np.ndarray
  n_train: int
  description: str
  info: EncodedInfo | None = None

  @property
  def n_val(self) -> int:
    """Number of validation tokens."""
    return len(self.tokens) - self.n_train

  def bounds(self, split: str) -> tuple[int, int]:
    """(first, end) token index of 'train', 'val' or 'all'."""
    n = len(self.tokens)
    if split not in SPLITS:
      raise UserError(
        f'unknown split {split!r}: allowed are {", ".join(SPLITS)}'
      )
    return {'train': (0, self.n_train), 'val': (self.n_train, n),
            'all': (0, n)}[split]


def random_uniform(seed: int, step: int, stream: int, n: int) -> np.ndarray:
  """float64[n] in [0, 1), a pure function of its arguments.

  Philox is counter-based and its raw output is fixed for good, unlike what
  numpy's Generator methods make of it.
  """
  key = np.array([seed % 2**64, step], np.uint64)
  counter = np.array([0, 0, 0, stream], np.uint64)
  raw = np.random.Philox(key=key, counter=counter).random_raw(n)
  return (raw >> np.uint64(11)) * 2.0**-53


class TextDataset:
  """Batches of windows from a Corpus.

  A window has block_size targets. In stream mode it is any block_size + 1
  tokens in a row. With document_aware it stays inside one document, which is
  preceded by a BOS that is not part of the text (so the first token is a
  target too, and generation can start from BOS); what lies beyond a short
  document has weight 0. Either way all targets of the split are drawn about
  equally often.
  """

  def __init__(
    self, corpus: Corpus, block_size: int, batch_size: int, seed: int,
    tokenizer: Tokenizer, document_aware: bool = False,
    splits=('train', 'val'),
  ):
    """Args as named; `splits` are those that will be used.

    Raises:
      UserError: a split is too short for one window.
    """
    self.corpus = corpus
    self.block_size = block_size
    self.batch_size = batch_size
    self.seed = seed
    self.document_aware = document_aware
    self._bos, self._eos = tokenizer.bos_id, tokenizer.eos_id
    self.bytes_V = np.array(
      [len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)],
      np.int32,
    )
    self._segments: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    self._check_lengths(splits)

  def _check_lengths(self, splits) -> None:
    need = 1 if self.document_aware else self.block_size + 1
    lengths = {}
    for split in splits:
      first, end = self.corpus.bounds(split)
      lengths[split] = end - first
    if any(n < need for n in lengths.values()):
      given = ', '.join(f'{n:,} {split}' for split, n in lengths.items())
      raise UserError(
        f'the text is too short for the window: {given} tokens, but '
        f'block_size={self.block_size} needs at least {need:,} in each. Give '
        'more text, lower --config.model.block_size or change '
        '--config.data.val_fraction'
      )

  def batch_at(self, step: int, rows: slice = slice(None)) -> Batch:
    """The training batch of `step` (0-based), or some of its rows.

    Returns:
      tokens int32[B, T+1], weights float32[B, T] of the targets
      tokens[:, 1:], rows int32[B], the indices in the whole batch.
    """
    draws = random_uniform(self.seed, step, TRAIN_STREAM, 2 * self.batch_size)
    row_ids = np.arange(self.batch_size, dtype=np.int32)[rows]
    return self._gather('train', draws.reshape(-1, 2)[rows], row_ids)

  def window_starts(self, step: int) -> np.ndarray:
    """int64[B]: first tokens of batch_at(step)'s windows (stream mode)."""
    draws = random_uniform(self.seed, step, TRAIN_STREAM, 2 * self.batch_size)
    return self._starts('train', draws.reshape(-1, 2)[:, 0])

  def eval_batches(self, split: str, windows=None, batch_size=None):
    """Yields batches that cover a split, or a fixed random part of it.

    Args:
      split: 'val', 'train' or 'all'.
      windows: None for every target exactly once, in order; a number for
        that many random windows, the same ones every time and for every seed.
      batch_size: rows per batch, default the training batch size. The last
        batch is filled up with rows of weight 0.
    """
    batch_size = batch_size or self.batch_size
    for batch in self._eval_rows(split, windows, batch_size):
      missing = batch_size - len(batch['rows'])
      if missing:
        batch = {
          'tokens': np.pad(batch['tokens'], ((0, missing), (0, 0))),
          'weights': np.pad(batch['weights'], ((0, missing), (0, 0))),
        }
      batch['rows'] = np.arange(batch_size, dtype=np.int32)
      yield batch

  def _eval_rows(self, split, windows, batch_size):
    if windows is not None:
      draws = random_uniform(0, SPLITS.index(split), EVAL_STREAM, 2 * windows)
      draws = draws.reshape(-1, 2)
      for i in range(0, windows, batch_size):
        part = draws[i : i + batch_size]
        yield self._gather(split, part, np.arange(len(part)))
      return
    rows = []
    for row in self._all_windows(split):
      rows.append(row)
      if len(rows) == batch_size:
        yield self._read_rows(rows)
        rows = []
    if rows:
      yield self._read_rows(rows)

  def _all_windows(self, split):
    """(start, end of its text, begins with BOS) of consecutive windows."""
    T = self.block_size
    if not self.document_aware:
      first, end = self.corpus.bounds(split)
      for start in range(first, end - 1, T):
        yield start, end, False
      return
    starts, ends, _ = self._segments_of(split)
    for a, b in zip(starts.tolist(), ends.tolist()):
      for offset in range(0, b - a, T):
        yield (a, b, True) if not offset else (a + offset - 1, b, False)

  def _segments_of(self, split):
    """Documents of a split: starts, ends int64[n]; cumulated draw weights.

    A document is drawn in proportion to the windows it fills (at least one),
    so that its targets are drawn as often as those of any other.
    """
    if split not in self._segments:
      first, end = self.corpus.bounds(split)
      docs = self.corpus.doc_starts
      inner = docs[(docs > first) & (docs < end)]
      starts = np.concatenate([[first], inner]).astype(np.int64)
      ends = np.concatenate([inner, [end]]).astype(np.int64)
      weights = np.maximum(1.0, (ends - starts) / self.block_size)
      self._segments[split] = starts, ends, np.cumsum(weights)
    return self._segments[split]

  def _starts(self, split, uniform):
    first, end = self.corpus.bounds(split)
    n = end - first - self.block_size
    return first + (uniform * n).astype(np.int64)

  def _gather(self, split, draws, row_ids) -> Batch:
    """Batch of the windows that float64[B, 2] draws choose."""
    if not self.document_aware:
      end = self.corpus.bounds(split)[1]
      starts = self._starts(split, draws[:, 0]).tolist()
      rows = [(s, end, False) for s in starts]
    else:
      starts, ends, cumulated = self._segments_of(split)
      chosen = np.searchsorted(
        cumulated, draws[:, 0] * cumulated[-1], side='right'
      )
      chosen = np.minimum(chosen, len(starts) - 1)
      a, b = starts[chosen], ends[chosen]
      n_offsets = np.maximum(1, b - a - self.block_size + 1)
      offsets = (draws[:, 1] * n_offsets).astype(np.int64)
      rows = [
        (int(s), int(e), True) if not o else (int(s + o - 1), int(e), False)
        for s, e, o in zip(a, b, offsets)
      ]
    batch = self._read_rows(rows)
    batch['rows'] = np.asarray(row_ids, np.int32)
    return batch

  def _read_rows(self, rows) -> Batch:
    T = self.block_size
    tokens = np.full((len(rows), T + 1), self._eos, np.int32)
    weights = np.zeros((len(rows), T), np.float32)
    for i, (start, end, bos) in enumerate(rows):
      text = self.corpus.tokens[start : min(start + T + 1 - bos, end)]
      n = len(text) + bos
      if bos:
        tokens[i, 0] = self._bos
      tokens[i, bos:n] = text
      weights[i, : n - 1] = 1
    return {'tokens': tokens, 'weights': weights,
            'rows': np.arange(len(rows), dtype=np.int32)}
