"""Keys and values of earlier prompts, reused where another begins alike.

A tree of blocks: each holds the columns of BLOCK tokens and hangs below the
block of the tokens before them, the first below its set of weights. The tokens
themselves are the keys, so no prefix is ever taken for another. A column
depends on the tokens up to its own alone: whoever computed it, the text that
follows is the same.
"""

import collections
import dataclasses
from collections.abc import Callable, Collection

import numpy as np

from serving.engine.weights import Weights

BLOCK = 16


@dataclasses.dataclass(eq=False)
class Block:
  """The columns of some tokens.

  Attributes:
    key: (what it hangs below, its tokens as bytes).
    columns: float[2N, G, BLOCK, K].
    weights: that computed it.
  """

  key: tuple['Weights | Block', bytes]
  columns: np.ndarray
  weights: Weights


class PrefixCache:
  """A bounded tree, the longest unused leaf of which goes first.

  The engine's thread alone uses it.

  Args:
    limit: bytes of columns; 0 keeps nothing.

  Attributes:
    size: bytes of all blocks. reserved: bytes that others keep, see `reserve`.
  """

  def __init__(self, limit: int) -> None:
    self.limit = limit
    self.size = 0
    self.reserved = 0
    # Least recently used first. A block follows all that hang below it.
    self._blocks: collections.OrderedDict[
      tuple[Weights | Block, bytes], Block
    ] = collections.OrderedDict()
    self._live: tuple[Weights, ...] = ()

  def find(self, weights: Weights, tokens: np.ndarray) -> list[np.ndarray]:
    """The columns of the longest known beginning of int32[n] tokens.

    Returns:
      Pieces float[2N, G, BLOCK, K], in order.
    """
    return [block.columns for block in self._path(weights, tokens)]

  def enter(
    self,
    weights: Weights,
    tokens: np.ndarray,
    read: Callable[[int, int], np.ndarray],
  ) -> None:
    """Adds the columns of tokens, as far as they fill blocks.

    Args:
      read: (first, n) -> float[2N, G, n, K] columns, called if some are new.
    """
    if not self.limit or weights not in self._live:
      return
    path = self._path(weights, tokens)
    first, end = len(path) * BLOCK, len(tokens) // BLOCK * BLOCK
    if first == end:
      return
    columns = read(first, end - first)
    for i in range(first, end, BLOCK):
      key = path[-1] if path else weights, tokens[i : i + BLOCK].tobytes()
      at = i - first
      block = Block(key, columns[:, :, at : at + BLOCK].copy(), weights)
      self._blocks[key] = block
      self.size += block.columns.nbytes
      path.append(block)
    self._touch(path)
    self._shrink()

  def reserve(self, size: int) -> bool:
    """Takes `size` bytes of the limit for other columns; False if too many."""
    if self.reserved + size > self.limit:
      return False
    self.reserved += size
    self._shrink()
    return True

  def unreserve(self, size: int) -> None:
    """Returns what `reserve` took."""
    self.reserved -= size

  def keep(self, weights: Collection[Weights]) -> None:
    """Drops the columns of all other weights, now and from now on."""
    if set(self._live) == set(weights):
      return
    self._live = tuple(weights)
    for key, block in list(self._blocks.items()):
      if block.weights not in self._live:
        self._drop(key)

  def _path(self, weights: Weights, tokens: np.ndarray) -> list[Block]:
    path: list[Block] = []
    for i in range(0, len(tokens) - BLOCK + 1, BLOCK):
      parent = path[-1] if path else weights
      block = self._blocks.get((parent, tokens[i : i + BLOCK].tobytes()))
      if block is None:
        break
      path.append(block)
    self._touch(path)
    return path

  def _touch(self, path: list[Block]) -> None:
    for block in reversed(path):
      self._blocks.move_to_end(block.key)

  def _shrink(self) -> None:
    while self._blocks and self.size + self.reserved > self.limit:
      self._drop(next(iter(self._blocks)))

  def _drop(self, key: tuple[Weights | Block, bytes]) -> None:
    self.size -= self._blocks.pop(key).columns.nbytes
