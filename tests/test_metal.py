"""Everything the program compiles would lower for an Apple GPU.

The check itself comes first: it must report each construct known to fail
there. Apple's plugin works with the pinned jax 0.5.0, and `make test-metal`
runs this file on it; newer versions only spell a few operations differently.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from gpt import devices
from gpt.decoding import blocks, sampling
from gpt.model import GPT, GPTConfig, abstract_params
from gpt.training import lora, optimizer, schedules
from gpt.training import step as train_step
from gpt.training.state import create_state
from tests.support.metal_lowering import (
  check_metal_lowering,
  check_stablehlo,
  dot_shapes,
  lower_for_metal,
)

X_BLD = jnp.ones((2, 4, 8))
Q_BLHK = jnp.ones((2, 4, 4, 8))


def attention(q_BLHK, k_BSHK, v_BSHK):
  att_BHLS = jnp.einsum('BLHK,BSHK->BHLS', q_BLHK, k_BSHK)
  mask_LS = jnp.tril(jnp.ones((4, 4), bool))
  att_BHLS = jax.nn.softmax(jnp.where(mask_LS[None, None], att_BHLS, -1e9))
  return jnp.einsum('BHLS,BSHK->BLHK', att_BHLS, v_BSHK)


def library_attention(q, k, v):
  return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def gradient(fn):
  return jax.grad(lambda *args: (fn(*args) ** 2).sum(), (0, 1, 2))


def test_attention_by_hand_passes_forward_and_backward():
  args = (Q_BLHK, Q_BLHK, Q_BLHK)
  assert check_metal_lowering(attention, *args) == []
  assert check_metal_lowering(gradient(attention), *args) == []


def test_library_attention_fails_backward_only():
  args = (Q_BLHK, Q_BLHK, Q_BLHK)
  assert check_metal_lowering(library_attention, *args) == []
  problems = check_metal_lowering(gradient(library_attention), *args)
  assert 'dot_general with 2 batch and 2 contracting axes' in problems


def test_contracting_two_axes_without_a_batch_passes():
  w_HKD = jnp.ones((4, 8, 16))

  def project(q_BLHK):
    return jnp.einsum('BLHK,HKD->BLD', q_BLHK, w_HKD)

  assert check_metal_lowering(project, Q_BLHK) == []


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'int8', 'uint8'])
def test_small_dtypes_are_reported(dtype):
  short = {'bfloat16': 'bf16', 'float16': 'f16', 'int8': 'i8', 'uint8': 'ui8'}
  problems = check_metal_lowering(lambda x: x.astype(dtype) * 2, X_BLD)
  assert f'dtype {short[dtype]}' in problems


def test_threefry_passes_and_a_hardware_generator_fails():
  def draw(key):
    return jax.random.categorical(key, jnp.ones((2, 8)))

  assert check_metal_lowering(draw, jax.random.key(0)) == []
  key = jax.random.key(0, impl='rbg')
  assert 'operation rng_bit_generator' in check_metal_lowering(draw, key)


@pytest.mark.parametrize(
  'fn',
  [
    lambda x: (jax.debug.print('{}', x), x)[1],
    lambda x: jax.pure_callback(lambda a: a, x, x),
    lambda x: jax.experimental.io_callback(lambda a: a, x, x),
  ],
  ids=['print', 'pure_callback', 'io_callback'],
)
def test_callbacks_do_not_lower(fn):
  (problem,) = check_metal_lowering(fn, X_BLD)
  assert problem.startswith('does not lower: ')


@pytest.mark.parametrize(
  'fn',
  [
    lambda x: jnp.linalg.cholesky(jnp.eye(3)),
    lambda x: jnp.linalg.solve(jnp.eye(3), jnp.ones(3)),
    lambda x: jnp.fft.fft(x).real,
    lambda x: jax.nn.gelu(x, approximate=False),
  ],
  ids=['cholesky', 'solve', 'fft', 'exact gelu'],
)
def test_missing_operations_are_reported(fn):
  assert check_metal_lowering(fn, X_BLD)


def test_everyday_operations_pass():
  def fn(x):
    values, _ = jax.lax.top_k(x, 3)
    x = jax.lax.dynamic_update_slice(x, values[:, :1, :1], (0, 1, 0))
    total = jax.lax.scan(lambda c, a: (c + a, None), x[0, 0], x[0])[0]
    x = jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c * 2, x)
    x = jax.checkpoint(jax.nn.gelu)(x) + jnp.cumsum(x, -1)
    rows = jnp.argmax(x, -1)
    one_hot = jax.nn.one_hot(rows, 8)
    return jnp.tanh(one_hot @ total), jnp.square(x), jax.lax.rsqrt(x)

  assert check_metal_lowering(fn, X_BLD, donate_argnums=0) == []


def test_unsigned_indices_are_reported():
  def update(x, i):
    return jax.lax.dynamic_update_slice(x, x[:, :1], (0 * i, i, 0 * i))

  assert check_metal_lowering(update, X_BLD, jnp.int32(1)) == []
  problems = check_metal_lowering(update, X_BLD, jnp.uint32(1))
  assert 'dynamic slice with unsigned indices' in problems


def test_dots_are_counted():
  text = (
    '%2 = stablehlo.dot_general %0, %1, batching_dims = [0, 2] x [0, 1], '
    'contracting_dims = [1, 3] x [2, 3], precision = [DEFAULT, DEFAULT] : '
    '(tensor<2x?x4xf32>, tensor<f32>) -> tensor<complex<f32>>'
  )
  assert dot_shapes(text) == {(2, 2)}
  assert check_stablehlo(text) == [
    'dot_general with 2 batch and 2 contracting axes',
    'dtype complex',
  ]


# --- the program -------------------------------------------------------------

VARIANTS = {
  'randy': {},
  'microgpt': {'model.arch': 'microgpt', 'opt.schedule': 'linear_warmup'},
  'remat': {'model.remat': True},
  'global norm, ema': {'opt.clip': 'global_norm', 'opt.ema_decay': 0.99},
  'wsd, no decay': {'opt.schedule': 'wsd', 'opt.weight_decay': 0.0},
  'mixed, muon': {'model.dtype': 'mixed', 'opt.name': 'muon'},
  'every option': {
    'model.pos': 'rope',
    'model.mlp': 'swiglu',
    'model.n_kv_head': 2,
    'model.embed_norm': True,
    'model.qk_norm': True,
    'model.exclusive_attention': True,
    'model.final_norm': True,
    'model.logit_softcap': 15.0,
    'model.tied_embeddings': True,
  },
}
VOCAB = 100  # More than sampling's fast path looks at.


def tiny(**changes):
  """(config, model) as they would be on an Apple GPU, small."""
  config = default.get_config()
  config.model.update(n_embd=16, n_head=4, n_layer=2, block_size=64)
  config.update_from_flattened_dict(changes)
  cfg = GPTConfig.from_config(config.model, VOCAB, backend='METAL')
  return config, GPT(cfg)


def test_defaults_on_metal_are_its_own():
  _, model = tiny()
  assert (model.cfg.dtype, model.cfg.attention) == ('float32', 'plain')


def abstract(shape, dtype):
  return jax.ShapeDtypeStruct(shape, dtype)


def abstract_state(config, model):
  create = functools.partial(
    create_state,
    model,
    optimizer.create(config),
    ema=config.opt.ema_decay > 0,
  )
  return jax.eval_shape(create, jax.random.key(0))


def abstract_batch(rows=4, length=64):
  return {
    'tokens': abstract((rows, length + 1), jnp.int32),
    'weights': abstract((rows, length), jnp.float32),
    'rows': abstract((rows,), jnp.int32),
  }


@pytest.mark.parametrize('micro', [0, 2], ids=['whole', 'micro-batches'])
@pytest.mark.parametrize('variant', VARIANTS)
def test_train_step_compiles_for_metal(variant, micro):
  config, model = tiny(**VARIANTS[variant])
  step = train_step.jit_train_step(
    model,
    optimizer.create(config),
    schedules.from_config(config),
    devices.create_mesh(4, jax.devices()[:1]),
    micro_batch_size=micro,
    ema_decay=config.opt.ema_decay,
  )
  state, key = abstract_state(config, model), jax.random.key(1)
  assert check_metal_lowering(step, state, abstract_batch(), key, {}) == []


def test_training_adapters_compiles_for_metal():
  config, model = tiny()
  adapted = lora.Adapted(model, 2, 16.0, lora.MATRICES)
  mesh = devices.create_mesh(4, jax.devices()[:1])
  step = train_step.jit_train_step(
    adapted, optimizer.create(config), schedules.from_config(config), mesh
  )
  frozen = {'base': abstract_params(model.cfg)}
  state, key = abstract_state(config, adapted), jax.random.key(1)
  assert check_metal_lowering(step, state, abstract_batch(), key, frozen) == []


def test_train_step_with_segments_compiles_for_metal():
  config, model = tiny()
  step = functools.partial(
    train_step.train_step,
    model=model,
    tx=optimizer.create(config),
    schedule=schedules.from_config(config),
  )
  state, key = abstract_state(config, model), jax.random.key(1)
  batch = abstract_batch() | {
    'segments': abstract((4, 65), jnp.int32),
    'positions': abstract((4, 64), jnp.int32),
  }
  assert check_metal_lowering(step, state, batch, key) == []


@pytest.mark.parametrize('variant', VARIANTS)
def test_init_and_eval_compile_for_metal(variant):
  config, model = tiny(**VARIANTS[variant])
  tx = optimizer.create(config)
  create = functools.partial(create_state, model, tx)
  assert check_metal_lowering(create, jax.random.key(0)) == []
  step = train_step.jit_eval_step(
    model, devices.create_mesh(4, jax.devices()[:1])
  )
  params = abstract_state(config, model).params
  bytes_V = abstract((VOCAB,), jnp.float32)
  assert check_metal_lowering(step, params, abstract_batch(), bytes_V, {}) == []


@pytest.mark.parametrize('variant', VARIANTS)
def test_generation_compiles_for_metal(variant):
  config, model = tiny(**VARIANTS[variant])
  params = abstract_state(config, model).params
  prompt = abstract((1, 32), jnp.int32)
  prefill = functools.partial(blocks.prefill, model)
  assert check_metal_lowering(prefill, params, prompt) == []

  row = jax.eval_shape(prefill, params, prompt)
  state = jax.eval_shape(lambda: blocks.init_state(model.cfg, 3))
  slot = np.int32(1)
  new = abstract((VOCAB,), jnp.bool_), abstract((VOCAB,), jnp.float32)
  assert check_metal_lowering(blocks.insert, state, slot, row, *new) == []
  assert check_metal_lowering(blocks.refill, state, slot, row) == []

  block = functools.partial(blocks.decode_block, model, k=4, bucket=32)
  row_int = abstract((2,), jnp.int32)
  s = sampling.settings(2, top_k=5, min_p=0.1, repetition=1.1)
  args = (params, state, row_int, row_int, row_int, row_int, s)
  assert check_metal_lowering(block, *args) == []


def test_a_bfloat16_model_is_reported():
  config, model = tiny()
  model = GPT(dataclasses.replace(model.cfg, dtype='bfloat16'))
  text = lower_for_metal(
    functools.partial(blocks.prefill, model),
    abstract_state(config, model).params,
    abstract((1, 32), jnp.int32),
  )
  assert 'dtype bf16' in check_stablehlo(text)
