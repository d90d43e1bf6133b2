"""Estimates how predictable a text is from n-gram counts, in a second or two.

A network's loss depends on its text as much as on its size. The cross-entropy
of an n-gram model, trained on samples of the text and scored on the held-out
part, is the law's (law.py) only knowledge of a new text. Each context length
gets a weight that is fitted to the text, as in context-mixing compressors. The
model also copies from a few lines back, as attention can: code is full of
repeats.

References:
  Ney, Essen & Kneser 1994, absolute discounting with interpolation
  (https://doi.org/10.1006/csla.1994.1001).
  Jelinek & Mercer 1980: weights by how often a context was seen.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np

from gpt.errors import UserError

# What every count of an n-gram gives to shorter ones, by symbols of context.
DISCOUNTS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.9, 0.9, 0.9)
# Bytes counted, and half and a quarter of them to see what more text gives;
# bytes scored.
LARGE, HALF, QUARTER, SCORED = 1 << 19, 1 << 18, 1 << 17, 1 << 16
# Contexts that were seen so many times, in powers of two, are trusted alike.
MOST_SEEN = 9
# Smaller groups of symbols have a weight of 1/2; no weight is 0 or 1.
FEWEST, LEAST = 8, 0.001
# Other characters than ASCII's are one symbol each if a text has no more.
ALPHABET = 125
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
    half: the same, having counted HALF bytes, or all of them.
    quarter: the same, having counted QUARTER bytes, or half of them: a short
      text would teach more, too, if there were more of it.
  """

  bits: float
  half: float
  quarter: float


def measure(train: np.ndarray, held_out: np.ndarray) -> Entropy:
  """Counts n-grams of `train` and scores `held_out`: a second or two.

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
  sizes = LARGE, HALF, min(QUARTER, len(train) // 2)
  samples = [sample(train, size) for size in sizes]
  *counted, symbols = map(_joined, _characters(*samples, scored))
  return Entropy(*(_bits(x, symbols) / len(scored) for x in counted))


def sample(data: np.ndarray, size: int) -> np.ndarray:
  """uint8[size]: PIECES of `data`, spread evenly; all of it if it is short."""
  if len(data) <= size:
    return np.asarray(data)
  piece = size // PIECES
  starts = np.linspace(0, len(data) - piece, PIECES).astype(int)
  return np.concatenate([data[start : start + piece] for start in starts])


def _bits(counted: np.ndarray, symbols: np.ndarray) -> float:
  """Bits of all `symbols`, by counts of others and by their own repeats."""
  p = _by_counts(counted, symbols)
  for here, above in _lines(symbols):
    p = _mixed(p, here, symbols[here] == symbols[above])
  grams = _in_lines(counted)[1]
  p = _counted(p, *_in_lines(symbols), grams, DISCOUNTS[2])
  for length in REPEATS:
    before, right = _repeats(symbols, length)
    p = _mixed(p, before, right)
  return float(-np.log2(p).sum())


def _characters(*texts: np.ndarray) -> Sequence[np.ndarray]:
  """uint8 each: a symbol below 0x80 per character where those are few.

  An Arabic or Greek letter takes two bytes, and the first says almost nothing.
  White space stays what it is; texts with too many characters, too.
  """
  if max(data.max() for data in texts) < 0x80:
    return texts
  codes = [
    np.frombuffer(
      data.tobytes().decode('utf-8', 'replace').encode('utf-32-le'), np.uint32
    )
    for data in texts
  ]
  space = np.frombuffer(b'\t\n ', np.uint8)
  used = np.setdiff1d(np.concatenate(codes), space)
  if len(used) > ALPHABET:
    return texts
  free = np.setdiff1d(np.arange(0x80, dtype=np.uint8), space)
  keys = np.concatenate([used, space])
  order = np.argsort(keys)
  symbols = np.concatenate([free[: len(used)], space])[order]
  return [symbols[np.searchsorted(keys[order], x)] for x in codes]


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

    q_k(x | c) = (max(n(cx) - d_k, 0) + d_k m(c) p_{k-1}(x | c')) / n(c)
    p_k = w q_k + (1 - w) p_{k-1}

  with m(c) the number of different symbols after context c, c' that context
  without its first symbol, and w the likeliest weight of contexts as frequent,
  with one successor or several.
  """
  p = np.full(len(scored), 1 / 256)
  grams, wanted = train.astype(np.uint64), scored.astype(np.uint64)
  for order, discount in enumerate(DISCOUNTS):
    if order:
      grams, wanted = _longer(grams, train), _longer(wanted, scored)
    p = _counted(p, np.arange(order, len(p)), wanted, grams, discount)
  return p


def _counted(
  p: np.ndarray,
  here: np.ndarray,
  wanted: np.ndarray,
  grams: np.ndarray,
  discount: float,
) -> np.ndarray:
  """float64[M]: p_k from p_{k-1}, `p`.

  Args:
    here: int64[K], indices of `p`.
    wanted: uint64[K], context and symbol there.
    grams: uint64[N], contexts and symbols to count; the last 8 bits are the
      symbol.
  """
  if not min(len(wanted), len(grams)):
    return p
  keys, counts = np.unique(grams, return_counts=True)
  contexts, starts = np.unique(keys >> np.uint64(8), return_index=True)
  totals = np.add.reduceat(counts, starts)
  distinct = np.diff(np.append(starts, len(keys)))
  total = _look_up(contexts, totals, wanted >> np.uint64(8))
  known = np.flatnonzero(total)
  here, wanted, total = here[known], wanted[known], total[known]
  several = _look_up(contexts, distinct, wanted >> np.uint64(8))
  kept = np.maximum(_look_up(keys, counts, wanted) - discount, 0)
  new = (kept + discount * several * p[here]) / total
  seen = np.minimum(np.log2(total).astype(int), MOST_SEEN)
  p = p.copy()
  p[here] = _trusted(p[here], new, 2 * seen + (several > 1))
  return p


def _trusted(
  old: np.ndarray, new: np.ndarray, groups: np.ndarray
) -> np.ndarray:
  """w new + (1 - w) old, with the likeliest w of every group."""
  p = old.copy()
  for group in range(2 * MOST_SEEN + 2):
    here = np.flatnonzero(groups == group)
    weight = _weight(old[here], new[here]) if len(here) >= FEWEST else 0.5
    p[here] = weight * new[here] + (1 - weight) * old[here]
  return p


def _weight(old: np.ndarray, new: np.ndarray) -> float:
  """The likeliest weight of `new` beside `old`, by EM."""
  weight = 0.5
  for _ in range(20):
    weight = np.mean(weight * new / (weight * new + (1 - weight) * old))
  return float(min(max(weight, LEAST), 1 - LEAST))


def _lines(symbols: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Places where a line starts like the line before, as in sorted lists.

  Yields:
    For every number of symbols in which lines agree, from 0 to SORTED - 1: the
    indices of the symbols that follow, int64[K], and of those above them.
  """
  begins = np.flatnonzero(symbols[:-1] == NEWLINE) + 1
  here, above = begins[1:], begins[:-1]
  for _ in range(SORTED):
    yield here, above
    on = symbols[here] == symbols[above]
    on &= (symbols[here] != NEWLINE) & (here + 1 < len(symbols))
    here, above = here[on] + 1, above[on] + 1


def _in_lines(symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Symbols there, in the context of the one above and the one to their left.

  In a sorted list it is the symbol above, or a later one.

  Returns:
    Indices, int64[K]; context and symbol, uint64[K].
  """
  here, above = map(np.concatenate, zip(*_lines(symbols)))
  parts = (symbols[i].astype(np.uint64) for i in (above, here - 1, here))
  first, left, last = parts
  keys = first << np.uint64(16) | left << np.uint64(8) | last
  return here, keys


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
  packed = data.astype(np.uint64)
  for _ in range(order):
    packed = _longer(packed, data)
  return packed


def _longer(ngrams: np.ndarray, data: np.ndarray) -> np.ndarray:
  """The n-grams of `data` that are longer by a byte: one fewer."""
  length = max(0, len(ngrams) - 1)
  ends = data[len(data) - length :].astype(np.uint64)
  return ngrams[:length] << np.uint64(8) | ends


def _look_up(
  keys: np.ndarray, values: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
  """The values of `wanted` by sorted keys; 0 where there is no such key."""
  i = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
  return np.where(keys[i] == wanted, values[i], 0)
