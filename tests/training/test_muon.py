"""Muon: the iteration, stacking by shape, sharding, and who gets it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from configs import default
from gpt import devices
from gpt.native import training
from gpt.training import muon, optimizer


def matrices(*shapes, seed=0):
  rng = np.random.default_rng(seed)
  return {
    f'm{i}': rng.standard_normal(shape).astype(np.float32)
    for i, shape in enumerate(shapes)
  }


@pytest.mark.parametrize('mixed, tolerance', [(False, 2e-5), (True, 0.03)])
@pytest.mark.parametrize('shape', [(16, 16), (8, 32), (32, 8)])
def test_singular_values_move_close_to_one(shape, mixed, tolerance):
  x = matrices(shape)
  got = jax.jit(lambda x: muon.orthogonalise_tree(x, steps=5, mixed=mixed))(x)[
    'm0'
  ]
  got = np.asarray(got)
  values = np.linalg.svd(got, compute_uv=False)
  assert got.shape == shape
  assert 0.4 < values.min() and values.max() < 1.3
  # Singular vectors are unchanged: U^T got V is diagonal.
  u, _, vt = np.linalg.svd(x['m0'], full_matrices=False)
  core = u.T @ got @ vt.T
  np.testing.assert_allclose(core, np.diag(np.diag(core)), atol=tolerance)


def test_a_tree_equals_its_matrices_one_by_one():
  x = matrices((8, 8), (8, 32), (32, 8), (8, 8))
  together = muon.orthogonalise_tree(x, steps=5)
  for name, value in x.items():
    alone = muon.orthogonalise_tree({name: value}, steps=5)[name]
    np.testing.assert_allclose(together[name], alone, atol=1e-5)


def test_sharding_over_devices_changes_nothing():
  x = matrices((8, 8), (8, 32), (8, 8), (8, 8), (8, 8))
  mesh = devices.create_mesh(4, jax.devices()[:4])
  assert mesh.size == 4
  spread = jax.jit(lambda x: muon.orthogonalise_tree(x, 5, mesh))(x)
  alone = muon.orthogonalise_tree(x, 5)
  for name in x:
    np.testing.assert_allclose(spread[name], alone[name], atol=1e-5)


def test_only_block_matrices_get_muon():
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


def test_gains_and_biases_of_a_block_get_the_rest():
  params = {
    'wte': jnp.ones((3, 4)),
    'block_0': {'wq': jnp.ones((4, 4)), 'bq': jnp.ones(4)},
  }
  tx = muon.muon(optax.scale(7.0), scale=1.0)
  state = tx.init(params)
  assert jax.tree.map(jnp.shape, state.momentum) == {'block_0': {'wq': (4, 4)}}
  updates, _ = tx.update(params, state, params)
  assert jax.tree.structure(updates) == jax.tree.structure(params)
  np.testing.assert_array_equal(updates['block_0']['bq'], 7.0)


@pytest.mark.skipif(
  not hasattr(optax.contrib, 'muon'), reason='optax without muon'
)
def test_directions_equal_those_of_optax_without_momentum():
  """optax bias-corrects its momentum, so only momentum 0 is comparable."""
  params = {'block_0': matrices((16, 16), (8, 32), (32, 8))}
  grads = {'block_0': matrices((16, 16), (8, 32), (32, 8), seed=1)}
  ours = muon.muon(optax.identity(), scale=1.0, momentum=0.0, weight_decay=0.1)
  theirs = optax.contrib.muon(1.0, beta=0.0, weight_decay=0.1)
  # Of a nearly singular matrix our kernel is off by more (tests/native).
  with training.reference():
    given, _ = jax.jit(ours.update)(grads, ours.init(params), params)
  wanted, _ = jax.jit(theirs.update)(grads, theirs.init(params), params)
  for name, direction in given['block_0'].items():
    np.testing.assert_allclose(direction, -wanted['block_0'][name], atol=2e-5)


def reference_orthogonalise(x, steps):
  """float64, as in the post: quintic iterations on the wide orientation."""
  x = x.astype(np.float64)
  tall = x.shape[0] > x.shape[1]
  x = x.T if tall else x
  x = x / np.linalg.norm(x)
  for _ in range(steps):
    a = x @ x.T
    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
  return x.T if tall else x


def reference_by_neurons(mean, o):
  """Algorithm 1 of NorMuon, scaled to the norm that the update had."""
  mean = 0.95 * mean + 0.05 * (o**2).mean(axis=0)
  divided = o / np.sqrt(mean)
  return mean, divided * np.linalg.norm(o) / np.linalg.norm(divided)


@pytest.mark.parametrize('name', ['muon', 'normuon'])
def test_updates_equal_the_reference(name):
  """Three updates from a config, with clipping, decay and both rates."""
  config = default.get_config()
  config.lr, config.opt.name = 0.01, name
  config.opt.muon_lr, config.opt.muon_momentum = 0.05, 0.8
  config.opt.muon_steps, config.opt.weight_decay = 4, 0.1
  config.opt.clip, config.opt.clip_value = 'element', 0.5
  shapes = {'fc1': (6, 12), 'fc2': (12, 6), 'wq': (6, 6)}
  rng = np.random.default_rng(0)

  def draw(scale):
    return {
      'wte': scale * rng.normal(size=(5, 6)).astype(np.float32),
      'block_0': {
        n: scale * rng.normal(size=s).astype(np.float32)
        for n, s in shapes.items()
      },
    }

  params, all_grads = draw(1.0), [draw(0.7) for _ in range(3)]
  tx = optimizer.create(config)
  given, opt_state = params, tx.init(params)
  for grads in all_grads:
    directions, opt_state = jax.jit(tx.update)(grads, opt_state, given)
    given = jax.tree.map(lambda p, u: p - config.lr * u, given, directions)

  for key, shape in shapes.items():
    p = params['block_0'][key].astype(np.float64)
    m, mean = np.zeros(shape), np.zeros(shape[1])
    for grads in all_grads:
      g = np.clip(grads['block_0'][key].astype(np.float64), -0.5, 0.5)
      m = 0.8 * m + 0.2 * g
      direction = reference_orthogonalise(0.8 * m + 0.2 * g, 4)
      if name == 'normuon':
        mean, direction = reference_by_neurons(mean, direction)
      direction *= max(1.0, shape[1] / shape[0]) ** 0.5
      p = p - 0.05 * (direction + 0.1 * p)
    np.testing.assert_allclose(given['block_0'][key], p, atol=2e-5)
  adamw = optimizer.adamw(config.opt)
  wte, state = params['wte'], adamw.init({'wte': params['wte']})
  for grads in all_grads:
    clipped = {'wte': np.clip(grads['wte'], -0.5, 0.5)}
    step, state = adamw.update(clipped, state, {'wte': wte})
    wte = wte - 0.01 * step['wte']
  np.testing.assert_allclose(given['wte'], wte, atol=1e-6)
