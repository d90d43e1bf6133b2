"""The compiled kernels agree with the model in JAX."""

import dataclasses
import mmap
import os
import signal
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt import kernels
from gpt.decoding import generation, sampling
from gpt.errors import UserError
from gpt.kernels import calls, columns, library
from gpt.kernels.weights import LARGE_PAGE, in_large_pages
from gpt.model import GPT, GPTConfig
from serving.engine.kernel_programs import KernelPrograms

pytestmark = pytest.mark.skipif(
  bool(library.unsupported(GPTConfig(8)) or library.load()),
  reason='the kernels cannot be used here',
)
SIZES = {'vocab_size': 67, 'n_layer': 2, 'block_size': 80}


@st.composite
def configs(draw):
  """GPTConfigs with any option that changes the function, of odd sizes."""

  def choose(*values):
    return draw(st.sampled_from(values))

  heads, per = choose((1, 1), (2, 2), (4, 2), (6, 3), (8, 1))
  pos, qk_norm = choose('learned', 'rope'), choose(False, True)
  return GPTConfig(
    **SIZES,
    n_embd=choose(24, 36, 64),
    n_head=heads,
    n_kv_head=per,
    head_dim=choose(6, 16, 20, 32),
    mlp_width=choose(20, 64, 100),
    mlp=choose('relu2', 'relu', 'gelu', 'swiglu'),
    pos=pos,
    rope_base=choose(10_000.0, 5e5) if pos == 'rope' else 10_000.0,
    rope_scaling=(
      choose('', 'linear:2', 'llama3:8,1,4,32') if pos == 'rope' else ''
    ),
    norm=choose('rms', 'layer'),
    norm_gain=choose(False, True),
    norm_eps=choose(1e-5, 1e-2),
    bias=choose(False, True),
    embed_norm=choose(False, True),
    qk_norm=qk_norm,
    exclusive_attention=choose(False, True),
    qk_gain=choose(False, True) if qk_norm else False,
    final_norm=choose(False, True),
    logit_softcap=choose(0.0, 5.0),
    tied_embeddings=choose(False, True),
    param_dtype=choose('float32', 'bfloat16'),
  )


def random_params(cfg, seed=0):
  """Weights far enough from their start for every option to matter."""
  model, key = GPT(cfg), jax.random.key(seed)
  shapes = jax.eval_shape(model.init, key, jnp.zeros((1, 1), jnp.int32))
  leaves, tree = jax.tree.flatten(shapes['params'])
  rng = np.random.default_rng(seed)
  return jax.tree.unflatten(
    tree,
    [
      jnp.asarray(
        rng.normal(1.0 if x.ndim == 1 else 0.0, 0.2, x.shape), x.dtype
      )
      for x in leaves
    ],
  )


def kernel_logits(plan, params, pieces, slot=1):
  """float32[L, V] of a sequence that is given to one slot in pieces."""
  weights = kernels.pack(plan.cfg, params, plan.pairs)
  state, first, found = calls.jit_init_state(plan, 3), 0, []
  for piece in pieces:
    padded = np.zeros(plan.cfg.block_size, np.int32)
    padded[: len(piece)] = piece
    state, logits = calls.jit_fill(
      plan,
      weights,
      state,
      np.int32(slot),
      np.int32(first),
      np.int32(len(piece)),
      padded,
      out='logits',
    )
    found.append(np.asarray(logits)[: len(piece)])
    first += len(piece)
  return np.concatenate(found)


@settings(max_examples=5, deadline=None)
@given(configs(), st.integers(0, 2**31), st.data())
def test_logits_are_those_of_the_model_and_do_not_depend_on_the_pieces(
  cfg, seed, data
):
  params = random_params(cfg, seed)
  length = data.draw(st.integers(1, cfg.block_size))
  tokens = np.random.default_rng(seed).integers(0, cfg.vocab_size, length)
  plan = kernels.plan_for(cfg)
  whole = kernel_logits(plan, params, [tokens])
  wanted = GPT(cfg).apply({'params': params}, jnp.asarray(tokens[None]))[0]
  scale = float(jnp.max(jnp.abs(wanted)))
  np.testing.assert_allclose(whole, wanted, rtol=0, atol=1e-5 * max(1, scale))
  cut = data.draw(st.integers(0, length))
  pieces = [tokens[:cut], *(tokens[i : i + 1] for i in range(cut, length))]
  alone = dataclasses.replace(plan, threads=1)
  again = kernel_logits(alone, params, pieces, slot=2)
  np.testing.assert_array_equal(again, whole)


def texts(cfg, params, prompts, count=120, **options):
  found = [[] for _ in prompts]
  for row, new in generation.generate(
    GPT(cfg),
    params,
    prompts,
    sampling.settings(len(prompts), **options),
    count,
  ):
    found[row] += new or []
  return found


MIXED = {
  'seed': range(6),
  'temperature': [0.0, 1.0, 0.7, 1.3, 1.0, 0.9],
  'top_k': [0, 0, 20, 0, 5, 1000],
  'top_p': [1.0, 0.9, 0.95, 1.0, 1.0, 0.5],
  'min_p': [0.0, 0.0, 0.0, 0.05, 0.0, 0.01],
  'repetition': [1.0, 1.0, 1.3, 1.0, 0.9, 1.0],
  'frequency': [0.0, 0.2, 0.0, 0.0, -0.1, 0.0],
  'presence': [0.0, 0.0, 0.1, 0.0, 0.0, 0.5],
}


def test_texts_are_those_of_the_reference(monkeypatch):
  cfg = GPTConfig(**SIZES, n_embd=32, n_head=2)
  params = random_params(cfg)
  prompts = [[1], [2, 3, 4], list(range(60)) * 2, [5] * 79, [6] * 80, [7, 8]]
  ours = texts(cfg, params, prompts, **MIXED)
  monkeypatch.setenv('RGPT_KERNELS', 'off')
  assert ours == texts(cfg, params, prompts, **MIXED)


def test_uniforms_are_those_of_jax():
  """With equal logits the token is the uniform number, in steps of 1 / V."""
  cfg = GPTConfig(vocab_size=4096, n_embd=8, n_head=1, n_layer=1, block_size=64)
  params = jax.tree.map(
    jnp.zeros_like, GPT(cfg).init(jax.random.key(0), jnp.zeros((1, 1), int))
  )['params']
  seeds = [0, 1, 2**31, 2**32 - 1]
  options = {'seed': seeds, 'temperature': 1.0, 'top_p': 1.0}
  found = texts(cfg, params, [[0]] * 4, 50, **options)
  wanted = sampling.uniforms(
    np.array(seeds, np.uint32), jnp.zeros(4, jnp.int32), 50
  )
  np.testing.assert_array_equal(found, np.floor(np.asarray(wanted) * 4096))


def test_bfloat16_is_close_and_the_same_at_any_size_of_piece():
  cfg = GPTConfig(
    **SIZES, n_embd=64, n_head=4, n_kv_head=2, mlp='swiglu', pos='rope'
  )
  params = random_params(cfg)
  tokens = np.random.default_rng(1).integers(0, cfg.vocab_size, 77)
  plan = kernels.plan_for(cfg, 'bfloat16')
  found = kernel_logits(plan, params, [tokens])
  exact = kernel_logits(kernels.plan_for(cfg), params, [tokens])
  error = np.std(found - exact) / np.std(exact)
  assert 1e-4 < error < 0.05
  again = kernel_logits(plan, params, [tokens[i : i + 1] for i in range(77)])
  np.testing.assert_array_equal(again, found)


def test_bfloat16_without_kernels_is_refused(monkeypatch):
  monkeypatch.setenv('RGPT_KERNELS', 'off')
  with pytest.raises(UserError, match='need the compiled kernels: RGPT_KERNE'):
    kernels.plan_for(GPTConfig(8), 'bfloat16')


def test_columns_of_a_slot_can_be_read_and_put_into_another():
  for weights in ('float32', 'bfloat16'):
    cfg = GPTConfig(**SIZES, n_embd=64, n_head=4)
    plan = kernels.plan_for(cfg, weights)
    packed = kernels.pack(cfg, random_params(cfg), plan.pairs)
    state = calls.jit_init_state(plan, 2)
    tokens = np.arange(80, dtype=np.int32) % 67
    state, _ = calls.jit_fill(
      plan, packed, state, *map(np.int32, (0, 0, 70)), tokens
    )
    for pieces in (((0, 70),), ((0, 16), (16, 33), (49, 21))):
      found = [columns.read(state, 0, first, n) for first, n in pieces]
      columns.write(state, 1, found)
      np.testing.assert_array_equal(state.k[0], state.k[1])
      np.testing.assert_array_equal(state.v[0], state.v[1])
      columns.write(state, 1, [0 * piece for piece in found])
      assert np.any(np.asarray(state.k[0]) != np.asarray(state.k[1]))


@pytest.mark.parametrize('weights', ['float32', 'bfloat16'])
def test_drafts_do_not_change_a_text(monkeypatch, weights):
  cfg = GPTConfig(**SIZES, n_embd=32, n_head=2)
  params = random_params(cfg)
  plan = kernels.plan_for(cfg, weights)
  found = {}
  for draft in (0, 1, calls.DRAFT):
    given = dataclasses.replace(plan, draft=draft)
    monkeypatch.setattr(kernels, 'plan_for', lambda *_, plan=given: plan)
    found[draft] = [
      texts(cfg, params, [[1, 2, 3] * 9], 150, temperature=t, repetition=r)
      for t, r in ((0.0, 1.0), (0.0, 0.6), (0.3, 1.0), (1.0, 1.2))
    ]
  assert found[0] == found[1] == found[calls.DRAFT]
  # Some of them repeat themselves: drafts were right, and wrong.
  assert any(len({*text[0][-20:]}) < 8 for text in found[0])


def test_a_forked_process_decodes_too():
  cfg = GPTConfig(**SIZES, n_embd=32, n_head=2)
  params = random_params(cfg)
  before = texts(cfg, params, [[1]], 40, seed=[0])
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # JAX and Python warn of forks.
    child = os.fork()
  if not child:
    signal.alarm(100)  # Ends the child should it hang.
    os._exit(0 if texts(cfg, params, [[1]], 40, seed=[0]) == before else 1)
  assert os.waitpid(child, 0)[1] == 0
  assert texts(cfg, params, [[1]], 40, seed=[0]) == before


def test_a_block_of_the_server_has_no_logits_beyond_its_rows_and_steps():
  """They are undefined: a difference of two may be nan."""
  cfg = GPTConfig(67, n_embd=32, n_head=4, n_layer=1, block_size=32)
  plan = kernels.plan_for(cfg)
  assert plan is not None
  programs = KernelPrograms(GPT(cfg), plan, slots=3)
  weights = programs.prepare(random_params(cfg), {})
  programs.compile(weights)
  zeros = np.zeros(2, np.int32)
  _, tokens, logits = programs.block(
    weights,
    programs.new_state(),
    np.arange(2, dtype=np.int32),
    *(zeros, zeros, zeros),
    sampling.settings(3),
    np.zeros((2, 3), np.float32),
  )
  assert tokens.shape == (2, 3) and logits.shape == (2, 3, 67)


@pytest.mark.skipif(not hasattr(mmap, 'MADV_HUGEPAGE'), reason='of Linux')
def test_large_weights_lie_in_large_pages_and_are_not_copied_again():
  x = np.arange(3 << 18, dtype=np.float32).reshape(3, -1)
  on_device = jax.device_put(in_large_pages(x))
  assert np.array_equal(on_device, x)
  assert on_device.unsafe_buffer_pointer() % LARGE_PAGE == 0
