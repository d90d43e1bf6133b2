"""How hard a text is to predict, found by counting in a second.

The loss of a network depends on its text as much as on its size. A model of
byte n-grams, counted on samples of the text and scored on its held-out part,
tells the law (law.py) what to expect of a text it has never seen.

References:
  Ney, Essen & Kneser 1994, absolute discounting with interpolation
  (https://doi.org/10.1006/csla.1994.1001).
"""

import dataclasses

import numpy as np

from gpt.errors import UserError

# Bytes of context, and what every count of an n-gram gives to shorter ones.
ORDER, DISCOUNT = 5, 0.75
# Bytes counted, twice, to see what more text gives, and bytes scored.
SMALL, LARGE, SCORED = 1 << 16, 1 << 19, 1 << 16
# Samples are this many pieces, spread evenly: a book's chapters differ.
PIECES = 16


@dataclasses.dataclass(frozen=True)
class Entropy:
  """What byte n-grams find in a text.

  Attributes:
    bits: bits per held-out byte, having counted SMALL bytes.
    gain: how many of them every doubling of the counted bytes saves.
  """

  bits: float
  gain: float


def measure(train: np.ndarray, held_out: np.ndarray) -> Entropy:
  """Counts n-grams of `train` and scores `held_out`: up to a second.

  Args:
    train: uint8[N], the bytes of the training split; may be a memory map, of
      which only samples are read.
    held_out: uint8[M], those of the validation split.

  Raises:
    UserError: a split has fewer than 64 bytes.
  """
  if min(len(train), len(held_out)) < 64:
    raise UserError(
      f'a text of {len(train)} bytes to train on and {len(held_out)} to '
      'validate on is too short to plan for: at least 64 each are needed'
    )
  scored = sample(held_out, SCORED)
  small = min(SMALL, len(train) // 2)
  large = min(LARGE, len(train))
  few = _bits_per_byte(sample(train, small), scored)
  many = _bits_per_byte(sample(train, large), scored)
  gain = (few - many) / float(np.log2(large / small))
  # A short text has less to count: as if it had gone on like this.
  return Entropy(few - gain * float(np.log2(SMALL / small)), gain)


def sample(data: np.ndarray, size: int) -> np.ndarray:
  """uint8[size]: PIECES of `data`, spread evenly; all of it if it is short."""
  if len(data) <= size:
    return np.asarray(data)
  piece = size // PIECES
  starts = np.linspace(0, len(data) - piece, PIECES).astype(int)
  return np.concatenate([data[start : start + piece] for start in starts])


def _bits_per_byte(train: np.ndarray, scored: np.ndarray) -> float:
  """Bits per byte of `scored` under interpolated counts of `train`.

    p_k(x | c) = max(n(cx) - d, 0) / n(c) + d t(c) / n(c) p_{k-1}(x | c')

  with t(c) different bytes after context c, and c' without its first byte. The
  first ORDER bytes are context only.
  """
  p = np.full(len(scored) - ORDER, 1 / 256)
  for order in range(ORDER + 1):
    keys, counts = np.unique(_ngrams(train, order), return_counts=True)
    contexts, first, types = np.unique(
      keys >> np.uint64(8), return_index=True, return_counts=True
    )
    totals = np.add.reduceat(counts, first)
    wanted = _ngrams(scored, order)[ORDER - order :]
    n = _look_up(keys, counts, wanted)
    in_context = _look_up(contexts, totals, wanted >> np.uint64(8))
    different = _look_up(contexts, types, wanted >> np.uint64(8))
    known = in_context > 0
    mixed = np.maximum(n - DISCOUNT, 0) + DISCOUNT * different * p
    p = np.where(known, mixed / np.maximum(in_context, 1), p)
  return float(-np.log2(p).mean())


def _ngrams(data: np.ndarray, order: int) -> np.ndarray:
  """uint64[N - order]: each byte and the `order` bytes before it, packed."""
  length = len(data) - order
  packed = np.zeros(length, np.uint64)
  for i in range(order + 1):
    packed = packed << np.uint64(8) | data[i : i + length].astype(np.uint64)
  return packed


def _look_up(
  keys: np.ndarray, values: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
  """The values of `wanted` by sorted keys; 0 where there is no such key."""
  i = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
  return np.where(keys[i] == wanted, values[i], 0)
