"""Series of metrics made ready for a chart: smoothed, thinned, ranged.

A point is (step, value); a value that is None or not finite is a gap.
"""

from collections.abc import Sequence

import numpy as np

from gpt.runs.metrics import is_number

Points = Sequence[tuple[float, float | None]]
MAX_POINTS = 1200  # A chart has no pixels for more.


def smooth(points: Points, half_width: int | None = None) -> list:
  """Local linear regression over a symmetric window of neighbours.

  Inside the curve this is the centred moving average, so the result does not
  lag behind a falling loss. At the end, where no window is symmetric, the
  fitted line keeps the slope: straight lines come out unchanged everywhere.
  Near the start, where losses fall steeply, the window is narrower.

  Args:
    points: equally spaced (x, y); a gap stays a gap.
    half_width: neighbours on each side; default: a tenth of the points up to
      20, and a fiftieth of a long series. Point i uses at most 2 + i // 4.

  Returns:
    [(x, smoothed y or None)], as long as `points`.

  Source: Cleveland (1979), "Robust locally weighted regression and smoothing
  scatterplots", with equal weights and without the robust iterations.
  """
  n = len(points)
  if half_width is None:
    half_width = max(1, min(n // 10, 20), n // 50)
  usable = np.array([is_number(y) for _, y in points], bool)
  ys = np.array([y if ok else 0.0 for (_, y), ok in zip(points, usable)], float)
  i = np.arange(n)
  half = np.minimum(half_width, 2 + i // 4)
  low, high = np.maximum(i - half, 0), np.minimum(i + half + 1, n)

  def window_sum(values: np.ndarray) -> np.ndarray:  # Of integers it is exact.
    total = np.cumsum(np.where(usable, values, 0))
    total = np.concatenate([np.zeros(1, total.dtype), total])
    return total[high] - total[low]

  count = np.maximum(window_sum(np.ones(n, int)), 1)
  mean_i, mean_y = window_sum(i) / count, window_sum(ys) / count
  spread = window_sum(i * i) / count - mean_i**2
  covariance = window_sum(i * ys) / count - mean_i * mean_y
  single = spread < 0.1  # Two different integers have a spread of 1/4.
  slope = np.where(single, 0.0, covariance / np.where(single, 1.0, spread))
  fitted = mean_y + slope * (i - mean_i)
  return [
    (x, float(y) if ok else None)
    for (x, _), y, ok in zip(points, fitted, usable)
  ]


def thin(points: Points, limit: int = MAX_POINTS) -> list:
  """At most about `limit` points: the extremes of each piece, in order."""
  points = list(points)
  if len(points) <= limit:
    return points
  size = -(-2 * len(points) // limit)
  kept = []
  for i in range(0, len(points), size):
    piece = points[i : i + size]
    usable = [(x, y) for x, y in piece if is_number(y)]
    if usable:
      ends = {min(usable, key=lambda p: p[1]), max(usable, key=lambda p: p[1])}
      kept += sorted(ends)
    else:
      kept.append(piece[0])
  return kept


def loss_range(train: Points, val: Points) -> tuple[float, float] | None:
  """Limits of a loss chart's y axis that leave out the first steep steps.

  Losses fall from ln V within a few percent of the steps and then move little:
  what lies above the largest value after the first 5 % is cut off.

  Returns:
    (low, high), or None for fewer than 20 points: show all of them.
  """
  points = [(x, y) for part in (train, val) for x, y in part if is_number(y)]
  if len(points) < 20:
    return None
  last = max(x for x, _ in points)
  later = [y for x, y in points if x >= 0.05 * last]  # Never empty.
  low, high = min(later), max(later)
  pad = 0.06 * (high - low) or 0.1
  return low - pad, high + pad
