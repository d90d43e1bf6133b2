"""Batches of whole documents: grouped by length, or packed.

As in text_dataset.py, a batch is a pure function of (seed, step): an epoch is
a permutation drawn from (seed, epoch), and the step determines the epoch.
"""

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from gpt.data.documents import Documents
from gpt.data.packing import pack
from gpt.data.text_dataset import EVAL_STREAM, SPLITS, Batch, random_uniform
from gpt.errors import UserError
from gpt.tokenizers import Tokenizer

# Random streams; text_dataset.py and documents.py use 0, 1 and 2.
ORDER_STREAM, BATCH_STREAM = 3, 4
# The training step is compiled once per batch length.
MAX_LENGTHS = 4


class DocumentDataset:
  """Batches of whole documents.

  A document of n tokens has n - 1 targets; with loss_on 'assistant' only the
  assistant's tokens count. Documents of similar length share a batch, whose
  length is the smallest of a few fixed ones that fits; padding has weight 0.
  Each epoch contains every training document once, and repeats a few to fill
  the last batch. With packing, a row holds several documents, separated by
  their `segments`, with `positions` that restart at 0.
  """

  def __init__(
    self,
    documents: Documents,
    block_size: int,
    batch_size: int,
    seed: int,
    tokenizer: Tokenizer,
    *,
    skip_long: bool = False,
    loss_on: str = 'all',
    packing: bool = False,
    splits: Iterable[str] = ('train', 'val'),
  ) -> None:
    """Groups or packs the documents of each split.

    Args:
      documents: the corpus.
      block_size: most targets of a row, in tokens.
      batch_size: rows per batch.
      seed: of the training order.
      tokenizer: the one that encoded the documents.
      skip_long: drop documents longer than block_size instead of cutting them.
      loss_on: 'all' or 'assistant' (conversations only).
      packing: fill training rows with several documents each.
      splits: the splits that will be used; each must have targets.

    Raises:
      UserError: a split has no documents, or no targets.
    """
    self.corpus = documents
    self.block_size = block_size
    self.batch_size = batch_size
    self.seed = seed
    self.loss_on = loss_on
    self._packing = packing
    self._skip_long = skip_long
    self._splits = tuple(splits)
    self._pad = tokenizer.eos_id
    # int32[V]: UTF-8 bytes of each token, for bits per byte.
    self.bytes_V = np.array(
      [len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)],
      np.int32,
    )
    fits = documents.lengths <= block_size + 1
    kept = fits if skip_long else np.ones(len(fits), bool)
    self._too_long = int((~fits).sum())
    self._docs = {
      split: (docs := documents.chosen(split))[kept[docs]] for split in SPLITS
    }
    self._check_splits()
    # Targets of each document.
    self._lengths = np.minimum(documents.lengths, block_size + 1) - 1
    used = self._docs['train' if len(self._docs['train']) else 'all']
    self.bucket_lengths = bucket_lengths(
      self._lengths[used],
      int(self._lengths[self._docs['all']].max(initial=1)),
      block_size,
    )
    # Rows of the training batches: one document each, or several if packed.
    self._rows = [[i] for i in self._docs['train'].tolist()]
    if packing:
      lengths = self._lengths[self._docs['train']] + 1
      self._rows = [
        self._docs['train'][window].tolist()
        for window in pack(lengths, block_size + 1)
      ]
    self.steps_per_epoch = -(-len(self._rows) // batch_size)
    self._cached_epoch: tuple[int, np.ndarray] | None = None

  @property
  def _assistant_only(self) -> bool:
    return self.loss_on == 'assistant' and self.corpus.chat

  def _check_splits(self) -> None:
    for split in self._splits:
      if not len(self._docs[split]):
        raise UserError(self._explain_empty(split))
      if not any(map(self._has_target, self._docs[split].tolist())):
        raise UserError(
          f'no conversation of split {split} has an assistant token within '
          f'the first {self.block_size} tokens: raise '
          '--config.model.block_size, or set --config.data.loss_on=all'
        )

  def _has_target(self, i: int) -> bool:
    """Whether a target of document i counts in the loss."""
    if not self._assistant_only:
      return True
    return bool(self.corpus.assistant(i)[1 : self.block_size + 1].any())

  def _explain_empty(self, split: str) -> str:
    noun, n = self.corpus.noun, self.corpus.size(split)
    if self._skip_long and n:
      return (
        f'data.skip_long leaves no {noun} for split {split}: none of {n:,} '
        f'fits in block_size {self.block_size}. Raise '
        '--config.model.block_size, or set --config.data.skip_long=false to '
        'cut long ones'
      )
    return (
      f'no {noun} for split {split}: there are {len(self.corpus):,} in all, '
      'and identical ones stay in the same split. Give more text, or change '
      '--config.data.val_fraction'
    )

  def notes(self) -> list[str]:
    """Lines to log: documents dropped or cut, and how full the batches are."""
    n, noun = len(self.corpus), self.corpus.noun
    lines = []
    if self._skip_long:
      lines.append(
        f'skip_long: dropped {self._too_long:,} of {n:,} {noun} (longer than '
        f'block_size {self.block_size}); {n - self._too_long:,} left: '
        f'{len(self._docs["train"]):,} train, {len(self._docs["val"]):,} val'
      )
    elif self._too_long:
      lines.append(
        f'{self._too_long:,} of {n:,} {noun} are longer than block_size '
        f'{self.block_size} and will be cut; --config.data.skip_long drops '
        'them instead'
      )
    if 'train' in self._splits:
      lines.append(self._describe_batches())
    return lines

  def _describe_batches(self) -> str:
    fill = self.fill()
    if self._packing:
      rows = f'{len(self._rows):,} windows of {self.block_size} tokens'
    else:
      rows = f'rows of {", ".join(map(str, self.bucket_lengths))} tokens'
    return (
      f'batches: {len(self._docs["train"]):,} {self.corpus.noun} in {rows}, '
      f'{self.steps_per_epoch:,} steps per epoch; {fill["here"]:.1%} of the '
      f'positions are used (with one per window of {self.block_size}: '
      f'{fill["window"]:.1%})'
    )

  @property
  def losses(self) -> tuple[str, ...]:
    """Names of the target sets whose mean loss a full pass reports."""
    return ('assistant', 'all') if self.corpus.chat else ('all',)

  def with_loss(self, loss_on: str) -> 'DocumentDataset':
    """A view of the same documents, weighted for another of `losses`."""
    other = copy.copy(self)
    other.loss_on = loss_on
    return other

  def targets(self, split: str) -> int:
    """Number of predicted tokens of a split, whatever `loss_on` is."""
    return int(self._lengths[self._docs[split]].sum())

  def fill(self) -> dict[str, float]:
    """Share of the positions of a training epoch that hold targets, 0 to 1.

    Returns:
      'here': in the batches of this dataset; 'window': if each document had a
      row of block_size to itself.
    """
    batches = self._epoch(0)
    used = sum(
      self._lengths[self._rows[i]].sum() for i in batches.reshape(-1).tolist()
    )
    here = sum(map(self._batch_length, batches)) * self.batch_size
    alone = len(self._docs['train']) * self.block_size
    return {'window': self.targets('train') / alone, 'here': float(used) / here}

  def _batch_length(self, ids: np.ndarray) -> int:
    """Length in targets of a batch that holds the rows `ids`."""
    if self._packing:
      return self.block_size
    longest = max(int(self._lengths[self._rows[i][0]]) for i in ids)
    return fitting(longest, self.bucket_lengths)

  def _epoch(self, epoch: int) -> np.ndarray:
    """int64[steps_per_epoch, batch_size]: row indices of an epoch's batches."""
    if self._cached_epoch is None or self._cached_epoch[0] != epoch:
      self._cached_epoch = epoch, self._shuffle(epoch)
    return self._cached_epoch[1]

  def _shuffle(self, epoch: int) -> np.ndarray:
    """`_epoch`, computed: sorted into buckets, batched, batches shuffled."""
    n = len(self._rows)
    order = np.argsort(random_uniform(self.seed, epoch, ORDER_STREAM, n))
    if not self._packing:
      longest = self._lengths[[row[0] for row in self._rows]]
      bucket = np.searchsorted(self.bucket_lengths, longest)
      order = order[np.argsort(bucket[order], kind='stable')]
    # np.resize repeats rows from the front to fill the last batch.
    steps = self.steps_per_epoch
    batches = np.resize(order, steps * self.batch_size).reshape(steps, -1)
    draws = random_uniform(self.seed, epoch, BATCH_STREAM, steps)
    return batches[np.argsort(draws)]

  def batch_at(self, step: int, rows: slice = slice(None)) -> Batch:
    """The training batch of `step` (0-based), or some of its rows.

    Returns:
      tokens int32[B, T+1]; weights float32[B, T] of the targets
      tokens[:, 1:]; rows int32[B], indices into the whole batch. With packing
      also segments int32[B, T+1] (0: padding) and positions int32[B, T]. T is
      one of `bucket_lengths`, or block_size with packing.
    """
    epoch, i = divmod(step, self.steps_per_epoch)
    ids = self._epoch(epoch)[i]
    batch = self._read(
      [self._rows[i] for i in ids[rows]], self._batch_length(ids)
    )
    if not self._packing:
      del batch['segments'], batch['positions']
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
      windows: None for every document once; otherwise the number of random
        documents with targets, the same ones on every call and for every seed.
      batch_size: rows per batch, by default as in training. The last batch is
        padded with rows of weight 0.

    Yields:
      tokens, weights and rows as in batch_at.
    """
    batch_size = batch_size or self.batch_size
    docs = self._docs[split]
    if windows is not None:
      draws = random_uniform(0, SPLITS.index(split), EVAL_STREAM, len(docs))
      drawn = filter(self._has_target, docs[np.argsort(draws)].tolist())
      docs = np.array(list(itertools.islice(drawn, windows)), np.int64)
    docs = docs[np.argsort(self._lengths[docs], kind='stable')]
    for first in range(0, len(docs), batch_size):
      part = docs[first : first + batch_size]
      length = fitting(int(self._lengths[part].max()), self.bucket_lengths)
      rows: list[list[int]] = [[i] for i in part.tolist()]
      rows += [[]] * (batch_size - len(part))
      batch = self._read(rows, length)
      yield {
        'tokens': batch['tokens'],
        'weights': batch['weights'],
        'rows': np.arange(batch_size, dtype=np.int32),
      }

  def _read(self, rows: list[list[int]], length: int) -> Batch:
    """A batch of `length` targets; each row lists its documents."""
    shape = len(rows), length + 1
    tokens = np.full(shape, self._pad, np.int32)
    segments, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    places = []
    for r, docs in enumerate(rows):
      at = 0
      for number, i in enumerate(docs, 1):
        ids = self.corpus.read(i)[: self.block_size + 1]
        span = slice(at, at + len(ids))
        tokens[r, span], segments[r, span] = ids, number
        positions[r, span] = np.arange(len(ids))
        places.append((i, r, span))
        at += len(ids)
    counts = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    if self._assistant_only:
      counts &= self.corpus.assistant_in(tokens, places)[:, 1:]
    return {
      'tokens': tokens,
      'weights': counts.astype(np.float32),
      'segments': segments,
      # A document's last token is a target only, so its position, which may
      # be block_size, is never used.
      'positions': np.minimum(positions[:, :-1], self.block_size - 1),
    }


def bucket_lengths(
  lengths: np.ndarray | Sequence[int], longest: int, block_size: int
) -> list[int]:
  """The batch lengths that waste the fewest positions on padding.

  Args:
    lengths: int[n], targets of the documents to batch.
    longest: what the largest batch length must fit.
    block_size: the limit of a batch length.

  Returns:
    At most MAX_LENGTHS ascending lengths: multiples of block_size / 32 (of 4
    at least), the last one capped at block_size.
  """
  unit = max(4, -(-block_size // 32))
  top = min(-(-longest // unit) * unit, block_size)
  # up_to[i]: number of documents that fit in i units.
  units = np.minimum(-(-np.asarray(lengths) // unit), -(-top // unit))
  up_to = np.cumsum(np.bincount(units, minlength=-(-top // unit) + 1))
  choices = itertools.chain.from_iterable(
    itertools.combinations(range(1, len(up_to) - 1), n)
    for n in range(MAX_LENGTHS)
  )

  def positions(chosen: tuple[int, ...]) -> int:
    fit = [up_to[i] for i in chosen] + [up_to[-1]]
    size = [i * unit for i in chosen] + [top]
    return sum(
      (n - before) * length for n, before, length in zip(fit, [0, *fit], size)
    )

  return [i * unit for i in min(choices, key=positions)] + [top]


def fitting(n: int, lengths: list[int]) -> int:
  """The smallest of ascending `lengths` that is at least n."""
  return next(length for length in lengths if length >= n)
