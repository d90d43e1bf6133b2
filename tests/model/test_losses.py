"""Cross-entropy, the loss mask, perplexity and bits per byte."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt.model import losses


def test_cross_entropy_is_minus_log_softmax():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(2, 3, 7)).astype(np.float32)
  targets = rng.integers(0, 7, (2, 3)).astype(np.int32)
  nats = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(targets))
  exp = np.exp(logits.astype(np.float64))
  probs = exp / exp.sum(-1, keepdims=True)
  wanted = -np.log(np.take_along_axis(probs, targets[..., None], -1))[..., 0]
  np.testing.assert_allclose(nats, wanted, rtol=1e-5)


def test_uniform_logits_cost_log_v():
  nats = losses.cross_entropy(
    jnp.zeros((1, 4, 67)), jnp.arange(4, dtype=jnp.int32)[None]
  )
  np.testing.assert_allclose(nats, math.log(67), rtol=1e-6)


def test_gradient_is_softmax_minus_one_hot():
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 5)))
  targets = jnp.asarray([[3, 0]], jnp.int32)
  grad = jax.grad(lambda x: losses.cross_entropy(x, targets).sum())(logits)
  wanted = jax.nn.softmax(logits) - jax.nn.one_hot(targets, 5)
  np.testing.assert_allclose(grad, wanted, rtol=1e-5, atol=1e-7)


def test_huge_logits_give_finite_losses():
  logits = jnp.asarray([[[1e4, -1e4, 0.0]]])
  nats = [
    float(losses.cross_entropy(logits, jnp.full((1, 1), t, jnp.int32))[0, 0])
    for t in range(3)
  ]
  assert nats == [0.0, 2e4, 1e4]


def test_weighted_sum_ignores_masked_targets():
  nats = jnp.asarray([[1.0, 2.0], [4.0, 8.0]])
  weights = jnp.asarray([[1.0, 0.0], [1.0, 1.0]])
  total, count = losses.weighted_sum(nats, weights)
  assert (float(total), float(count)) == (13.0, 3.0)


@pytest.mark.parametrize(
  'nats, ppl',
  [
    (0.0, 1.0),
    (math.log(67), 67.0),
    (800.0, math.inf),
  ],
)
def test_perplexity(nats, ppl):
  assert losses.perplexity(nats) == pytest.approx(ppl)


def test_bits_per_byte_counts_bytes_not_tokens():
  # Ten tokens of two bytes at ln 4 nats each: 2 bits/token, 1 bit/byte.
  assert losses.bits_per_byte(10 * math.log(4), 20) == pytest.approx(1.0)
  assert math.isnan(losses.bits_per_byte(1.0, 0))
