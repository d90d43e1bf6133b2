"""Several documents to a window: which ones lie together.

It exists because conversations are much shorter than the window that the
longest of them needs; alone in a window most of it is padding.
"""

import bisect

import numpy as np


def pack(lengths, room: int) -> list[list[int]]:
  """Best-fit decreasing: each document into the fullest window it fits.

  The longest come first; equal lengths keep their order. The result depends on
  nothing else, so a resumed run packs as before. At most 11/9 of the fewest
  windows, and a few more (Johnson et al. 1974); nearly full in practice.

  Args:
    lengths: int[n], tokens of each document, 1 to `room`.
    room: tokens of a window.

  Returns:
    Lists of document indices.
  """
  windows: list[list[int]] = []
  free: list[int] = []  # Sizes of room left that exist, ascending.
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
