"""Every attention kernel equals the formula, in value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt.errors import UserError
from gpt.model.attention import (
  KERNELS,
  attend,
  causal_self_attention,
  exclusive,
  fused_attention,
  resolve_kernel,
)

FAST = [name for name in KERNELS if name not in ('plain', 'cudnn')]
# (B, L, H, G, K): odd lengths, lengths below and around the block size, shared
# key/value heads, a single head.
SHAPES = [
  (1, 1, 1, 1, 4),
  (2, 3, 2, 2, 8),
  (3, 17, 4, 2, 8),
  (1, 33, 3, 1, 16),
  (2, 64, 2, 2, 29),
]


def random_qkv(shape, scale=1.5):
  B, L, H, G, K = shape
  rng = np.random.default_rng(L)
  draw = lambda heads: jnp.asarray(  # noqa: E731
    scale * rng.normal(size=(B, L, heads, K)).astype(np.float32)
  )
  return draw(H), draw(G), draw(G)


def value_and_gradients(kernel, q, k, v, segments=None):
  """The output, and gradients of an asymmetric function of it."""
  weights = jnp.asarray(
    np.random.default_rng(1).normal(size=q.shape).astype(np.float32)
  )

  def loss(q, k, v):
    out = causal_self_attention(q, k, v, segments, kernel=kernel)
    return jnp.sum(jnp.sin(out.astype(jnp.float32)) * weights), out

  grad_fn = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
  (_, out), grads = grad_fn(q, k, v)
  return out, grads


def random_segments(batch, length):
  steps = np.random.default_rng(2).random((batch, length)) < 0.25
  return jnp.asarray(np.cumsum(steps, axis=1), jnp.int32)


@pytest.mark.parametrize(
  'shape, segmented',
  [*((shape, False) for shape in SHAPES), (SHAPES[1], True), (SHAPES[2], True)],
)
@pytest.mark.parametrize('kernel', FAST)
def test_kernel_agrees_with_plain(kernel, shape, segmented):
  q, k, v = random_qkv(shape)
  segments = random_segments(*shape[:2]) if segmented else None
  wanted = value_and_gradients('plain', q, k, v, segments)
  given = value_and_gradients(kernel, q, k, v, segments)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5),
    given,
    wanted,
  )


@pytest.mark.parametrize('kernel', FAST)
def test_kernel_agrees_with_plain_in_bfloat16(kernel):
  q, k, v = (x.astype(jnp.bfloat16) for x in random_qkv(SHAPES[2], 1.0))
  wanted, wanted_grads = value_and_gradients('plain', q, k, v)
  given, given_grads = value_and_gradients(kernel, q, k, v)
  assert given.dtype == jnp.bfloat16
  # Two roundings of 2^-9, relative, on values of magnitude 1.
  for a, b in zip((given, *given_grads), (wanted, *wanted_grads)):
    np.testing.assert_allclose(
      a.astype(np.float32), b.astype(np.float32), rtol=0.03, atol=0.03
    )


@pytest.mark.parametrize('kernel', ['plain', *FAST])
def test_large_scores_do_not_overflow(kernel):
  q, k, v = random_qkv(SHAPES[2], scale=100.0)
  out, grads = value_and_gradients(kernel, q, k, v)
  assert all(np.all(np.isfinite(x)) for x in (out, *grads))


@pytest.mark.parametrize('kernel', ['plain', *FAST])
def test_first_token_attends_to_itself_only(kernel):
  q, k, v = random_qkv((2, 5, 2, 2, 8))
  out = jax.jit(functools.partial(causal_self_attention, kernel=kernel))(
    q, k, v
  )
  np.testing.assert_allclose(out[:, 0], v[:, 0], rtol=1e-6)


def test_plain_equals_the_formula():
  q, k, v = random_qkv((1, 4, 1, 1, 3))
  out = jax.jit(functools.partial(causal_self_attention, kernel='plain'))(
    q, k, v
  )
  q, k, v = (np.asarray(x, np.float64)[0, :, 0] for x in (q, k, v))
  for t in range(4):
    weights = np.exp(k[: t + 1] @ q[t] / np.sqrt(3))
    wanted = weights @ v[: t + 1] / weights.sum()
    np.testing.assert_allclose(out[0, t, 0], wanted, rtol=1e-5)


@pytest.mark.parametrize('shape', SHAPES)
def test_exclusive_attention_has_nothing_of_a_positions_own_value(shape):
  B, L, H, G, K = shape
  y, v, _ = random_qkv(shape)
  own = np.repeat(np.asarray(v, np.float64), H // G, axis=2)
  z = np.asarray(jax.jit(exclusive)(y, v), np.float64)
  np.testing.assert_allclose((z * own).sum(-1), 0, atol=1e-5 * K)
  # What is gone lies along the value.
  gone = np.asarray(y, np.float64) - z
  share = (gone * own).sum(-1) / (own * own).sum(-1)
  np.testing.assert_allclose(gone, share[..., None] * own, atol=1e-5)


def test_exclusive_attention_leaves_the_output_if_the_value_is_zero():
  y, v, _ = random_qkv((2, 3, 4, 2, 8))
  np.testing.assert_array_equal(exclusive(y, jnp.zeros_like(v)), y)


def test_a_fully_masked_row_is_finite():
  q, k, v = random_qkv((2, 3, 2, 2, 4))
  mask = jnp.zeros((2, 3, 3), bool).at[0].set(True)
  assert np.all(np.isfinite(jax.jit(attend)(q, k, v, mask)))


def test_unknown_kernel_is_rejected():
  with pytest.raises(UserError, match="'fast' is not known; allowed: auto, p"):
    resolve_kernel('fast', 'cpu')


@pytest.mark.parametrize(
  'backend', ['cpu', 'cuda', 'old cuda', 'rocm', 'metal', 'mps']
)
def test_auto_resolves_to_a_known_kernel(backend):
  assert resolve_kernel('auto', backend) in KERNELS
  assert resolve_kernel('plain', backend) == 'plain'


def test_cudnn_is_rejected_where_it_cannot_work():
  assert resolve_kernel('cudnn', 'cuda', 'bfloat16', 64) == 'cudnn'
  for given in (
    ('cuda', 'float32', 64),
    ('cuda', 'bfloat16', 10),
    ('old cuda', 'bfloat16', 64),
  ):
    with pytest.raises(UserError, match='cudnn needs a GPU of compute'):
      resolve_kernel('cudnn', *given)


@pytest.mark.parametrize('segmented', [False, True])
@pytest.mark.parametrize('shape', [(2, 16, 2, 2, 8), (3, 18, 4, 2, 8)])
def test_the_arguments_of_the_fused_kernel_say_the_formula(shape, segmented):
  """Its mask, causality and groups; computed by XLA, for want of a GPU."""
  q, k, v = random_qkv(shape)
  segments = random_segments(*shape[:2]) if segmented else None
  found = fused_attention(q, k, v, segments, implementation='xla')
  wanted = causal_self_attention(q, k, v, segments, kernel='plain')
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
