"""How hard a text is to predict, found by counting in a second.

The loss of a network depends on its text as much as on its size. A model of
byte n-grams, counted on samples of the text and scored on its held-out part,
tells the law (law.py) what to expect of a text it has never seen. It also looks
for repeats a few lines back, as attention does: code is full of them.

References:
  Ney, Essen & Kneser 1994, absolute discounting with interpolation
  (https://doi.org/10.1006/csla.1994.1001).
"""

import dataclasses
import re
from collections.abc import Iterator

import numpy as np

from gpt.errors import UserError

# What every count of an n-gram gives to shorter ones, by symbols of context.
DISCOUNTS = (0.75, 0.75, 0.75, 1.5, 1.5, 1.5)
# Bytes counted, first a quarter of them to see what more text gives; bytes
# scored.
LARGE, QUARTER, SCORED = 1 << 19, 1 << 17, 1 << 16
# Symbols from which on a line is no longer compared with the one before.
SORTED = 8
# Lengths of context that are looked for, and how many symbols back.
REPEATS, WINDOW = (4, 5, 6), 64
# Samples are this many pieces, spread evenly: a book's chapters differ.
PIECES = 16
NEWLINE = 10


@dataclasses.dataclass(frozen=True)
class Entropy:
  """What n-grams and repeats find in a text.

  Attributes:
    bits: bits per held-out byte, having counted LARGE bytes, or all of them.
    fewer: the same, having counted QUARTER bytes, or all of them.
  """

  bits: float
  fewer: float


def measure(train: np.ndarray, held_out: np.ndarray) -> Entropy:
  """Counts n-grams of `train` and scores `held_out`: half a second.

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
  return Entropy(
    _bits_per_byte(sample(train, LARGE), scored),
    _bits_per_byte(sample(train, QUARTER), scored),
  )


def sample(data: np.ndarray, size: int) -> np.ndarray:
  """uint8[size]: PIECES of `data`, spread evenly; all of it if it is short."""
  if len(data) <= size:
    return np.asarray(data)
  piece = size // PIECES
  starts = np.linspace(0, len(data) - piece, PIECES).astype(int)
  return np.concatenate([data[start : start + piece] for start in starts])


def _bits_per_byte(train: np.ndarray, scored: np.ndarray) -> float:
  """Bits per byte of `scored`, by counts of `train` and by its own repeats."""
  symbols = _joined(scored)
  p = _by_counts(_joined(train), symbols)
  for here, right in _lines(symbols):
    p = _mixed(p, here, right)
  for length in REPEATS:
    before, right = _repeats(symbols, length)
    p = _mixed(p, before, right)
  return float(-np.log2(p).sum() / len(scored))


def _joined(data: np.ndarray) -> np.ndarray:
  """uint8 symbols: bytes, but a run of spaces is one symbol.

  An indentation is one thing to a network that sees the line before.
  """
  return np.frombuffer(
    re.sub(
      rb'[ \t]{2,}',
      lambda run: bytes([0x80 + min(len(run[0]), 0x7F)]),
      data.tobytes(),
    ),
    np.uint8,
  )


def _by_counts(train: np.ndarray, scored: np.ndarray) -> np.ndarray:
  """float64[M]: the probability of each symbol of `scored`.

    p_k(x | c) = (max(n(cx) - d_k, 0) + r(c) p_{k-1}(x | c')) / n(c)

  with r(c) what the symbols after context c gave away, the sum of their
  min(n(cx), d_k), and c' without its first symbol.
  """
  p = np.full(len(scored), 1 / 256)
  for order, discount in enumerate(DISCOUNTS):
    if min(len(train), len(scored)) <= order:
      break
    keys, counts = np.unique(_ngrams(train, order), return_counts=True)
    contexts, starts = np.unique(keys >> np.uint64(8), return_index=True)
    totals = np.add.reduceat(counts, starts)
    given = np.add.reduceat(np.minimum(counts, discount), starts)
    wanted = _ngrams(scored, order)
    context = wanted >> np.uint64(8)
    total = _look_up(contexts, totals, context)
    kept = np.maximum(_look_up(keys, counts, wanted) - discount, 0)
    mixed = kept + _look_up(contexts, given, context) * p[order:]
    p[order:] = np.where(total > 0, mixed / np.maximum(total, 1), p[order:])
  return p


def _lines(symbols: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Guesses from the previous line where both begin alike, as in sorted lists.

  Yields:
    For every number of symbols in which lines agree, from 0 to SORTED - 1: the
    indices of the symbols that follow, int64[K], and whether those agree, too,
    bool[K].
  """
  begins = np.flatnonzero(symbols[:-1] == NEWLINE) + 1
  here, before = begins[1:], begins[:-1]
  for _ in range(SORTED):
    right = symbols[here] == symbols[before]
    yield here, right
    on = right & (symbols[here] != NEWLINE) & (here + 1 < len(symbols))
    here, before = here[on] + 1, before[on] + 1


def _repeats(symbols: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
  """What the last WINDOW symbols say about the next one.

  Returns:
    Indices of the symbols before which the last `length` ones came before as
    well, int64[K]; whether the symbol that followed follows again, bool[K].
  """
  keys = _ngrams(symbols, length - 1)[:-1]  # Key i ends at i + length - 1.
  order = np.argsort(keys, kind='stable')
  again = np.flatnonzero(keys[order][1:] == keys[order][:-1])
  here, before = order[again + 1], order[again]
  near = here - before <= WINDOW
  here, before = here[near] + length, before[near] + length
  return here, symbols[before] == symbols[here]


def _mixed(p: np.ndarray, here: np.ndarray, right: np.ndarray) -> np.ndarray:
  """At `here`, w [right] + (1 - w) p, with the w that is likeliest (by EM)."""
  if not len(here):
    return p
  old, weight = p[here], 0.3
  for _ in range(20):
    weight = np.mean(right * weight / (weight + (1 - weight) * old))
  p = p.copy()
  p[here] = weight * right + (1 - weight) * old
  return p


def _ngrams(data: np.ndarray, order: int) -> np.ndarray:
  """uint64[N - order]: each byte and the `order` bytes before it, packed."""
  length = max(0, len(data) - order)
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
