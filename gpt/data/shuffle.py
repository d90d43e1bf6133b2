"""A permutation of 0 .. n-1 in constant memory, as a pure function of its key.

A Feistel network of four rounds permutes the numbers of an even number of bits;
what falls outside 0 .. n-1 is permuted again (cycle walking: Black and Rogaway
2002). Any element costs the same, so a step needs no state to resume from.
"""

import numpy as np

ROUNDS = 4
# The finalizer of MurmurHash3 (Appleby, public domain).
MIX = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))


def permuted(indices: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
  """The elements of a permutation of range(n) at `indices`.

  Args:
    indices: int[m], each from 0 to n - 1.
    n: 1 to 2^62.
    seed, epoch: choose the permutation.

  Returns:
    int64[m].
  """
  half = max(1, (int(n - 1).bit_length() + 1) // 2)
  key = np.array([seed % 2**64, epoch], np.uint64)
  keys = np.random.Philox(key=key).random_raw(ROUNDS)
  values = np.asarray(indices, np.uint64).copy()
  left = np.ones(len(values), bool)
  while left.any():
    values[left] = _rounds(values[left], keys, half)
    left &= values >= n
  return values.astype(np.int64)


def _rounds(values: np.ndarray, keys: np.ndarray, half: int) -> np.ndarray:
  bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
  high, low = values >> bits, values & mask
  for key in keys:
    high, low = low, high ^ (_mixed(low ^ key) & mask)
  return (high << bits) | low


def _mixed(x: np.ndarray) -> np.ndarray:
  for factor in MIX:
    x = (x ^ (x >> np.uint64(33))) * factor
  return x ^ (x >> np.uint64(33))
