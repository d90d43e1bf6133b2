"""The merges of RandyGPT's vocab.json, applied to the ids of a line.

The rule: the applicable merge with the lowest merged id is applied everywhere,
left to right, until none applies. Of several merges that give the same id, the
first in the file goes first.
"""

import functools
import heapq
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

Pair = tuple[int, int]
# Ids of a line from which another way is faster, with passes and with a heap.
LONG_FOR_PASSES, LONG_FOR_HEAP = 1 << 8, 1 << 16


class Merges:
  """Merges by rank: the order in which the rule applies them.

  Args:
    merged: {(left id, right id): merged id}, in the file's order.
  """

  def __init__(self, merged: Mapping[Pair, int]) -> None:
    by_rank = sorted(merged.items(), key=lambda entry: entry[1])  # Stable.
    self.pairs = [pair for pair, _ in by_rank]
    self.merged = [m for _, m in by_rank]
    self.ranks = {pair: rank for rank, pair in enumerate(self.pairs)}
    # No merge can create a pair that should have been merged before it.
    self.ordered = all(max(pair) < m for pair, m in by_rank)

  def apply(self, symbols: Sequence[int]) -> list[int]:
    """The ids of a line with all merges applied."""
    if self.ordered and len(symbols) < LONG_FOR_HEAP:
      return self.by_heap(symbols)
    if not self.ordered and len(symbols) < LONG_FOR_PASSES:
      return self.by_passes(symbols)
    return self.by_ranks(symbols)

  def by_passes(self, symbols: Sequence[int]) -> list[int]:
    """The rule, literally."""
    symbols = list(symbols)
    while True:
      found = [self.ranks.get(p, -1) for p in zip(symbols, symbols[1:])]
      found = [rank for rank in found if rank >= 0]
      if not found:
        return symbols
      for rank in self._same(min(found)):
        merged = self.merged[rank]
        symbols = _merge_everywhere(symbols, self.pairs[rank], merged)

  def by_heap(self, symbols: Sequence[int]) -> list[int]:
    """The result of by_passes in O(n log n), if the merges are `ordered`.

    A merge can only create pairs of a higher rank. Taking the leftmost pair of
    the lowest rank from a heap is then one pass from left to right.
    """
    n, symbols, rank_of = len(symbols), list(symbols), self.ranks.get
    right = list(range(1, n + 1))
    left = list(range(-1, n - 1))
    # Rank and place in one number.
    pairs = enumerate(map(rank_of, zip(symbols, symbols[1:])))
    heap = [(rank << 32) + i for i, rank in pairs if rank is not None]
    heapq.heapify(heap)
    while heap:
      rank, i = divmod(heapq.heappop(heap), 1 << 32)
      j = right[i]
      if j >= n or rank_of((symbols[i], symbols[j])) != rank:
        continue  # One of the two has been merged with its other neighbour.
      symbols[i], symbols[j] = self.merged[rank], -1
      h, k = left[i], right[j]
      right[i] = k
      if k < n:
        left[k] = i
        new = rank_of((symbols[i], symbols[k]))
        if new is not None:
          heapq.heappush(heap, (new << 32) + i)
      if h >= 0:
        new = rank_of((symbols[h], symbols[i]))
        if new is not None:
          heapq.heappush(heap, (new << 32) + h)
    return [s for s in symbols if s >= 0]

  def by_ranks(self, symbols: Sequence[int]) -> list[int]:
    """The result of by_passes, all places of a merge at once.

    Takes 60 bytes for each id, and time for each different merge that applies:
    the fastest for long lines.
    """
    n = len(symbols)
    line = np.array([*symbols, -1], np.int32)  # -1: merged, or the end.
    right = np.arange(1, n + 2, dtype=np.int32)
    left = np.arange(-1, n, dtype=np.int32)
    places: dict[int, list[np.ndarray]] = {}  # Of each rank.
    heap: list[int] = []

    def add(at: np.ndarray) -> None:
      """Notes the ranks of the pairs that begin at int32[n] `at`."""
      ranks = self._ranks_of(line[at], line[right[at]])
      at, ranks = at[ranks >= 0], ranks[ranks >= 0]
      order = np.argsort(ranks, kind='stable')
      ends = np.flatnonzero(np.diff(ranks[order], append=-1)) + 1
      start = 0
      for end in ends.tolist():
        rank = int(ranks[order[start]])
        if rank not in places:
          heapq.heappush(heap, rank)
        places.setdefault(rank, []).append(at[order[start:end]])
        start = end

    add(np.arange(n, dtype=np.int32))
    while heap:
      for rank in self._same(heapq.heappop(heap)):
        at = np.sort(np.concatenate(places.pop(rank, [right[:0]])))
        at = at[np.diff(at, prepend=-1) > 0]  # Each place once.
        at = at[self._ranks_of(line[at], line[right[at]]) == rank]
        if not at.size:
          continue
        at = _every_other(at, right)
        gone = right[at]
        line[at], line[gone] = self.merged[rank], -1
        right[at] = right[gone]
        left[right[at]] = at
        before = left[at]
        add(np.concatenate([at, before[before >= 0]]))
    return line[line >= 0].tolist()

  def _same(self, rank: int) -> Iterator[int]:
    """This rank and the next ones that give the same id."""
    merged = self.merged[rank]
    while rank < len(self.merged) and self.merged[rank] == merged:
      yield rank
      rank += 1

  @functools.cached_property
  def _table(self) -> tuple[int, np.ndarray, np.ndarray]:
    """(a base, pairs as sorted numbers to this base, their ranks).

    The last entry stands for no merge.
    """
    base = 1 + max(map(max, self.pairs), default=0)
    keys = [a * base + b for a, b in self.pairs]
    order = np.argsort(keys)
    return base, np.array([*keys, -1])[[*order, -1]], np.array([*order, -1])

  def _ranks_of(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """int64[n] ranks of the pairs of int32[n] ids; -1: no merge."""
    base, keys, ranks = self._table
    wanted = a.astype(np.int64) * base + b
    at = np.searchsorted(keys[:-1], wanted)
    good = (keys[at] == wanted) & (a >= 0) & (b >= 0) & (b < base)
    return np.where(good, ranks[at], -1)


def _merge_everywhere(symbols: list[int], pair: Pair, merged: int) -> list[int]:
  """`symbols` with each occurrence of `pair` merged, left to right."""
  out, i = [], 0
  while i < len(symbols):
    if tuple(symbols[i : i + 2]) == pair:
      out.append(merged)
      i += 2
    else:
      out.append(symbols[i])
      i += 1
  return out


def _every_other(at: np.ndarray, right: np.ndarray) -> np.ndarray:
  """Places of pairs without those whose left part the pair before takes.

  In 'aaaa', where 'aa' may be merged at 0, 1 and 2, these are 0 and 2.
  """
  n = np.arange(len(at))
  follows = np.append(False, at[1:] == right[at[:-1]])[: len(at)]
  since = n - np.maximum.accumulate(np.where(follows, 0, n))
  return at[since % 2 == 0]
