"""Documents -> batch_at(step): whole ones, of similar length or packed.

As in dataset.py, batches are a pure function of (seed, step): an epoch is a
permutation drawn from (seed, epoch), and a step knows its epoch.
"""

import copy
import itertools
import logging

import numpy as np

from gpt.data.conversations import AssistantTokens
from gpt.data.documents import Documents
from gpt.data.packing import pack
from gpt.data.text_dataset import EVAL_STREAM, SPLITS, Batch, random_uniform
from gpt.errors import UserError

logger = logging.getLogger(__name__)

# Streams of random numbers, beside those of dataset.py and documents.py.
ORDER_STREAM, BATCH_STREAM = 3, 4
# A training step is compiled for each length of a batch.
MAX_LENGTHS = 4


class DocumentDataset:
  """Batches of whole documents.

  A document of n tokens has n - 1 targets: all but the opening one, or what
  the assistant says. Documents of similar length share a batch, which is as
  long as the shortest of a few fixed lengths that fits; padding has weight 0.
  Each epoch has every training document once (and some of the first ones twice
  to fill the last batch). With packing, a row holds several documents, apart
  by their `segments`, each at `positions` from 0.
  """

  def __init__(
    self,
    documents: Documents,
    block_size: int,
    batch_size: int,
    seed: int,
    tokenizer,
    *,
    skip_long: bool = False,
    loss_on: str = 'all',
    packing: bool = False,
    splits=('train', 'val'),
  ):
    """Args as named; see configs/default.py and Documents.

    Args:
      splits: those that will be used.

    Raises:
      UserError: a split without documents.
    """
    self.corpus = documents
    self.block_size = block_size
    self.batch_size = batch_size
    self.seed = seed
    self.loss_on = loss_on
    self._pad = tokenizer.eos_id
    self._assistant = AssistantTokens(tokenizer) if documents.chat else None
    self.bytes_V = np.array(
      [len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)],
      np.int32,
    )
    fits = documents.lengths <= block_size + 1
    kept = fits if skip_long else np.ones(len(fits), bool)
    self._docs = {
      split: (docs := documents.chosen(split))[kept[docs]] for split in SPLITS
    }
    self._say_what_is_long(fits, skip_long)
    for split in splits:
      if not len(self._docs[split]):
        raise UserError(self._nothing_in(split, skip_long))
      if loss_on == 'assistant' and not self._has_targets(split):
        raise UserError(
          f'no conversation of split {split} has a word of the assistant in '
          f'the first {block_size} tokens: raise --config.model.block_size, or '
          'set --config.data.loss_on=all'
        )
    self._lengths = np.minimum(documents.lengths, block_size + 1) - 1
    used = self._docs['train' if len(self._docs['train']) else 'all']
    self.bucket_lengths = bucket_lengths(
      self._lengths[used],
      int(self._lengths[self._docs['all']].max(initial=1)),
      block_size,
    )
    # What training draws: rows of one document, or of several.
    self._rows = [[i] for i in self._docs['train'].tolist()]
    if packing:
      lengths = self._lengths[self._docs['train']] + 1
      self._rows = [
        self._docs['train'][window].tolist()
        for window in pack(lengths, block_size + 1)
      ]
    self._packing = packing
    self.steps_per_epoch = -(-len(self._rows) // batch_size)
    self._epoch_kept: tuple[int, np.ndarray] | None = None
    if 'train' in splits:
      logger.info(self._describe_batches())

  def _has_targets(self, split: str) -> bool:
    """Whether the assistant says anything that is not cut off."""
    return any(map(self._has_target, self._docs[split].tolist()))

  def _has_target(self, i: int) -> bool:
    if self.loss_on == 'all':
      return True
    ids = self.corpus.read(i)[: self.block_size + 1]
    return bool(self._assistant(ids[None])[0, 1:].any())

  def _say_what_is_long(self, fits, skip_long) -> None:
    n, noun = len(fits), self.corpus.noun
    too_long = int((~fits).sum())
    limit = f'block_size {self.block_size}'
    if skip_long:
      logger.info(
        f'skip_long: {too_long:,} of {n:,} {noun} dropped (longer than '
        f'{limit}), {n - too_long:,} kept: {len(self._docs["train"]):,} train, '
        f'{len(self._docs["val"]):,} val'
      )
    elif too_long:
      logger.info(
        f'{too_long:,} of {n:,} {noun} are longer than {limit} and are cut '
        'there; --config.data.skip_long drops them'
      )

  def _describe_batches(self) -> str:
    docs, noun = len(self._docs['train']), self.corpus.noun
    fill = self.fill()
    if self._packing:
      rows = f'{docs:,} {noun} in {len(self._rows):,} windows of '
      rows += f'{self.block_size} tokens'
    else:
      lengths = ', '.join(map(str, self.bucket_lengths))
      rows = f'{docs:,} {noun} in rows of {lengths} tokens'
    return (
      f'batches: {rows}, {self.steps_per_epoch:,} steps an epoch; '
      f'{fill["here"]:.1%} of the positions are used (each alone in '
      f'{self.block_size}: {fill["window"]:.1%})'
    )

  def _nothing_in(self, split: str, skip_long: bool) -> str:
    noun, n = self.corpus.noun, len(self.corpus)
    if skip_long and len(self.corpus.chosen(split)):
      return (
        f'data.skip_long leaves no {noun} for split {split}: none of '
        f'{len(self.corpus.chosen(split)):,} fits in block_size '
        f'{self.block_size}. Raise --config.model.block_size, or set '
        '--config.data.skip_long=false to cut them'
      )
    return (
      f'no {noun} for split {split}: there are {n:,} in all, and equal ones '
      'are held out together. Give more, or change '
      '--config.data.val_fraction'
    )

  @property
  def losses(self) -> tuple[str, ...]:
    """What a full pass reports: the mean over these targets."""
    return ('assistant', 'all') if self.corpus.chat else ('all',)

  def with_loss(self, loss_on: str) -> 'DocumentDataset':
    """The same documents, with weights for another of `losses`."""
    other = copy.copy(self)
    other.loss_on = loss_on
    return other

  def targets(self, split: str) -> int:
    """How many tokens of a split are predicted, whatever counts as loss."""
    return int(self._lengths[self._docs[split]].sum())

  def fill(self) -> dict[str, float]:
    """The share of a training epoch's positions that hold documents.

    Returns:
      'window': each document alone in a row of block_size; 'here': as this
      dataset batches them.
    """
    batches = self._epoch(0)
    used = sum(
      self._lengths[self._rows[i]].sum() for i in batches.reshape(-1).tolist()
    )
    here = sum(map(self._batch_length, batches)) * self.batch_size
    alone = len(self._docs['train']) * self.block_size
    return {'window': self.targets('train') / alone, 'here': float(used) / here}

  def _batch_length(self, ids) -> int:
    """Targets of a row in a batch of these rows."""
    if self._packing:
      return self.block_size
    longest = max(int(self._lengths[self._rows[i][0]]) for i in ids)
    return fitting(longest, self.bucket_lengths)

  def _epoch(self, epoch: int) -> np.ndarray:
    """int64[steps_per_epoch, batch_size]: the rows of an epoch's batches."""
    if self._epoch_kept is None or self._epoch_kept[0] != epoch:
      self._epoch_kept = epoch, self._shuffle(epoch)
    return self._epoch_kept[1]

  def _shuffle(self, epoch: int) -> np.ndarray:
    n = len(self._rows)
    order = np.argsort(random_uniform(self.seed, epoch, ORDER_STREAM, n))
    if not self._packing:
      longest = self._lengths[[row[0] for row in self._rows]]
      bucket = np.searchsorted(self.bucket_lengths, longest)
      order = order[np.argsort(bucket[order], kind='stable')]
    # The last batch is filled up from the front.
    steps = self.steps_per_epoch
    batches = np.resize(order, steps * self.batch_size).reshape(steps, -1)
    draws = random_uniform(self.seed, epoch, BATCH_STREAM, steps)
    return batches[np.argsort(draws)]

  def batch_at(self, step: int, rows: slice = slice(None)) -> Batch:
    """The training batch of `step` (0-based), or some of its rows.

    Returns:
      tokens int32[B, T+1], weights float32[B, T] of the targets
      tokens[:, 1:], rows int32[B], the indices in the whole batch; with
      packing also segments int32[B, T+1] (0: padding) and positions
      int32[B, T]. T is one of `bucket_lengths`, with packing block_size.
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

  def eval_batches(self, split: str, windows=None, batch_size=None):
    """Yields batches that cover a split, or a fixed random part of it.

    Args:
      split: 'val', 'train' or 'all'.
      windows: None for every document once; a number for that many random
        ones with targets, the same every time and for every seed.
      batch_size: rows per batch, default the training batch size. The last
        batch is filled up with rows of weight 0.
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
      empty = [[]] * (batch_size - len(part))
      batch = self._read([[i] for i in part] + empty, length)
      yield {
        'tokens': batch['tokens'],
        'weights': batch['weights'],
        'rows': np.arange(batch_size, dtype=np.int32),
      }

  def _read(self, rows: list[list[int]], length: int) -> Batch:
    shape = len(rows), length + 1
    tokens = np.full(shape, self._pad, np.int32)
    segments, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for r, docs in enumerate(rows):
      at = 0
      for number, i in enumerate(docs, 1):
        ids = self.corpus.read(i)[: self.block_size + 1]
        span = slice(at, at + len(ids))
        tokens[r, span], segments[r, span] = ids, number
        positions[r, span] = np.arange(len(ids))
        at += len(ids)
    counts = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    if self.loss_on == 'assistant':
      counts &= self._assistant(tokens)[:, 1:]
    return {
      'tokens': tokens,
      'weights': counts.astype(np.float32),
      'segments': segments,
      # A document's last token is never fed, its place may be block_size.
      'positions': np.minimum(positions[:, :-1], self.block_size - 1),
    }


def bucket_lengths(lengths, longest: int, block_size: int) -> list[int]:
  """The few lengths that batches may have: those that waste least.

  Args:
    lengths: int[n], targets of the documents that are to be batched.
    longest: what the last of them must fit.

  Returns:
    At most MAX_LENGTHS numbers, ascending: of the multiples of block_size/32
    (at least 4) those with the least padding in sum.
  """
  unit = max(4, -(-block_size // 32))
  top = min(-(-longest // unit) * unit, block_size)
  # up_to[i]: how many documents fit in i units.
  units = np.minimum(-(-np.asarray(lengths) // unit), -(-top // unit))
  up_to = np.cumsum(np.bincount(units, minlength=-(-top // unit) + 1))
  choices = itertools.chain.from_iterable(
    itertools.combinations(range(1, len(up_to) - 1), n)
    for n in range(MAX_LENGTHS)
  )

  def positions(chosen) -> int:
    fit = [up_to[i] for i in chosen] + [up_to[-1]]
    size = [i * unit for i in chosen] + [top]
    return sum(
      (n - before) * length for n, before, length in zip(fit, [0, *fit], size)
    )

  return [i * unit for i in min(choices, key=positions)] + [top]


def fitting(n: int, lengths: list[int]) -> int:
  """The smallest of ascending `lengths` that is at least n."""
  return next(length for length in lengths if length >= n)
