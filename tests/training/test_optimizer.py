"""AdamW and clipping against an independent float64 implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from gpt.errors import UserError
from gpt.training import optimizer

SHAPES = {'wte': (3, 4), 'block_0': {'wq': (4, 4)}}


def options(**changes):
  config = default.get_config()
  for key, value in changes.items():
    config.opt[key] = value
  return config


def random_tree(rng, scale=1.0):
  return jax.tree.map(
    lambda shape: scale * rng.normal(size=shape).astype(np.float32),
    SHAPES,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def adamw_by_hand(params, all_grads, lr, opt):
  """float64 params after the updates, by algorithm 2 of the AdamW paper."""
  p, treedef = jax.tree.flatten(params)
  p = [x.astype(np.float64) for x in p]
  m, v = [np.zeros_like(x) for x in p], [np.zeros_like(x) for x in p]
  for t, grads in enumerate(all_grads, 1):
    g = [x.astype(np.float64) for x in jax.tree.leaves(grads)]
    if opt.clip == 'element':
      g = [np.clip(x, -opt.clip_value, opt.clip_value) for x in g]
    elif opt.clip == 'global_norm':
      norm = np.sqrt(sum((x**2).sum() for x in g))
      g = [x * min(1.0, opt.clip_value / norm) for x in g]
    for i in range(len(p)):
      m[i] = opt.b1 * m[i] + (1 - opt.b1) * g[i]
      v[i] = opt.b2 * v[i] + (1 - opt.b2) * g[i] ** 2
      m_hat, v_hat = m[i] / (1 - opt.b1**t), v[i] / (1 - opt.b2**t)
      direction = m_hat / (np.sqrt(v_hat) + opt.eps)
      p[i] = p[i] - lr * (direction + opt.weight_decay * p[i])
  return jax.tree.unflatten(treedef, p)


@pytest.mark.parametrize(
  'changes',
  [
    {},  # randy: clamp at 1, decay 0.1, betas 0.9 and 0.999.
    {'clip': 'none'},
    {'clip': 'global_norm', 'clip_value': 0.5},
    {'clip': 'global_norm', 'clip_value': 1e6},
    {'clip_value': 0.1, 'weight_decay': 0.0},
    # microgpt: plain Adam.
    {'b1': 0.85, 'b2': 0.99, 'weight_decay': 0.0, 'clip': 'none'},
  ],
)
def test_updates_equal_the_reference_adamw(changes):
  config = options(**changes)
  rng = np.random.default_rng(0)
  params, lr = random_tree(rng), 0.01
  all_grads = [random_tree(rng, 2.0) for _ in range(4)]
  tx = optimizer.create(config)
  update = jax.jit(tx.update)
  given, opt_state = params, tx.init(params)
  for grads in all_grads:
    directions, opt_state = update(grads, opt_state, given)
    given = jax.tree.map(lambda p, u: p - lr * u, given, directions)
  wanted = adamw_by_hand(params, all_grads, lr, config.opt)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    given,
    wanted,
  )


def test_element_clipping_leaves_small_entries_unchanged():
  tx = optimizer.clipping(options().opt)
  grads = {'x': jnp.asarray([-5.0, -0.5, 0.0, 1.0, 7.0])}
  clipped, _ = tx.update(grads, tx.init(grads))
  assert clipped['x'].tolist() == [-1.0, -0.5, 0.0, 1.0, 1.0]


def test_global_norm_clipping_keeps_the_direction():
  tx = optimizer.clipping(options(clip='global_norm', clip_value=1.0).opt)
  grads = {'x': jnp.asarray([3.0, 0.0]), 'y': jnp.asarray([-4.0])}
  clipped, _ = tx.update(grads, tx.init(grads))
  np.testing.assert_allclose(clipped['x'], [0.6, 0.0], rtol=1e-6)
  np.testing.assert_allclose(clipped['y'], [-0.8], rtol=1e-6)


def test_weight_decay_reaches_every_matrix():
  tx = optimizer.create(options())
  params = random_tree(np.random.default_rng(0))
  zeros = jax.tree.map(np.zeros_like, params)
  directions, _ = tx.update(zeros, tx.init(params), params)
  jax.tree.map(
    lambda u, p: np.testing.assert_allclose(u, 0.1 * p, rtol=1e-6),
    directions,
    params,
  )


def test_gains_and_biases_do_not_decay():
  config = options(weight_decay=0.5)
  tx = optimizer.create(config)
  params = {'block_0': {'bq': jnp.ones(4), 'wq': jnp.ones((4, 4))}}
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(zeros, tx.init(params), params)
  assert not np.any(updates['block_0']['bq'])
  assert np.all(updates['block_0']['wq'])


def test_adam_state_is_found_and_replaced():
  tx = optimizer.create(options())
  params = random_tree(np.random.default_rng(0))
  opt_state = tx.init(params)
  mu, nu = (
    random_tree(np.random.default_rng(1)),
    random_tree(np.random.default_rng(2), 0.1),
  )
  changed = optimizer.with_adam_state(opt_state, mu, nu, 7)
  adam = optimizer.adam_state(changed)
  assert int(adam.count) == 7
  np.testing.assert_array_equal(adam.mu['wte'], mu['wte'])
  np.testing.assert_array_equal(adam.nu['block_0']['wq'], nu['block_0']['wq'])
  assert jax.tree.structure(changed) == jax.tree.structure(opt_state)
  # Bias correction continues from step 7: this is the eighth update.
  directions, after = tx.update(params, changed, params)
  assert int(optimizer.adam_state(after).count) == 8


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'name': 'sgd'}, "opt.name 'sgd' is not known; allowed: adamw"),
    ({'clip': 'value'}, "opt.clip 'value' is not known; allowed: element, gl"),
    ({'clip_value': 0.0}, 'opt.clip_value 0.0 must be positive'),
    ({'b1': 1.0}, 'opt.b1 1.0 is not in [0, 1)'),
    ({'b2': -0.1}, 'opt.b2 -0.1 is not in [0, 1)'),
    ({'weight_decay': -0.1}, 'opt.weight_decay must be >= 0'),
    ({'eps': 0.0}, 'opt.eps > 0'),
  ],
)
def test_invalid_options_are_rejected(changes, words):
  with pytest.raises(UserError) as error:
    optimizer.create(options(**changes))
  assert words in str(error.value)
