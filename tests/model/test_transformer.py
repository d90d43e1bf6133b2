"""The model has the documented counts, scales, causality and formula.

The reference forward below is written in numpy from the formulas alone and
shares no code with the model.
"""

import dataclasses
import functools
import importlib
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import configs
from gpt import devices
from gpt.errors import UserError
from gpt.model import losses
from gpt.model import transformer as model_module
from gpt.model.attention import KERNELS
from gpt.model.dropout import row_seeds
from gpt.model.norms import layer_norm, rms_norm
from gpt.model.rope_frequencies import rope_frequencies
from gpt.model.transformer import (
  GPT,
  GPTConfig,
  abstract_params,
  num_params,
  rope,
)
from tests.support.models import random_params

CHARS = 67  # tinyshakespeare: 65 characters, BOS, EOS.
PRESETS = {
  'xs': 529_656,
  's': 1_622_784,
  'ds': 2_409_216,
  'm': 2_729_088,
  'l': 4_818_432,
  'deep': 7_152_768,
  'xl': 14_305_536,
}
CONFIG_FILES = sorted(
  path.stem
  for path in pathlib.Path(configs.__file__).parent.glob('*.py')
  if path.stem != '__init__'
)
TINY = dict(
  vocab_size=11, n_embd=8, n_head=2, n_layer=2, block_size=6, dtype='float32'
)


def load(name):
  return importlib.import_module(f'configs.{name}').get_config()


@pytest.fixture(scope='module')
def tokens_BL():
  return np.random.default_rng(0).integers(0, 11, (3, 6)).astype(np.int32)


def init(cfg):
  tokens = jnp.zeros((1, 1), jnp.int32)
  return jax.jit(GPT(cfg).init)(jax.random.key(0), tokens)['params']


@functools.cache
def jit_apply(cfg):
  return jax.jit(GPT(cfg).apply)


# --- sizes


@pytest.mark.parametrize('preset', PRESETS)
def test_preset_has_the_published_parameter_count(preset):
  model = load(f'model_{preset}').model
  cfg = GPTConfig.from_config(model, CHARS)
  L, D, T = model.n_layer, model.n_embd, model.block_size
  assert num_params(cfg) == 12 * L * D**2 + T * D + 2 * CHARS * D
  assert num_params(cfg) == PRESETS[preset]


def test_every_preset_file_has_a_published_count():
  files = {name for name in CONFIG_FILES if name.startswith('model_')}
  assert files == {f'model_{preset}' for preset in PRESETS}


# A budget chooses its network later.
@pytest.mark.parametrize('name', sorted({*CONFIG_FILES} - {'budget'}))
def test_every_config_file_builds_abstractly(name):
  config = load(name)
  cfg = GPTConfig.from_config(config.model, CHARS)
  batch = jax.ShapeDtypeStruct((2, config.model.block_size), jnp.int32)
  logits = jax.eval_shape(
    GPT(cfg).apply, {'params': abstract_params(cfg)}, batch
  )
  assert logits.shape == (*batch.shape, CHARS)
  assert logits.dtype == jnp.float32


# --- initial weights


@pytest.mark.parametrize(
  'arch, std, wpe_std', [('randy', 0.02, 0.01), ('microgpt', 0.08, 0.08)]
)
def test_initial_weights_have_the_documented_scales(arch, std, wpe_std):
  cfg = GPTConfig(vocab_size=256, n_embd=128, n_layer=3, arch=arch)
  params = init(cfg)
  scaled = std / np.sqrt(2 * 3)
  wanted = {'wte': std, 'wpe': wpe_std, 'lm_head': std}
  for name in wanted:
    check_normal(params[name], wanted[name])
  for i in range(3):
    block = params[f'block_{i}']
    for name in ('wq', 'wk', 'wv', 'fc1'):
      check_normal(block[name], std)
    for name in ('wo', 'fc2'):
      check_normal(block[name], scaled)
  all_leaves = np.concatenate([x.ravel() for x in jax.tree.leaves(params)])
  assert len(np.unique(all_leaves)) > 0.9 * len(all_leaves)  # No copies.


def check_normal(x, std):
  """Mean and deviation within five standard errors of N(0, std)."""
  x = np.asarray(x, np.float64)
  assert abs(x.mean()) < 5 * std / np.sqrt(x.size)
  assert abs(x.std() / std - 1) < 5 / np.sqrt(2 * x.size)


def test_init_std_and_zero_init_set_the_initial_weights():
  cfg = GPTConfig(vocab_size=256, n_embd=64, n_layer=2, init_std=0.05)
  check_normal(init(cfg)['block_1']['fc1'], 0.05)
  block = init(dataclasses.replace(cfg, zero_init=True))['block_0']
  assert not np.any(block['wo']) and not np.any(block['fc2'])
  assert np.any(block['wq'])


# --- causality


def weights(cfg):
  return random_params(cfg, cfg.init_std)


@pytest.mark.parametrize('kernel', ['plain', 'blocked'])
@pytest.mark.parametrize('arch', ['randy', 'microgpt'])
def test_future_positions_have_zero_gradient(arch, kernel, tokens_BL):
  """d loss[t] / d position embedding is zero after t, and not before."""
  cfg = GPTConfig(**TINY, arch=arch, attention=kernel, init_std=0.5)
  model, params = GPT(cfg), weights(cfg)
  length = tokens_BL.shape[1]

  def nats_L(wpe):
    logits = model.apply({'params': {**params, 'wpe': wpe}}, tokens_BL[:1])
    return losses.cross_entropy(logits, tokens_BL[:1])[0]

  jacobian_LTD = jax.jit(jax.jacrev(nats_L))(params['wpe'])
  reaches_LT = np.any(np.asarray(jacobian_LTD) != 0, axis=-1)
  np.testing.assert_array_equal(
    reaches_LT, np.tril(np.ones((length, length), bool))
  )


def test_changed_future_token_changes_no_earlier_logit(tokens_BL):
  rope = {'pos': 'rope', 'qk_norm': True, 'n_kv_head': 1}
  for options in ({}, rope, {'exclusive_attention': True}):
    cfg = GPTConfig(**TINY, init_std=0.5, **options)
    apply = jit_apply(cfg)
    variables = {'params': weights(cfg)}
    changed = tokens_BL.copy()
    changed[:, 4] = (changed[:, 4] + 1) % 11
    before, after = apply(variables, tokens_BL), apply(variables, changed)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.all(np.any(before[:, 4:] != after[:, 4:], axis=-1))


def test_segments_do_not_see_each_other(tokens_BL):
  cfg = GPTConfig(**TINY, init_std=0.5)
  apply = jit_apply(cfg)
  variables = {'params': weights(cfg)}
  segments = np.array([[0, 0, 1, 1, 1, 2]] * 3, np.int32)
  whole = apply(variables, tokens_BL, segments_BL=segments)
  positions = np.array([[2, 3, 4]] * 3, np.int32)
  alone = apply(variables, tokens_BL[:, 2:5], positions_BL=positions)
  # XLA rounds products of 9 rows and of 18 differently on some processors.
  atol = 2e-6 * np.max(np.abs(alone))
  np.testing.assert_allclose(whole[:, 2:5], alone, rtol=2e-6, atol=atol)


# --- the formula


def reference_forward(params, tokens, n_head, arch):
  """float64[L, V] logits of one sequence, straight from the definition."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

  def norm(x):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5)

  def attention(x, block):
    q, k, v = x @ block['wq'], x @ block['wk'], x @ block['wv']
    size = q.shape[1] // n_head
    outs = []
    for h in range(n_head):
      cols = slice(h * size, (h + 1) * size)
      rows = []
      for t in range(len(x)):
        scores = np.array(
          [q[t, cols] @ k[s, cols] / np.sqrt(size) for s in range(t + 1)]
        )
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        rows.append(sum(w * v[s, cols] for s, w in enumerate(weights)))
      outs.append(np.stack(rows))
    return np.concatenate(outs, axis=1) @ block['wo']

  x = p['wte'][tokens] + p['wpe'][: len(tokens)]
  if arch == 'microgpt':
    x = norm(x)
  for i in range(sum(name.startswith('block_') for name in p)):
    block = p[f'block_{i}']
    x = x + attention(norm(x), block)
    h = np.maximum(norm(x) @ block['fc1'], 0)
    x = x + (h**2 if arch == 'randy' else h) @ block['fc2']
  return x @ p['lm_head'].T


@pytest.mark.parametrize('kernel', ['plain', 'blocked'])
@pytest.mark.parametrize('arch', ['randy', 'microgpt'])
def test_forward_matches_a_numpy_reference(arch, kernel, tokens_BL):
  # Large weights, so that attention and non-linearity are far from linear.
  cfg = GPTConfig(**TINY, arch=arch, attention=kernel, init_std=0.4)
  params = weights(cfg)
  logits = jit_apply(cfg)({'params': params}, tokens_BL)
  assert logits.dtype == jnp.float32
  for row, tokens in enumerate(tokens_BL):
    wanted = reference_forward(params, tokens, 2, arch)
    np.testing.assert_allclose(logits[row], wanted, rtol=1e-4, atol=2e-5)


def test_dropout_is_off_without_seeds_and_on_with_them(tokens_BL):
  cfg = GPTConfig(**TINY, dropout=0.5, init_std=0.5)
  apply = jit_apply(cfg)
  variables = {'params': weights(cfg)}
  plain = jit_apply(dataclasses.replace(cfg, dropout=0.0))(variables, tokens_BL)
  np.testing.assert_array_equal(apply(variables, tokens_BL), plain)
  seeds = row_seeds(jax.random.key(0), jnp.arange(3))
  dropped = apply(variables, tokens_BL, seeds_Bx2=seeds)
  assert np.any(dropped != plain)


def test_remat_changes_neither_value_nor_gradient(tokens_BL):
  cfg = GPTConfig(**TINY, dropout=0.3, init_std=0.3)
  params = weights(cfg)
  seeds = row_seeds(jax.random.key(0), jnp.arange(3))

  def value_and_grad(cfg):
    def loss(params):
      logits = GPT(cfg).apply({'params': params}, tokens_BL, seeds_Bx2=seeds)
      return losses.cross_entropy(logits, tokens_BL).mean()

    return jax.jit(jax.value_and_grad(loss))(params)

  plain = value_and_grad(cfg)
  remat_cfg = dataclasses.replace(cfg, remat=True)
  again = value_and_grad(remat_cfg)
  close = lambda a, b: np.testing.assert_allclose(  # noqa: E731
    a, b, rtol=1e-5, atol=1e-6
  )
  jax.tree.map(close, plain, again)
  # And it does recompute: the gradient's program holds more matmuls.
  count = lambda cfg: str(  # noqa: E731
    jax.make_jaxpr(
      jax.grad(
        lambda p: (
          GPT(cfg).apply({'params': p}, tokens_BL, seeds_Bx2=seeds).sum()
        )
      )
    )(params)
  ).count('dot_general')
  assert count(remat_cfg) > count(cfg)


# --- options


@pytest.mark.parametrize(
  'option, changes',
  [
    ({'mlp': 'swiglu'}, 8 * 8 * 4 * 2),
    ({'mlp': 'gelu'}, 0),
    ({'pos': 'rope'}, -6 * 8),
    ({'n_kv_head': 1}, -2 * 2 * 8 * 4),
    ({'tied_embeddings': True}, -11 * 8),
    ({'qk_norm': True, 'final_norm': True, 'embed_norm': True}, 0),
    ({'exclusive_attention': True}, 0),
  ],
)
def test_option_changes_function_and_parameter_count(
  option, changes, tokens_BL
):
  base = GPTConfig(**TINY, init_std=0.5)
  cfg = GPTConfig(**TINY, init_std=0.5, **option)
  assert num_params(cfg) == num_params(base) + changes
  outs = [jit_apply(c)({'params': weights(c)}, tokens_BL) for c in (base, cfg)]
  assert np.all(np.isfinite(outs[1])) and np.any(outs[0] != outs[1])


def test_softcap_bounds_the_logits(tokens_BL):
  plain_cfg = GPTConfig(**TINY, init_std=2.0)
  cfg = dataclasses.replace(plain_cfg, logit_softcap=3.0)
  params = weights(cfg)
  plain = jit_apply(plain_cfg)({'params': params}, tokens_BL)
  capped = jit_apply(cfg)({'params': params}, tokens_BL)
  assert np.abs(plain).max() > 3 >= np.abs(capped).max()
  np.testing.assert_allclose(capped, 3 * np.tanh(plain / 3), rtol=1e-4)


def test_rope_sees_only_relative_positions():
  q, k = np.random.default_rng(0).normal(size=(2, 1, 5, 1, 8))
  q, k = q.astype(np.float32), k.astype(np.float32)
  positions = np.arange(5, dtype=np.int32)[None]

  def scores(shift):
    freqs = rope_frequencies(8, 10_000.0)
    a, b = (rope(jnp.asarray(x), positions + shift, freqs) for x in (q, k))
    return jnp.einsum('BLHK,BSHK->BHLS', a, b)

  np.testing.assert_allclose(scores(0), scores(17), rtol=1e-3, atol=1e-4)
  assert np.abs(scores(0) - np.einsum('BLHK,BSHK->BHLS', q, k)).max() > 0.1


def test_rms_norm_computes_in_float32_and_keeps_the_dtype():
  x = jnp.asarray([[300.0, 400.0]], jnp.bfloat16)
  out = rms_norm(x)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    out.astype(np.float32), [[0.848528, 1.131371]], rtol=4e-3
  )


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'n_embd': 116, 'n_head': 5}, 'n_embd 116 is not divisible by n_head 5'),
    ({'n_head': 4, 'n_kv_head': 3}, 'n_head 4 is not divisible by n_kv_head 3'),
    ({'n_head': 4, 'n_kv_head': -1}, 'n_kv_head -1'),
    ({'n_layer': 0}, 'model.n_layer is 0; it must be at least 1'),
    ({'block_size': 0}, 'model.block_size is 0'),
    ({'n_head': 0}, 'model.n_head is 0'),
    ({'dropout': 1.0}, 'model.dropout 1.0 is not in [0, 1)'),
    ({'dropout': -0.1}, 'model.dropout -0.1 is not in [0, 1)'),
    (
      {'arch': 'llama'},
      "model.arch 'llama' is not known; allowed: randy, micro",
    ),
    ({'mlp': 'relu3'}, "model.mlp 'relu3' is not known; allowed: auto, rel"),
    ({'pos': 'alibi'}, "model.pos 'alibi' is not known"),
    ({'dtype': 'float16'}, "model.dtype 'float16' is not known"),
    ({'pos': 'rope', 'n_embd': 12, 'n_head': 4}, 'even head dimension, got 3'),
    ({'logit_softcap': -1.0}, 'logit_softcap'),
    ({'attention': 'quick'}, "model.attention 'quick' is not known"),
  ],
)
def test_bad_options_are_refused_by_name_and_number(fields, words):
  model = load('default').model
  model.update(fields)
  with pytest.raises(UserError) as error:
    GPTConfig.from_config(model, vocab_size=CHARS)
  assert words in str(error.value)


@pytest.mark.parametrize(
  'backend, dtype',
  [
    ('cpu', 'float32'),
    ('METAL', 'float32'),
    ('cuda', 'bfloat16'),
    ('old cuda', 'float32'),
    ('rocm', 'bfloat16'),
    ('tpu', 'bfloat16'),
  ],
)
def test_auto_is_resolved_from_the_backend(backend, dtype):
  cfg = GPTConfig.from_config(load('default').model, CHARS, backend)
  assert cfg.dtype == dtype
  assert cfg.attention in KERNELS


@pytest.mark.parametrize(
  'platform, capability, name',
  [
    ('cpu', None, 'cpu'),
    ('METAL', None, 'metal'),
    ('gpu', '9.0', 'cuda'),
    ('gpu', '8.0', 'cuda'),
    ('gpu', '7.5', 'old cuda'),
    ('gpu', 'gfx90a', 'rocm'),
  ],
)
def test_gpu_backends_are_distinguished(
  monkeypatch, platform, capability, name
):
  device = types.SimpleNamespace(compute_capability=capability)
  monkeypatch.setattr(jax, 'default_backend', lambda: platform)
  monkeypatch.setattr(jax, 'local_devices', lambda: [device])
  assert devices.backend_name() == name


def test_bfloat16_gradients_are_close_to_float32():
  """For every tensor, also for rows that thousands of tokens share."""
  fields = {**TINY, 'block_size': 64, 'n_embd': 32, 'vocab_size': 5}
  tokens = np.random.default_rng(0).integers(0, 5, (256, 65)).astype(np.int32)
  tokens[:, 1::2] = (tokens[:, :-1:2] + 1) % 5  # Something to be learnt.
  params = weights(GPTConfig(**fields))
  positions = np.broadcast_to(np.arange(64, dtype=np.int32), (256, 64))

  def gradients(dtype):
    model = GPT(GPTConfig(**{**fields, 'dtype': dtype}))

    def mean(params):
      logits = model.apply(
        {'params': params}, tokens[:, :-1], positions_BL=positions
      )
      logp = jax.nn.log_softmax(logits.astype(jnp.float32))
      return -jnp.mean(jnp.take_along_axis(logp, tokens[:, 1:, None], -1))

    return jax.jit(jax.grad(mean))(params)

  wanted, got = gradients('float32'), gradients('bfloat16')
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(wanted), jax.tree.leaves(got)
  ):
    error = np.linalg.norm(a - b) / np.linalg.norm(a)
    assert error < 0.02, (path, error)


def test_every_dropout_layer_has_its_own_mask(monkeypatch):
  sites = []
  plain = model_module.dropout

  def spy(x, rate, seeds, site):
    sites.append(site)
    return plain(x, rate, seeds, site)

  monkeypatch.setattr(model_module, 'dropout', spy)
  cfg = GPTConfig(**{**TINY, 'n_layer': 3, 'dropout': 0.5})
  params = weights(cfg)
  sites.clear()
  seeds = row_seeds(jax.random.key(0), jnp.arange(1, dtype=jnp.uint32))
  GPT(cfg).apply(
    {'params': params}, jnp.zeros((1, 6), jnp.int32), seeds_Bx2=seeds
  )
  assert len(sites) == 6 and len(set(sites)) == 6


# --- options of pretrained models


@pytest.mark.parametrize(
  'options, more',
  [
    ({'head_dim': 6}, 4 * 2 * 8 * (12 - 8)),
    ({'mlp_width': 20}, 2 * 2 * 8 * (20 - 32)),
    ({'norm_gain': True}, 2 * 2 * 8),
    ({'norm_gain': True, 'final_norm': True}, 2 * 2 * 8 + 8),
    ({'bias': True}, 2 * (4 * 8 + 32 + 8)),
    ({'bias': True, 'norm': 'layer', 'norm_gain': True}, 2 * (72 + 4 * 8)),
    ({'qk_norm': True, 'qk_gain': True}, 2 * 2 * 4),
    ({'mlp': 'swiglu', 'bias': True}, 2 * (8 * 32 + 72 + 32)),
  ],
)
def test_each_option_adds_exactly_its_own_parameters(options, more):
  sizes = dict(vocab_size=11, n_embd=8, n_head=2, n_layer=2, block_size=6)
  added = num_params(GPTConfig(**sizes, **options)) - num_params(
    GPTConfig(**sizes)
  )
  assert added == more


def test_layer_norm_is_its_formula():
  x, gain, bias = np.random.default_rng(0).normal(size=(3, 5)).astype('f4')
  got = layer_norm(jnp.asarray(x), jnp.asarray(gain), jnp.asarray(bias), 0.1)
  wanted = (x - x.mean()) / np.sqrt(x.var() + 0.1) * gain + bias
  np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_llama3_scaling_divides_long_wavelengths_and_keeps_short_ones():
  plain = rope_frequencies(64, 5e5)
  scaled = rope_frequencies(64, 5e5, 'llama3:8,1,4,8192')
  turns = 8192 * plain / (2 * np.pi)
  np.testing.assert_array_equal(scaled[turns > 4], plain[turns > 4])
  np.testing.assert_allclose(scaled[turns < 1], plain[turns < 1] / 8, rtol=1e-6)
  between = (turns >= 1) & (turns <= 4)
  assert between.any() and np.all(np.diff(scaled) < 0)
  np.testing.assert_array_equal(
    rope_frequencies(64, 5e5, 'linear:2'), plain / 2
  )


@pytest.mark.parametrize(
  'options, message',
  [
    ({'rope_scaling': 'yarn:4', 'pos': 'rope'}, "'yarn:4' is not known"),
    ({'rope_scaling': 'llama3:4,4,1,8', 'pos': 'rope'}, 'LOW < HIGH'),
    ({'rope_scaling': 'linear:2'}, "need pos='rope'"),
    ({'rope_base': 5e5}, "need pos='rope'"),
    ({'rope_base': -1.0, 'pos': 'rope'}, 'must be positive'),
    ({'norm_eps': 0.0}, 'must be positive'),
    ({'norm': 'group'}, 'allowed: rms, layer'),
    ({'qk_gain': True}, 'needs model.qk_norm'),
    ({'head_dim': -2}, 'must not be negative'),
    ({'n_embd': 9}, 'or set model.head_dim'),
    ({'head_dim': 3, 'pos': 'rope'}, 'even head dimension'),
    ({'param_dtype': 'int8'}, 'allowed: float32, bfloat16'),
  ],
)
def test_impossible_options_are_refused(options, message):
  sizes = dict(vocab_size=11, n_embd=8, n_head=2, n_layer=1, block_size=6)
  with pytest.raises(UserError, match=message):
    GPTConfig(**(sizes | options))


def test_a_width_that_heads_do_not_divide_needs_head_dim():
  cfg = GPTConfig(11, n_embd=9, n_head=2, n_layer=1, block_size=4, head_dim=4)
  tokens = np.zeros((1, 3), np.int32)
  params = GPT(cfg).init(jax.random.key(0), tokens)['params']
  assert params['block_0']['wq'].shape == (9, 8)
  assert params['block_0']['wo'].shape == (8, 9)
  assert GPT(cfg).apply({'params': params}, tokens).shape == (1, 3, 11)
