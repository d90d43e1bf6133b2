"""Bin packing: several documents share a window.

Most conversations are much shorter than the window that the longest one needs,
so with one document per window most positions would be padding.
"""

import bisect
from collections.abc import Sequence

import numpy as np


def pack(lengths: np.ndarray | Sequence[int], room: int) -> list[list[int]]:
  """Best-fit decreasing: each document goes into the fullest window it fits.

  Documents are placed from long to short, equal lengths in their given order.
  The result depends on nothing else, so a resumed run packs identically. It
  uses at most 11/9 of the optimal number of windows plus a constant (Johnson
  et al. 1974), and far fewer in practice.

  Args:
    lengths: int[n], tokens of each document, each from 1 to `room`.
    room: tokens per window.

  Returns:
    One list of document indices per window.
  """
  windows: list[list[int]] = []
  free: list[int] = []  # The distinct amounts of free room, ascending.
  open_by_free: dict[int, list[int]] = {}
  lengths = np.asarray(lengths)
  for i in np.argsort(-lengths, kind='stable').tolist():
    n = int(lengths[i])
    at = bisect.bisect_left(free, n)
    if at == len(free):
      windows.append([i])
      window, left = len(windows) - 1, room - n
    else:
      size = free[at]
      window, left = open_by_free[size].pop(), size - n
      windows[window].append(i)
      if not open_by_free[size]:
        del open_by_free[size], free[at]
    if left:
      if left not in open_by_free:
        bisect.insort(free, left)
        open_by_free[left] = []
      open_by_free[left].append(window)
  return windows
