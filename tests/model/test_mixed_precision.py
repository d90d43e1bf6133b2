"""Mixed-precision matmuls against NumPy, and models against float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt.decoding import generation, sampling
from gpt.model import GPT, GPTConfig
from gpt.model.mixed_precision import product
from tests.support.models import random_params

size = st.integers(1, 70)
dtypes = st.sampled_from(['float32', 'bfloat16'])
SHAPE = {
  'vocab_size': 31,
  'n_embd': 48,
  'n_head': 4,
  'n_layer': 1,
  'block_size': 24,
}
OPTIONS = {
  'plain': {'attention': 'plain'},
  'blocked': {'attention': 'blocked', 'pos': 'rope', 'qk_norm': True},
  'shared': {
    'attention': 'blocked',
    'n_kv_head': 2,
    'tied_embeddings': True,
    'mlp': 'swiglu',
    'remat': True,
  },
}


def rounded(x, dtype):
  return np.asarray(jnp.asarray(x).astype(dtype), np.float64)


@settings(max_examples=10)
@given(st.integers(1, 3), size, size, size, st.booleans(), dtypes)
@example(1, 1, 64, 64, False, 'bfloat16')
@example(2, 32, 64, 256, False, 'float32')
@example(2, 32, 64, 256, False, 'bfloat16')
@example(2, 32, 256, 64, False, 'bfloat16')
@example(2, 32, 64, 256, True, 'bfloat16')
@example(2, 32, 256, 64, True, 'float32')
@example(2, 32, 256, 64, True, 'bfloat16')
def test_value_and_gradient_for_every_shape(batch, n, i, o, transposed, dtype):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(batch, n, i)).astype(np.float32)
  w = rng.normal(size=(o, i) if transposed else (i, o)).astype(np.float32)
  dout = rng.normal(size=(batch, n, o)).astype(np.float32)

  @jax.jit
  def both(x, w, dout):
    out, pull = jax.vjp(lambda x, w: product(x, w, transposed, dtype), x, w)
    return (out, *pull(dout))

  out, dx, dw = both(x, w, dout)
  assert {a.dtype for a in (out, dx, dw)} == {np.dtype('float32')}
  x, w, dout = (rounded(a, dtype) for a in (x, w, dout))
  w = w.T if transposed else w
  close = {'rtol': 1e-4, 'atol': 1e-4}
  np.testing.assert_allclose(out, x @ w, **close)
  np.testing.assert_allclose(dx, dout @ w.T, **close)
  want = np.einsum('bni,bno->io', x, dout)
  np.testing.assert_allclose(dw.T if transposed else dw, want, **close)


def test_float32_products_written_out_have_the_gradients_of_plain_ones():
  tokens = np.random.default_rng(0).integers(0, 31, (3, 24))
  shape = {**SHAPE, 'pos': 'rope', 'tied_embeddings': True}
  plain, blocked = (
    GPT(GPTConfig(**shape, attention=kernel)) for kernel in ('plain', 'blocked')
  )
  params = random_params(plain.cfg, std=0.1)

  @functools.partial(jax.jit, static_argnums=1)
  def gradient(params, model):
    return jax.grad(lambda p: model.apply({'params': p}, tokens).var())(params)

  want, got = (
    jax.device_get(gradient(params, model)) for model in (plain, blocked)
  )
  for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(a).max())


@functools.cache
def models(**options):
  """(float32 model, the same model in mixed precision, params)."""
  both = [
    GPT(GPTConfig(**SHAPE, **options, dtype=d)) for d in ('float32', 'mixed')
  ]
  # As large as trained weights: attention neither uniform nor one-hot.
  return (*both, random_params(both[0].cfg, std=0.1))


@pytest.mark.parametrize(
  'name',
  [
    'blocked',
    pytest.param('plain', marks=pytest.mark.slow),
    pytest.param('shared', marks=pytest.mark.slow),
  ],
)
def test_loss_and_gradient_are_close_to_those_of_float32(name):
  tokens = np.random.default_rng(0).integers(0, 31, (3, 25))

  def loss(params, model):
    logits = model.apply({'params': params}, tokens[:, :-1])
    assert logits.dtype == jnp.float32
    logp = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(logp, tokens[:, 1:, None], -1))

  exact, mixed, params = models(**OPTIONS[name])
  step = jax.jit(jax.value_and_grad(loss), static_argnums=1)
  (want, want_grads), (got, grads) = step(params, exact), step(params, mixed)
  assert want != got
  np.testing.assert_allclose(got, want, rtol=0.01)
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(grads))
  # In NumPy: JAX would compile each operation for each shape.
  want_grads, grads = jax.device_get((want_grads, grads))
  for a, b in zip(jax.tree.leaves(want_grads), jax.tree.leaves(grads)):
    cosine = np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b))
    assert cosine > 0.995


@pytest.mark.parametrize('rows', [1, 3])
def test_generation_follows_the_forward_pass(rows):
  _, mixed, params = models(pos='rope')
  prompts = [[1, 2, 3 + i] for i in range(rows)]
  made = [list(p) for p in prompts]
  forward = jax.jit(mixed.apply)
  greedy = sampling.settings(rows, temperature=0.0)
  for row, new in generation.generate(mixed, params, prompts, greedy, 40):
    made[row] += new or []
  for tokens in made:  # Within the window: the choice is close to the best.
    tokens = np.array([tokens[: SHAPE['block_size']]])
    logits = np.asarray(forward({'params': params}, tokens))[0, 2:-1]
    chosen = np.take_along_axis(logits, tokens[0, 3:, None], -1)[:, 0]
    np.testing.assert_allclose(chosen, logits.max(-1), atol=0.15)
