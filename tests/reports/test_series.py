"""Smoothed curves do not lag, and thinned ones keep their extremes."""

import math
import random

import numpy as np
import pytest

from gpt.reports.series import loss_range, smooth, thin


def steep(n: int = 600) -> list:
  """A loss that falls as fast as those of the quickstart recipe."""
  return [(i, 1.2 + 3.0 * math.exp(-i / 60)) for i in range(1, n + 1)]


def local_mean(points, i, half):
  return np.mean([y for _, y in points[i - half : i + half + 1]])


@pytest.mark.parametrize('n', [100, 600, 5000])
def test_a_smoothed_curve_is_the_local_mean(n):
  """At the start, in the middle and at the end, within 0.02 nats.

  A trailing average is off by 0.2 in the steep part.
  """
  points = steep(n)
  smoothed = smooth(points)
  for i, half in ((1, 1), (60, 5), (n // 2, 5), (n - 2, 1)):
    assert smoothed[i][1] == pytest.approx(
      local_mean(points, i, half), abs=0.02
    ), i
  assert smoothed[0][1] == pytest.approx(points[0][1], abs=0.01)
  assert smoothed[-1][1] == pytest.approx(points[-1][1], abs=0.01)


def test_smoothing_is_exact_on_straight_lines():
  points = [(i, 5 - 0.01 * i) for i in range(20_000)]
  for (_, was), (_, now) in zip(points, smooth(points)):
    assert now == pytest.approx(was, abs=1e-9)


def test_smoothing_reduces_noise_and_keeps_the_mean():
  rng = random.Random(0)
  noise = [(i, rng.gauss(2.0, 0.1)) for i in range(1000)]
  ys = np.array([y for _, y in smooth(noise)])
  inside = ys[100:-30]
  assert np.std(inside) < 0.1 / math.sqrt(41) * 1.3  # 20 on each side
  assert np.mean(ys) == pytest.approx(2.0, abs=0.02)
  assert abs(ys[-1] - 2.0) < 0.1  # The end is no single noisy value.


def test_gaps_stay_gaps_and_do_not_spread():
  points = steep(200)
  points[50] = (51, None)
  points[51] = (52, math.nan)
  smoothed = smooth(points)
  assert smoothed[50] == (51, None) and smoothed[51] == (52, None)
  assert smoothed[49][1] == pytest.approx(points[49][1], abs=0.02)
  assert all(math.isfinite(y) for _, y in smoothed[52:])


@pytest.mark.parametrize('n', [0, 1, 2, 3])
def test_short_series_are_not_changed(n):
  points = [(i, 4.0 - i) for i in range(n)]
  for (_, was), (_, now) in zip(points, smooth(points), strict=True):
    assert now == pytest.approx(was)
  assert smooth([(1, None)] * n) == [(1, None)] * n


def test_thinned_series_keep_their_extremes_and_order():
  points = [(i, math.sin(i)) for i in range(100_000)]
  points[54_321], points[777] = (54_321, 99.0), (777, None)
  kept = thin(points)
  assert len(kept) <= 1200 and (54_321, 99.0) in kept
  assert min(y for _, y in kept) == min(y for _, y in points if y is not None)
  assert [x for x, _ in kept] == sorted(x for x, _ in kept)
  assert thin(points[:1200]) == points[:1200]


def test_the_loss_axis_leaves_out_the_first_steep_steps():
  low, high = loss_range(steep(1000), [])
  assert 2.4 < high < 2.6  # At 5 % of the steps, not the 4.2 of step 1.
  assert low == pytest.approx(1.2, abs=0.1)
  assert loss_range(steep(10), []) is None
