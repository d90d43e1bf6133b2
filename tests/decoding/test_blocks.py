"""Decoding with a cache equals the forward pass of the whole window.

The reference has no cache, blocks or slots: for every token it runs the model
over the window, whose rule (`window_start`) it implements independently.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gpt.decoding import blocks, generation, sampling
from gpt.errors import UserError
from gpt.model import GPT, GPTConfig, abstract_params
from gpt.model.kv_cache import init_cache

W = 12  # Not a power of two, and S = 6 is not a multiple of any block.
TINY = GPTConfig(vocab_size=19, n_embd=16, n_head=2, n_layer=2, block_size=W)
MODEL = GPT(TINY)
GREEDY = dict(temperature=0.0)
RANDOM = dict(temperature=3.0, top_p=0.95, seed=3)
PENALISED = dict(temperature=2.0, top_p=1.0, repetition=1.3, frequency=0.2)


@functools.cache
def init(model=MODEL):
  """Weights large enough that each token depends on all earlier ones."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0, 0.35, x.shape), x.dtype),
    abstract_params(model.cfg),
  )


@functools.partial(jax.jit, static_argnums=0)
def jit_forward(model, params, tokens_BL):
  return model.apply({'params': params}, tokens_BL)


@jax.jit
def jit_pick(logits_V, in_prompt_V, counts_V, step, settings):
  uniform_B = sampling.uniforms(settings.seed, step[None], 1)[:, 0]
  logits_BV = sampling.penalise(
    logits_V[None], settings, in_prompt_V[None], counts_V[None]
  )
  bias_BV = jnp.zeros((1, 1))
  return sampling.sample(logits_BV, uniform_B, settings, bias_BV)[0]


def forward(tokens, model=MODEL) -> np.ndarray:
  """float32[len, V] logits of at most a window of tokens, without a cache."""
  size = model.cfg.block_size
  padded = np.zeros((1, size), np.int32)
  padded[0, : len(tokens)] = tokens
  return np.asarray(jit_forward(model, init(model), padded))[0, : len(tokens)]


def first_of_window(n: int, mode: str) -> int:
  stride = {'slide': W // 2, 'exact': 1}[mode]
  return 0 if n <= W else stride * math.ceil((n - W) / stride)


def brute_force(prompt, n: int, mode: str, **kwargs) -> list[int]:
  settings = sampling.settings(1, **kwargs)
  tokens = list(prompt)
  in_prompt = np.isin(np.arange(TINY.vocab_size), prompt)
  for step in range(n):
    if mode == 'stop' and len(tokens) > W:
      break
    first = first_of_window(len(tokens), 'slide' if mode == 'stop' else mode)
    logits_V = forward(tokens[first:])[-1]
    new = np.asarray(tokens[len(prompt) :], np.int64)
    counts = np.bincount(new, minlength=TINY.vocab_size).astype(np.int32)
    tokens.append(
      int(jit_pick(logits_V, in_prompt, counts, np.int32(step), settings))
    )
  return tokens[len(prompt) :]


def generate(prompts, n: int, **kwargs) -> list[list[int]]:
  """All completions; also checks that each row ends exactly once."""
  options = ('window', 'stop_ids', 'block_steps', 'bias_V')
  options = {k: kwargs.pop(k) for k in options if k in kwargs}
  settings = sampling.settings(len(prompts), **kwargs)
  out, ended = [[] for _ in prompts], set()
  for row, new in generation.generate(
    MODEL, init(), prompts, settings, n, **options
  ):
    assert row not in ended
    if new is None:
      ended.add(row)
    else:
      assert new
      out[row] += new
  assert ended == set(range(len(prompts)))
  return out


def prompt_of(length: int, seed: int = 0) -> list[int]:
  rng = np.random.default_rng(100 * seed + length)
  return rng.integers(0, TINY.vocab_size, length).tolist()


def fill(state, slot, context):
  """Prefills a context into a slot, as the engine does."""
  padded = np.zeros((1, W), np.int32)
  padded[0, : len(context)] = context
  row = blocks.jit_prefill(MODEL, init(), padded)
  return blocks.jit_insert(
    state,
    np.int32(slot),
    row,
    np.zeros(TINY.vocab_size, bool),
    np.zeros(TINY.vocab_size, np.float32),
  )


def block(state, slots, rows, steps, settings, k=4, bucket=W):
  return blocks.jit_decode_block(
    MODEL,
    init(),
    state,
    np.int32(slots),
    np.int32([r[-1] for r in rows]),
    np.int32([len(r) - 1 for r in rows]),
    np.int32(steps),
    settings,
    k=k,
    bucket=bucket,
  )


def test_decode_matches_forward_for_unequal_rows():
  """Raw logits of rows of 1 to W tokens, side by side, over several blocks."""
  rows = [prompt_of(n) for n in (1, 2, 5, W)]
  state = blocks.init_state(TINY, 4)
  for slot, row in enumerate(rows):
    state = fill(state, slot, row[:-1])
  settings = sampling.settings(4, **GREEDY)
  for taken in range(0, W, 4):
    state, new_bk, logits_bkV = block(
      state, range(4), rows, [taken] * 4, settings
    )
    for r, row in enumerate(rows):
      room = W + 1 - len(row)  # Later steps are past the window.
      row += np.asarray(new_bk)[r, :room].tolist()
      wanted = forward(row[:-1])[-min(4, room) :] if room > 0 else []
      got = np.asarray(logits_bkV)[r, : max(0, min(4, room))]
      # float32 sums in another order; logits are of magnitude 10.
      np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4)
    for row in rows:
      del row[W:]


@pytest.mark.parametrize(
  'mode, length',
  [
    (mode, length)
    for mode in blocks.WINDOW_MODES
    for length in (1, 2, W - 1, W, W + 1, 3 * W + 2)
    if mode != 'stop' or length <= W  # Longer prompts are an error, see below.
  ],
)
def test_generate_matches_brute_force(mode, length):
  """Far past the window, with prompts up to several windows long."""
  prompt, n = prompt_of(length), 3 * W + 1
  for kwargs in (GREEDY, RANDOM, PENALISED):
    wanted = brute_force(prompt, n, mode, **kwargs)
    assert generate([prompt], n, window=mode, **kwargs) == [wanted]
  if mode == 'stop':
    assert len(wanted) == W + 1 - length


@pytest.mark.parametrize('mode', blocks.WINDOW_MODES)
def test_block_size_changes_no_token(mode):
  """Also with penalties: steps past a window's end are not counted."""
  prompt = prompt_of(4)
  for kwargs in (RANDOM, PENALISED):
    texts = [
      generate([prompt], 29, window=mode, block_steps=k, **kwargs)
      for k in blocks.BLOCK_STEPS
    ]
    assert texts == [texts[0]] * len(texts)


@pytest.mark.parametrize('mode', ['slide', 'exact'])
def test_a_row_does_not_depend_on_its_neighbours(mode):
  prompts = [prompt_of(n) for n in (1, 2 * W, 7)]
  seeds = [5, 6, 5]
  stop_ids = (3, 4)  # Rows end at different times.
  together = generate(
    prompts, 25, seed=seeds, window=mode, stop_ids=stop_ids, temperature=4.0
  )
  alone = [
    generate([p], 25, seed=s, window=mode, stop_ids=stop_ids, temperature=4.0)
    for p, s in zip(prompts, seeds)
  ]
  assert [[row] for row in together] == alone
  assert len({len(row) for row in together}) > 1


def test_a_row_does_not_depend_on_its_slot():
  rows = [prompt_of(n) for n in (3, 8, 5)]
  settings = sampling.settings(3, seed=[1, 2, 3], repetition=1.2)
  tokens = []
  for slots in ([0, 1, 2], [3, 0, 1]):
    state = blocks.init_state(TINY, 4)
    for slot, row in zip(slots, rows):
      state = fill(state, slot, row[:-1])
    state, new_bk, _ = block(state, slots, rows, [0, 4, 9], settings)
    tokens.append(np.asarray(new_bk).tolist())
  assert tokens[0] == tokens[1]


def test_a_reused_slot_forgets_its_last_request():
  """Neither its cache nor its penalties remain."""
  settings = sampling.settings(1, seed=2, frequency=5.0, presence=5.0)
  row = prompt_of(3)
  fresh = fill(blocks.init_state(TINY, 2), 1, row[:-1])
  _, wanted, _ = block(fresh, [1], [row], [0], settings)
  used = fill(blocks.init_state(TINY, 2), 1, prompt_of(W - 1))
  used, *_ = block(used, [1], [prompt_of(W)], [0], settings)
  used = fill(used, 1, row[:-1])
  _, got, _ = block(used, [1], [row], [0], settings)
  assert np.asarray(got).tolist() == np.asarray(wanted).tolist()


def test_decoding_leaves_other_slots_unchanged():
  """One slot decodes while the other waits; a slot may occur twice."""
  rows = [prompt_of(4), prompt_of(6)]
  settings = sampling.settings(2, seed=[1, 1], repetition=1.5)
  state = fill(
    fill(blocks.init_state(TINY, 2), 0, rows[0][:-1]), 1, rows[1][:-1]
  )
  state, first, _ = block(state, [0, 0], [rows[0]] * 2, [0, 0], settings)
  assert np.asarray(first)[0].tolist() == np.asarray(first)[1].tolist()
  _, got, _ = block(state, [1, 1], [rows[1]] * 2, [0, 0], settings)
  assert np.asarray(got)[0].tolist() == brute_force_block(rows[1], settings)


def brute_force_block(prompt, settings):
  tokens, counts = list(prompt), np.zeros(TINY.vocab_size, np.int32)
  none = np.zeros(TINY.vocab_size, bool)
  settings = jax.tree.map(lambda x: x[:1], settings)
  for step in range(4):
    new = int(
      jit_pick(forward(tokens)[-1], none, counts, np.int32(step), settings)
    )
    counts[new] += 1
    tokens.append(new)
  return tokens[len(prompt) :]


def test_a_smaller_max_tokens_gives_a_prefix():
  prompt = prompt_of(5)
  long = generate([prompt], 40, **RANDOM)[0]
  for n in (1, 3, 8, 25):
    assert generate([prompt], n, **RANDOM)[0] == long[:n]


def test_seeds_give_different_texts():
  texts = generate([prompt_of(5)] * 3, 20, seed=[1, 2, 1], temperature=3.0)
  assert texts[0] == texts[2] != texts[1]


@pytest.mark.parametrize('at', [0, 1, 7, 8, 20])
def test_a_stop_token_ends_a_row_and_is_not_yielded(at):
  prompt = prompt_of(2)
  text = generate([prompt], 30, **RANDOM)[0]
  stop = text[at]
  wanted = text[: text.index(stop)]
  assert generate([prompt], 30, stop_ids=(stop,), **RANDOM) == [wanted]


def test_banned_tokens_are_never_generated():
  bias_V = np.zeros(TINY.vocab_size, np.float32)
  bias_V[::2] = -np.inf
  text = generate([prompt_of(3)], 60, bias_V=bias_V, temperature=5.0)[0]
  assert all(t % 2 for t in text)


@pytest.mark.parametrize(
  'prompt, n, window, message',
  [
    ([], 5, 'slide', 'start from BOS'),
    ([0, 19], 5, 'slide', 'token 19 is outside the vocabulary of 19'),
    ([-1], 5, 'slide', 'token -1 is outside'),
    ([0], 0, 'slide', 'max_tokens 0'),
    ([0], 5, 'roll', "'roll' is not known; allowed: slide, exact, stop"),
    ([0] * (W + 1), 5, 'stop', f'{W + 1} tokens.*context of {W}'),
  ],
)
def test_invalid_requests_are_rejected(prompt, n, window, message):
  with pytest.raises(UserError, match=message):
    generate([prompt], n, window=window)


@given(
  n=st.integers(1, 500),
  size=st.integers(1, 100),
  mode=st.sampled_from(blocks.WINDOW_MODES),
)
def test_window_start_is_a_function_of_the_length(n, size, mode):
  """The window never overflows and moves exactly when predicted."""
  stride = blocks.stride_for(mode, size)
  first = blocks.window_start(n, size, stride)
  assert first % stride == 0
  assert 1 <= n - first <= size
  assert n - first == min(n, size) or stride > 1
  steps = blocks.steps_until_slide(n, size, stride)
  assert steps >= 1
  assert blocks.window_start(n + steps - 1, size, stride) == first
  assert blocks.window_start(n + steps, size, stride) > first


@given(length=st.integers(1, 5000), extra=st.integers(0, 5000))
def test_buckets_are_few_and_large_enough(length, extra):
  size = length + extra
  bucket = blocks.bucket_for(length, size)
  assert length <= bucket <= max(32, min(size, 2 * length))
  assert len(blocks.buckets(size)) <= 1 + max(0, math.ceil(math.log2(size)) - 4)


CONFIGS = st.fixed_dictionaries(
  {
    'arch': st.sampled_from(['randy', 'microgpt']),
    'mlp': st.sampled_from(['relu2', 'relu', 'gelu', 'swiglu']),
    'pos': st.sampled_from(['learned', 'rope']),
    'n_kv_head': st.sampled_from([0, 1, 2]),
    'embed_norm': st.booleans(),
    'qk_norm': st.booleans(),
    'exclusive_attention': st.booleans(),
    'final_norm': st.booleans(),
    'tied_embeddings': st.booleans(),
    'logit_softcap': st.sampled_from([0.0, 5.0]),
    'attention': st.sampled_from(['plain', 'blocked']),
    'head_dim': st.sampled_from([0, 6]),
    'mlp_width': st.sampled_from([0, 24]),
    'norm': st.sampled_from(['rms', 'layer']),
    'norm_gain': st.booleans(),
    'norm_eps': st.sampled_from([1e-5, 1e-2]),
    'bias': st.booleans(),
    'param_dtype': st.sampled_from(['float32', 'bfloat16']),
  }
)
# Options that need another one.
ROPES = st.sampled_from(
  [{}, {'rope_base': 50.0}, {'rope_scaling': 'llama3:4,1,4,6'}]
)


def with_needed(options, ropes, qk_gain):
  needed = ropes if options['pos'] == 'rope' else {}
  return options | needed | {'qk_gain': qk_gain and options['qk_norm']}


@hypothesis_settings(max_examples=8, deadline=None, derandomize=True)
@given(options=st.builds(with_needed, CONFIGS, ROPES, st.booleans()))
def test_every_model_option_decodes_like_the_forward_pass(options):
  """Prefills half a window, then feeds the rest token by token."""
  size, half = 8, 4
  cfg = GPTConfig(
    vocab_size=11, n_embd=16, n_head=4, n_layer=1, block_size=size, **options
  )
  model, params = GPT(cfg), init(GPT(cfg))
  tokens_BL = np.random.default_rng(0).integers(0, 11, (2, size), np.int32)

  @jax.jit
  def both(tokens_BL):
    wanted = model.apply({'params': params}, tokens_BL)
    row = blocks.prefill(model, params, tokens_BL[:, :half])
    cache = jax.tree.map(
      lambda old, new: old.at[:, :, :half].set(new),
      init_cache(cfg, 2, size),
      row,
    )

    def step(cache, i):
      logits_BLV, cache = model.apply(
        {'params': params},
        jax.lax.dynamic_slice(tokens_BL, (0, i), (2, 1)),
        positions_BL=jnp.full((2, 1), i),
        cache=cache,
        mask_BLS=(jnp.arange(size) <= i)[None, None],
        write_at=i,
      )
      return cache, logits_BLV[:, 0]

    _, got = jax.lax.scan(step, cache, jnp.arange(half, size))
    return got.transpose(1, 0, 2), wanted[:, half:]

  got, wanted = map(np.asarray, both(tokens_BL))
  # float32 sums in another order, relative to the largest logit.
  size = np.abs(wanted).max()
  np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6 * size)


def test_model_options_reach_decode_block():
  """The same through `generate`, with all options at once."""
  cfg = GPTConfig(
    vocab_size=11,
    n_embd=16,
    n_head=4,
    n_layer=1,
    block_size=8,
    pos='rope',
    n_kv_head=2,
    qk_norm=True,
    mlp='swiglu',
    final_norm=True,
    tied_embeddings=True,
    logit_softcap=5.0,
    embed_norm=True,
  )
  model = GPT(cfg)
  prompt = tokens = [1, 2, 3]
  settings = sampling.settings(1, temperature=0)
  for _, new in generation.generate(
    model, init(model), [prompt], settings, 6, window='stop'
  ):
    tokens = tokens + (new or [])
  wanted = forward(tokens[:-1], model).argmax(-1)[2:]
  assert tokens[3:] == wanted.tolist()


def test_the_bucket_changes_no_token():
  """Columns past the filled part of the cache are never read."""
  rows = [prompt_of(n) for n in (1, 3, 7)]
  settings = sampling.settings(3, seed=[1, 2, 3], temperature=2.0)
  tokens = []
  for bucket in (7, W, W + blocks.SPARE):
    state = blocks.init_state(TINY, 3)
    for slot, row in enumerate(rows):
      state = fill(state, slot, row[:-1])
    _, new_bk, _ = block(
      state, range(3), rows, [0] * 3, settings, bucket=bucket
    )
    tokens.append(np.asarray(new_bk).tolist())
  assert tokens == [tokens[0]] * 3
