"""Muon: the iteration, its batching over shapes, and where it applies."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gpt import muon, sharding


def matrices(*shapes, seed=0):
  rng = np.random.default_rng(seed)
  return {
    f'm{i}': rng.standard_normal(shape).astype(np.float32)
    for i, shape in enumerate(shapes)
  }


@pytest.mark.parametrize('mixed, tolerance', [(False, 2e-5), (True, 0.03)])
@pytest.mark.parametrize('shape', [(16, 16), (8, 32), (32, 8)])
def test_singular_values_come_close_to_one(shape, mixed, tolerance):
  x = matrices(shape)
  got = jax.jit(
    lambda x: muon.orthogonalise_tree(x, steps=5, mixed=mixed)
  )(x)['m0']
  got = np.asarray(got)
  values = np.linalg.svd(got, compute_uv=False)
  assert got.shape == shape
  assert 0.4 < values.min() and values.max() < 1.3
  # The directions stay: U^T got V is diagonal in the basis of x.
  u, _, vt = np.linalg.svd(x['m0'], full_matrices=False)
  core = u.T @ got @ vt.T
  np.testing.assert_allclose(core, np.diag(np.diag(core)), atol=tolerance)


def test_one_call_for_all_equals_one_call_for_each():
  x = matrices((8, 8), (8, 32), (32, 8), (8, 8))
  together = muon.orthogonalise_tree(x, steps=5)
  for name, value in x.items():
    alone = muon.orthogonalise_tree({name: value}, steps=5)[name]
    np.testing.assert_allclose(together[name], alone, atol=1e-5)


def test_shared_out_over_devices_is_the_same():
  x = matrices((8, 8), (8, 32), (8, 8), (8, 8), (8, 8))
  mesh = sharding.create_mesh(4, jax.devices()[:4])
  assert mesh.size == 4
  spread = jax.jit(lambda x: muon.orthogonalise_tree(x, 5, mesh))(x)
  alone = muon.orthogonalise_tree(x, 5)
  for name in x:
    np.testing.assert_allclose(spread[name], alone[name], atol=1e-5)


def test_blocks_get_muon_and_the_rest_gets_the_rest():
  params = {
    'wte': jnp.ones((4, 3)),
    'block_0': {'fc1': jnp.asarray(matrices((3, 12))['m0'])},
  }
  tx = muon.muon(optax.identity(), scale=10.0, momentum=0.5, weight_decay=0.1)
  grads = jax.tree.map(lambda x: 0.01 * x, params)
  updates, state = tx.update(grads, tx.init(params), params)
  np.testing.assert_array_equal(updates['wte'], grads['wte'])
  direction = muon.orthogonalise_tree(grads['block_0'], 5)['fc1']
  wanted = 10 * (direction * 2.0 + 0.1 * params['block_0']['fc1'])
  np.testing.assert_allclose(updates['block_0']['fc1'], wanted, atol=1e-4)
  assert set(state.momentum) == {'block_0'}
