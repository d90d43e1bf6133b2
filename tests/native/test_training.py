"""The compiled kernels of training against the same functions in JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt import devices
from gpt.model import GPTConfig, abstract_params, attention, num_params
from gpt.native import training
from gpt.training import muon

pytestmark = pytest.mark.skipif(
  not training.usable(), reason='no compiled kernels here'
)
# Relative: sums in another order, and two roundings of 2^-9.
CLOSE = {False: 2e-5, True: 0.03}


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def attend(kernel, segments, half, q, k, v, dout):
  """The output of a kernel, and its gradients."""
  operands = jnp.bfloat16 if half and kernel == 'blocked' else jnp.float32
  run = functools.partial(
    attention.causal_self_attention,
    segments_BL=segments,
    kernel=kernel,
    operands=operands,
  )
  out, pull = jax.vjp(run, q, k, v)
  return (out, *pull(dout))


@settings(max_examples=30)
@given(
  B=st.integers(1, 3),
  L=st.integers(1, 140),
  G=st.integers(1, 3),
  M=st.integers(1, 3),
  K=st.integers(1, 70),
  segmented=st.booleans(),
  half=st.booleans(),
)
@example(B=1, L=256, G=2, M=1, K=32, segmented=False, half=True)
@example(B=2, L=25, G=1, M=2, K=33, segmented=True, half=True)
def test_attention_agrees_with_the_formula(B, L, G, M, K, segmented, half):
  H = G * M
  q, dout = normal(0, B, L, H, K), normal(1, B, L, H, K)
  k, v = normal(2, B, L, G, K), normal(3, B, L, G, K)
  segments = None
  if segmented:
    steps = np.random.default_rng(4).random((B, L)) < 0.1
    segments = np.cumsum(steps, axis=1, dtype=np.int32)
  given = jax.jit(functools.partial(attend, 'blocked', segments, half))
  wanted = jax.jit(functools.partial(attend, 'plain', segments, half))
  for a, b in zip(given(q, k, v, dout), wanted(q, k, v, dout)):
    close = CLOSE[half] * max(1.0, float(np.abs(b).max()))
    np.testing.assert_allclose(a, b, rtol=0, atol=close)


@settings(max_examples=30)
@given(
  n=st.integers(1, 300),
  rows=st.integers(1, 200),
  columns=st.integers(1, 200),
  half=st.booleans(),
)
@example(n=512, rows=96, columns=384, half=True)
@example(n=512, rows=384, columns=67, half=False)
def test_the_gradient_of_a_matrix_is_the_product(n, rows, columns, half):
  x, dy = normal(0, n, rows), normal(1, n, columns)
  gradient = jax.jit(functools.partial(training.matrix_gradient, half=half))
  if half:
    x, dy = (a.astype(jnp.bfloat16).astype(np.float32) for a in (x, dy))
  np.testing.assert_allclose(
    gradient(x, dy), x.astype(np.float64).T @ dy, rtol=1e-4, atol=1e-3
  )


@pytest.mark.parametrize('half', [False, True])
def test_threads_change_no_bit(half, monkeypatch):
  q, dout = normal(0, 2, 70, 4, 16), normal(1, 2, 70, 4, 16)
  k, v = normal(2, 2, 70, 2, 16), normal(3, 2, 70, 2, 16)

  def everything():
    run = functools.partial(attend, 'blocked', None, half)
    dw = functools.partial(training.matrix_gradient, half=half)
    flat = q.reshape(-1, 64), dout.reshape(-1, 64)
    return *jax.jit(run)(q, k, v, dout), jax.jit(dw)(*flat)

  alone = everything()
  monkeypatch.setattr(
    devices, 'num_cores', lambda: 3 * jax.local_device_count()
  )
  assert training._options(half)['threads'] == 3
  assert all(np.array_equal(a, b) for a, b in zip(alone, everything()))


def test_what_lies_beyond_a_row_never_reaches_it():
  """Memory that a larger call has left behind is not read as numbers."""
  shape = 1, 90, 1, 40
  bad = np.full(shape, np.nan, np.float32)
  run = jax.jit(functools.partial(attend, 'blocked', None, True))
  assert np.isnan(run(bad, bad, bad, bad)[0]).all()
  small = [normal(i, 1, 33, 1, 17) for i in range(4)]
  assert all(np.isfinite(x).all() for x in run(*small))


def test_no_rows_have_a_gradient_of_zero():
  x, dy = normal(0, 0, 20), normal(1, 0, 30)
  dw = jax.jit(functools.partial(training.matrix_gradient, half=True))(x, dy)
  assert dw.shape == (20, 30) and not dw.any()


def test_segments_may_be_any_integers():
  tensors = [normal(i, 1, 9, 2, 8) for i in range(4)]
  segments = np.array([[0, 0, 0, 1, 1, 1, 2, 2, 2]])
  one, other = (
    jax.jit(functools.partial(attend, 'blocked', segments.astype(t), False))
    for t in (np.uint8, np.int32)
  )
  for a, b in zip(one(*tensors), other(*tensors)):
    np.testing.assert_array_equal(a, b)


@settings(max_examples=30)
@given(N=st.integers(1, 3), R=st.integers(1, 70), C=st.integers(1, 140))
@example(N=2, R=96, C=384)
def test_muons_iterations_agree_with_the_formula(N, R, C):
  x_NRC = normal(0, N, min(R, C), max(R, C))
  given = np.asarray(jax.jit(lambda x: muon.orthogonalise(x, 5))(x_NRC))
  x = x_NRC.astype(np.float64)
  x /= np.linalg.norm(x, axis=(1, 2), keepdims=True)
  for _ in range(5):
    gram = x @ x.swapaxes(1, 2)
    x = muon.A * x + (muon.B * gram + muon.C * gram @ gram) @ x
  np.testing.assert_allclose(given, x, atol=3e-4)


@pytest.mark.parametrize('values', ['falling', 'few', 'none'])
def test_muons_iterations_bear_singular_matrices(values):
  """Squares of small singular values drown in the rounding of G."""
  R, C = 64, 160
  u, v = np.linalg.qr(normal(1, R, R))[0], np.linalg.qr(normal(2, C, R))[0]
  of = {
    'falling': np.exp(-np.linspace(0, 16, R)),
    'few': np.r_[np.ones(3), np.zeros(R - 3)],
    'none': np.zeros(R),
  }[values].astype(np.float32)
  x_NRC = ((u * of) @ v.T)[None]
  given = np.asarray(muon.orthogonalise(jnp.asarray(x_NRC), 5))
  with training.reference():
    wanted = np.asarray(muon.orthogonalise(jnp.asarray(x_NRC), 5))
  np.testing.assert_allclose(given, wanted, atol=3e-4)
  assert np.linalg.norm(given[0], 2) < 1.3


def test_shapes_are_known_without_kernels(monkeypatch):
  """Whoever counts parameters does not wait for a compiler."""
  monkeypatch.setattr(training, 'load', lambda: pytest.fail('loads kernels'))
  cfg = GPTConfig(
    vocab_size=7,
    n_embd=8,
    n_head=2,
    n_layer=2,
    block_size=4,
    attention='blocked',
  )
  assert num_params(cfg) == sum(
    x.size for x in jax.tree.leaves(abstract_params(cfg))
  )


def test_the_reference_can_be_asked_for():
  with training.reference():
    assert not training.usable()
  assert training.usable()
