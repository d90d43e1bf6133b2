"""The training step learns, and dividing the batch changes nothing.

One device or four, one pass or micro-batches, with or without padding: the
same update, up to the order of float32 sums.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from gpt import devices
from gpt.model import GPT, GPTConfig
from gpt.training import optimizer
from gpt.training.state import create_state, eval_params, state_from_params
from gpt.training.step import (
  batch_nats,
  gradients,
  jit_eval_step,
  jit_train_step,
  train_step,
)
from tests.support.models import random_params

CFG = GPTConfig(
  vocab_size=17, n_embd=16, n_head=2, n_layer=1, block_size=12, init_std=0.1
)
KEY = jax.random.key(3)


def random_batch(rows, seed=0, ragged=False):
  rng = np.random.default_rng(seed)
  weights = np.ones((rows, 12), np.float32)
  if ragged:
    weights = (rng.random((rows, 12)) < 0.6).astype(np.float32)
    weights[0] = 0  # A row without targets.
  return {
    'tokens': rng.integers(0, 17, (rows, 13)).astype(np.int32),
    'weights': weights,
    'rows': np.arange(rows, dtype=np.int32),
  }


def adamw():
  return optimizer.create(default.get_config())


def run_steps(
  n_devices, micro=0, dropout=0.0, rows=8, steps=3, ema_decay=0.0, tx=None
):
  """(state, [metrics of each step]) after `steps` random batches."""
  model = GPT(
    GPTConfig(**{**vars(CFG), 'dropout': dropout, 'attention': 'blocked'})
  )
  tx = tx or adamw()
  mesh = devices.create_mesh(rows, jax.devices()[:n_devices])
  padded = devices.padded_batch_size(rows, mesh, micro or 1)
  state = jax.jit(lambda key: create_state(model, tx, key, ema=ema_decay > 0))(
    jax.random.key(0)
  )
  state = devices.put_replicated(state, mesh)
  step = jit_train_step(
    model,
    tx,
    optax.constant_schedule(1e-2),
    mesh,
    micro_batch_size=micro,
    ema_decay=ema_decay,
  )
  history = []
  for i in range(steps):
    batch = devices.pad_rows(random_batch(rows, i, ragged=True), padded)
    state, metrics = step(state, devices.put_batch(batch, mesh), KEY, {})
    history.append(jax.device_get(metrics))
  return jax.device_get(state), history


@functools.cache
def one_device(rows=8, dropout=0.0):
  return run_steps(1, rows=rows, dropout=dropout)


def assert_same(given, wanted):
  """Equal up to summation order, which Adam magnifies by 1 / sqrt(v)."""
  for a, b in zip(given[1], wanted[1]):
    assert a['tokens'] == b['tokens']
    np.testing.assert_allclose(a['loss'], b['loss'], rtol=1e-5)
    np.testing.assert_allclose(a['grad_norm'], b['grad_norm'], rtol=1e-4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
    given[0].params,
    wanted[0].params,
  )


def test_four_devices_equal_one():
  assert_same(run_steps(4, dropout=0.3), one_device(dropout=0.3))


@pytest.mark.parametrize('micro', [pytest.param(1, marks=pytest.mark.slow), 2])
def test_micro_batches_equal_one_big_batch(micro):
  assert_same(run_steps(1, micro=micro, dropout=0.3), one_device(dropout=0.3))


# 5 rows on 4 devices: 3 devices with 2 rows each, 1 row of padding. On 2
# devices with micro-batches of 2: 8 rows, 3 of them padding.
@pytest.mark.parametrize('rows, n_devices, micro', [(5, 4, 0), (5, 2, 2)])
def test_batches_that_do_not_divide_are_padded(rows, n_devices, micro):
  assert_same(
    run_steps(n_devices, micro, rows=rows, dropout=0.3),
    one_device(rows=rows, dropout=0.3),
  )


def test_a_repeated_run_is_bit_identical():
  first, second = (run_steps(4, dropout=0.3) for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, first, second)


def test_dropout_changes_with_the_step_and_the_key():
  model = GPT(GPTConfig(**{**vars(CFG), 'dropout': 0.5}))
  params = random_params(model.cfg)
  state = state_from_params(params, adamw())
  step = jax.jit(
    functools.partial(
      train_step,
      model=model,
      tx=adamw(),
      schedule=optax.constant_schedule(0.0),  # Only dropout differs.
    )
  )
  batch = random_batch(4)
  losses = [
    float(
      step(state.replace(step=jnp.int32(s)), batch, jax.random.key(k))[1][
        'loss'
      ]
    )
    for s, k in ((0, 0), (1, 0), (0, 1), (0, 0))
  ]
  assert len(set(losses[:3])) == 3 and losses[3] == losses[0]


def test_overfits_one_batch():
  """Random tokens: a low loss is possible only by memorising them."""
  model, tx = GPT(CFG), adamw()
  mesh = devices.create_mesh(4, jax.devices()[:1])
  state = devices.put_replicated(
    jax.jit(lambda key: create_state(model, tx, key))(jax.random.key(0)),
    mesh,
  )
  step = jit_train_step(model, tx, optax.constant_schedule(1e-2), mesh)
  batch = devices.put_batch(random_batch(4), mesh)
  state, metrics = step(state, batch, KEY, {})
  assert float(metrics['loss']) > 2.5  # ln 17 is 2.83.
  for _ in range(300):
    state, metrics = step(state, batch, KEY, {})
  assert float(metrics['loss']) < 0.05
  assert int(state.step) == 301


def test_update_is_minus_lr_times_direction():
  """Plain SGD, so that the update is known in closed form."""
  model, tx = GPT(CFG), optax.identity()
  params = random_params(model.cfg)
  state = state_from_params(params, tx).replace(lr_scale=jnp.float32(0.5))
  batch = random_batch(4, ragged=True)
  after, metrics = jax.jit(
    functools.partial(
      train_step,
      model=model,
      tx=tx,
      schedule=lambda step: 0.1 + step,
    )
  )(state, batch, KEY)
  assert float(metrics['lr']) == pytest.approx(0.05)
  grads, nats, count = jax.jit(
    functools.partial(gradients, model, dropout_key=None)
  )(params, batch)
  assert float(count) == batch['weights'].sum() == float(metrics['tokens'])
  assert float(nats / count) == pytest.approx(float(metrics['loss']), 1e-6)
  jax.tree.map(
    lambda a, p, g: np.testing.assert_allclose(a, p - 0.05 * g, atol=1e-6),
    after.params,
    params,
    grads,
  )


def test_ema_follows_the_params():
  states = [run_steps(1, steps=n, ema_decay=0.9)[0] for n in (0, 1, 2)]
  wanted = states[0].params
  for state in states[1:]:
    wanted = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, wanted, state.params)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      state.ema,
      wanted,
    )
  assert eval_params(states[2]) is states[2].ema


def test_eval_step_sums_nats_targets_and_bytes():
  model = GPT(CFG)
  params = random_params(model.cfg)
  bytes_V = np.arange(17, dtype=np.float32)
  batch = random_batch(8, ragged=True)
  sums = [
    np.asarray(
      jit_eval_step(model, mesh)(
        params, devices.put_batch(batch, mesh), bytes_V, {}
      )
    )
    for mesh in (devices.create_mesh(8, jax.devices()[:n]) for n in (1, 4))
  ]
  np.testing.assert_allclose(sums[0], sums[1], rtol=1e-5)
  nats = jax.jit(functools.partial(batch_nats, model))(params, batch)
  w = batch['weights']
  np.testing.assert_allclose(
    sums[0],
    [
      (np.asarray(nats) * w).sum(),
      w.sum(),
      (bytes_V[batch['tokens'][:, 1:]] * w).sum(),
    ],
    rtol=1e-5,
  )


@pytest.mark.parametrize('n', [1, 4])
def test_eval_step_takes_several_masks_of_a_batch(n):
  model, bytes_V = GPT(CFG), np.arange(17, dtype=np.float32)
  params, mesh = random_params(CFG), devices.create_mesh(8, jax.devices()[:n])
  batch, other = random_batch(8, ragged=True), random_batch(8)
  masks = [batch['weights'], other['weights']]

  def sums(weights):
    found = devices.put_batch(batch | {'weights': weights}, mesh)
    return np.asarray(jit_eval_step(model, mesh)(params, found, bytes_V, {}))

  np.testing.assert_allclose(
    sums(np.stack(masks, 1)), [sums(mask) for mask in masks], rtol=1e-6
  )


def test_batch_without_any_target_changes_nothing_but_decay():
  batch = random_batch(2)
  batch['weights'][:] = 0
  model, tx = GPT(CFG), optax.identity()
  params = random_params(model.cfg)
  state, metrics = jax.jit(
    functools.partial(
      train_step,
      model=model,
      tx=tx,
      schedule=lambda step: 0.1,
    )
  )(state_from_params(params, tx), batch, KEY)
  jax.tree.map(np.testing.assert_array_equal, state.params, params)
  assert float(metrics['loss']) == 0
