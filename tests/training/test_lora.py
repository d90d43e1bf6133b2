"""Adapters: what they compute, what they cost, which configs are refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import smoke
from gpt import devices
from gpt.config_check import check_config
from gpt.errors import UserError
from gpt.model import GPT, GPTConfig
from gpt.training import lora
from gpt.training.state import create_state
from gpt.training.step import batch_nats, gradients, train_step
from tests.support.models import random_params

CFG = GPTConfig(
  vocab_size=31, n_embd=32, n_head=4, n_layer=2, block_size=16, mlp='swiglu'
)
ALPHA, RANK = 16.0, 4
MODEL = lora.Adapted(GPT(CFG), RANK, ALPHA, lora.MATRICES)


@pytest.fixture(scope='module')
def base():
  return random_params(CFG)


@pytest.fixture(scope='module')
def adapters():
  """Adapters whose B is not zero."""
  shapes = lora.abstract(MODEL)
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0, 0.1, x.shape), jnp.float32), shapes
  )


def batch(rows=4, seed=0):
  tokens = np.random.default_rng(seed).integers(0, 31, (rows, 17))
  return {
    'tokens': jnp.asarray(tokens, jnp.int32),
    'weights': jnp.ones((rows, 16), jnp.float32),
    'rows': jnp.arange(rows, dtype=jnp.int32),
  }


def test_fresh_adapters_change_no_bit_of_the_loss(base):
  fresh = MODEL.init(jax.random.key(0))['params']
  adapted = batch_nats(MODEL, fresh, batch(), frozen={'base': base})
  assert (adapted == batch_nats(GPT(CFG), base, batch())).all()


def test_merged_matrices_are_base_plus_product_in_float64(base, adapters):
  merged = lora.merge(base, adapters, ALPHA)
  for name, ab in adapters['block_1'].items():
    w, a, b = (
      np.asarray(x, np.float64) for x in (base['block_1'][name], *ab.values())
    )
    np.testing.assert_allclose(
      merged['block_1'][name], w + ALPHA / RANK * a @ b, rtol=0, atol=1e-6
    )
  assert merged['wte'] is base['wte']


@pytest.mark.parametrize('changes', [{}, {'remat': True}, {'dtype': 'mixed'}])
def test_merged_logits_equal_those_of_base_and_adapters(
  base, adapters, changes
):
  model = lora.Adapted(
    GPT(dataclasses.replace(CFG, **changes)), RANK, ALPHA, lora.MATRICES
  )
  tokens = batch()['tokens'][:, :-1]
  params = lora.merge(base, adapters, ALPHA)
  merged = model.model.apply({'params': params}, tokens)
  apart = model.apply({'params': adapters, 'base': base}, tokens)
  assert np.abs(merged).max() > 0.1
  np.testing.assert_allclose(apart, merged, rtol=0, atol=1e-5)


def test_gradients_are_those_of_the_merged_matrices(base, adapters):
  """dA = s dW' B^T and dB = s A^T dW' (chain rule), in micro-batches too."""
  merged = lora.merge(base, adapters, ALPHA)
  full, *_ = gradients(GPT(CFG), merged, batch(), None)
  for micro in (0, 2):
    grads, *_ = gradients(
      MODEL, adapters, batch(), None, {'base': base}, micro_batch_size=micro
    )
    for block, names in grads.items():
      for name, grad in names.items():
        dw, ab = full[block][name], adapters[block][name]
        wanted = {'a': dw @ ab['b'].T, 'b': ab['a'].T @ dw}
        for key, value in wanted.items():
          np.testing.assert_allclose(
            grad[key], ALPHA / RANK * value, rtol=1e-4, atol=1e-6
          )


def test_the_first_step_lowers_the_loss_as_full_fine_tuning_does(base):
  tx = optax.identity()  # Plain gradient descent.
  kwargs = dict(tx=tx, schedule=lambda step: 0.02)
  key = jax.random.key(0)
  losses = {}
  for name, model, frozen in (
    ('full', GPT(CFG), {}),
    ('lora', MODEL, {'base': base}),
  ):
    state = create_state(model, tx, key)
    if not frozen:
      state = state.replace(params=base)
    for _ in range(2):
      state, metrics = train_step(
        state, batch(), key, frozen, model=model, **kwargs
      )
      losses.setdefault(name, []).append(float(metrics['loss']))
  assert losses['full'][0] == pytest.approx(losses['lora'][0], abs=1e-6)
  assert losses['full'][1] < losses['full'][0]
  assert losses['lora'][1] < losses['lora'][0]


def test_the_optimizer_and_the_average_hold_adapters_alone():
  tx = optax.scale_by_adam()
  state = jax.eval_shape(
    lambda key: create_state(MODEL, tx, key, ema=True), jax.random.key(0)
  )
  adapters = jax.tree.structure(lora.abstract(MODEL))
  assert jax.tree.structure(state.params) == adapters
  assert jax.tree.structure(state.opt_state.mu) == adapters
  assert jax.tree.structure(state.ema) == adapters


def test_training_makes_no_merged_matrix_and_no_gradient_of_one(base, adapters):
  """No value of the compiled gradient has the shape of an adapted matrix."""
  cfg = GPTConfig(31, n_embd=24, n_head=2, n_layer=1, block_size=16)
  model = lora.Adapted(GPT(cfg), RANK, ALPHA, lora.MATRICES)
  whole = random_params(cfg)
  fresh = model.init(jax.random.key(0))['params']

  def grads(adapters, base):
    return gradients(model, adapters, batch(3), None, {'base': base})

  made = set()
  for eqn in all_equations(jax.make_jaxpr(grads)(fresh, whole).jaxpr):
    if eqn.primitive.name in ('dot_general', 'add', 'add_any'):
      made |= {var.aval.shape for var in eqn.outvars}
  matrices = {whole['block_0'][name].shape for name in fresh['block_0']}
  assert matrices == {(24, 24), (24, 96), (96, 24)} and made
  assert not made & matrices


def all_equations(jaxpr):
  for eqn in jaxpr.eqns:
    yield eqn
    for value in eqn.params.values():
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from all_equations(inner)


def test_all_cpu_devices_share_one_base(base):
  mesh = devices.create_mesh(4)
  placed = devices.put_shared(jax.device_get(base), mesh)
  for wanted, x in zip(jax.tree.leaves(base), jax.tree.leaves(placed)):
    places = {s.data.unsafe_buffer_pointer() for s in x.addressable_shards}
    assert len(x.addressable_shards) == 4 and len(places) == 1
    np.testing.assert_array_equal(x, wanted)


def test_a_bfloat16_base_is_merged_in_float32(base, adapters):
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base)
  merged = lora.merge(rounded, adapters, ALPHA)['block_0']['wq']
  assert merged.dtype == jnp.float32
  ab, w = adapters['block_0']['wq'], rounded['block_0']['wq']
  update = merged - w.astype(jnp.float32)
  wanted = ALPHA / RANK * ab['a'] @ ab['b']
  np.testing.assert_allclose(update, wanted, rtol=0, atol=1e-6)


def test_targets_choose_the_matrices():
  assert set(lora.read_targets('wq, wv')) == {'wq', 'wv'}
  only = lora.Adapted(GPT(CFG), 2, 1.0, lora.read_targets('wq,wv'))
  assert set(lora.abstract(only)['block_0']) == {'wq', 'wv'}
  relu = GPTConfig(vocab_size=5, n_embd=8, n_head=2, n_layer=1, block_size=4)
  every = lora.Adapted(GPT(relu), 2, 1.0, lora.read_targets('all'))
  assert set(lora.abstract(every)['block_0']) == {
    'wq', 'wk', 'wv', 'wo', 'fc1', 'fc2',
  }  # fmt: skip


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'lora_rank': -1}, 'lora_rank -1 must not be negative'),
    ({'lora_rank': 2, 'lora_alpha': 0.0}, 'lora_alpha 0.0 must be positive'),
    ({'lora_rank': 64}, 'lora_rank 64 is larger than model.n_embd 32'),
    ({'lora_rank': 2, 'lora_targets': 'wq,head'}, "lora_targets 'head' is not"),
    ({'lora_rank': 2, 'lora_targets': 'gate'}, 'gate needs model.mlp=swiglu'),
    ({'lora_rank': 2, 'name': 'muon'}, 'needs opt.name=adamw, here it is muon'),
  ],
)
def test_a_config_that_cannot_work_is_refused(changes, message):
  config = smoke.get_config()
  config.opt.update(changes)
  with pytest.raises(UserError, match=message):
    check_config(config)
