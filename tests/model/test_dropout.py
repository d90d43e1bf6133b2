"""Dropout masks: correct rate, no bias, and no correlations.

A mask is a function of (run key, step, row, site, element) alone. It does not
depend on how the batch is divided into devices and micro-batches.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt.model.dropout import dropout, mix, row_seeds

LENGTH, WIDTH = 64, 52


def kept(rate=0.5, step=0, rows=(0,), site=0, seed=0, width=WIDTH):
  """bool[B, L, D]: which elements survive."""
  key = jax.random.fold_in(jax.random.key(seed), step)
  seeds = row_seeds(key, jnp.asarray(rows, jnp.int32))
  ones = jnp.ones((len(rows), LENGTH, width))
  return np.asarray(dropout(ones, rate, seeds, site)) != 0


@pytest.mark.parametrize('rate', [0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize('width', [3, 52, 256])
def test_fraction_of_zeros_is_the_rate(rate, width):
  keep = kept(rate, rows=range(16), width=width)
  # The rate is rounded to 2^-16; five standard errors on top.
  error = 5 * np.sqrt(rate * (1 - rate) / keep.size) + 2**-17
  assert abs(1 - keep.mean() - rate) < error


@pytest.mark.parametrize('rate', [0.1, 0.3, 0.9])
def test_mean_is_preserved_by_one_scale(rate):
  seeds = row_seeds(jax.random.key(0), jnp.arange(32))
  out = np.asarray(dropout(jnp.ones((32, LENGTH, WIDTH)), rate, seeds, 0))
  scales = np.unique(out[out != 0])
  assert len(scales) == 1
  assert scales[0] == pytest.approx(1 / (1 - rate), abs=0.02 / (1 - rate))
  # The scale uses the rounded rate, so the mean is unbiased.
  error = 5 * np.sqrt(rate / (1 - rate) / out.size)
  assert abs(out.mean() - 1) < error


def test_gradient_has_the_mask_of_the_value():
  seeds = row_seeds(jax.random.key(0), jnp.arange(2))
  x = jnp.ones((2, LENGTH, WIDTH))
  out = dropout(x, 0.25, seeds, 3)
  grad = jax.grad(lambda x: dropout(x, 0.25, seeds, 3).sum())(x)
  np.testing.assert_array_equal(grad, out)


@pytest.mark.parametrize('rate, seeds', [(0.0, True), (0.5, False)])
def test_without_rate_or_seeds_the_input_is_returned(rate, seeds):
  x = jnp.ones((2, 4, 8))
  seeds = row_seeds(jax.random.key(0), jnp.arange(2)) if seeds else None
  assert dropout(x, rate, seeds, 0) is x


def test_masks_of_rows_sites_steps_and_seeds_are_independent():
  """Any two agree on half of their elements, like coin tosses."""
  masks = [
    kept(step=step, rows=[row], site=site, seed=seed)
    for step, row, site, seed in itertools.product(
      (0, 1, 2), (0, 1, 2, 63), (0, 1, 11), (0, 1)
    )
  ]
  masks = np.stack(masks).reshape(len(masks), -1).astype(np.float64) * 2 - 1
  correlations = masks @ masks.T / masks.shape[1]
  np.fill_diagonal(correlations, 0)
  # 72 masks, 2556 pairs: six standard errors do not occur by chance.
  assert np.abs(correlations).max() < 6 / np.sqrt(masks.shape[1])


def test_neighbours_within_a_mask_are_independent():
  signs = kept(rows=range(64)).astype(np.float64) * 2 - 1
  for axis, size in ((0, 64), (1, LENGTH), (2, WIDTH)):
    for shift in (1, 2, 4, 8, 13, 16, 32):
      if shift >= size:
        continue
      correlation = np.mean(signs * np.roll(signs, shift, axis=axis))
      assert abs(correlation) < 6 / np.sqrt(signs.size), (axis, shift)


def test_no_row_and_no_column_is_always_dropped():
  rates = kept(0.5, rows=range(256)).astype(np.float64)
  for axes, n in (
    ((1, 2), LENGTH * WIDTH),
    ((0, 2), 256 * WIDTH),
    ((0, 1), 256 * LENGTH),
  ):
    error = 6 * 0.5 / np.sqrt(n)
    assert np.all(np.abs(rates.mean(axis=axes) - 0.5) < error)


def test_mask_does_not_depend_on_how_the_batch_is_split():
  whole = kept(rows=range(8))
  one_by_one = np.concatenate([kept(rows=[row]) for row in range(8)])
  shuffled = kept(rows=[5, 0, 7, 2])
  np.testing.assert_array_equal(whole, one_by_one)
  np.testing.assert_array_equal(whole[[5, 0, 7, 2]], shuffled)


def test_mix_is_a_bijection_with_full_avalanche():
  x = jnp.asarray(
    np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)
  )
  unique = len(np.unique(np.asarray(x)))
  assert len(np.unique(np.asarray(mix(x)))) == unique
  for bit in range(32):
    flipped = np.asarray(mix(x) ^ mix(x ^ jnp.uint32(1 << bit)))
    bits = (flipped[:, None] >> np.arange(32, dtype=np.uint32)) & 1
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.03
