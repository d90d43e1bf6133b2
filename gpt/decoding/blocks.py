"""Prefill and decode blocks with a key/value cache.

A row has the tokens `tokens[0:n]`. Its cache holds the window except the last
token; a decode step feeds that token, gets logits and samples the next one. So
a one-token prompt (BOS) needs no prefill, and sampling happens in one place.

Positions count from the start of the window, so a slide invalidates the whole
cache. The start is a pure function of n (`window_start`); when it moves, the
row is prefilled again.

Axis letters besides the model's: b rows of a block, k decode steps.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from gpt.decoding import sampling
from gpt.decoding.sampling import SamplingSettings
from gpt.errors import UserError
from gpt.model import GPT, GPTConfig
from gpt.model.kv_cache import KVCache, init_cache
from gpt.model.params import Params

BLOCK_STEPS = (1, 4, 8, 16)
# Extra cache columns: a block may write past the window's end; nobody reads it.
SPARE = max(BLOCK_STEPS)
WINDOW_MODES = ('slide', 'exact', 'stop')


@struct.dataclass
class DecodeState:
  """Decoding state on the device; B slots, one per row.

  Attributes:
    cache: KVCache of block_size + SPARE columns.
    in_prompt: bool[B, V], tokens of the prompt, for the penalties.
    counts: int32[B, V], tokens of the completion, for the penalties.
    bias: float32[B, V], added to the logits; -inf bans a token.
  """

  cache: KVCache
  in_prompt: jax.Array
  counts: jax.Array
  bias: jax.Array


def init_state(cfg: GPTConfig, slots: int) -> DecodeState:
  """A state of empty slots."""
  shape = (slots, cfg.vocab_size)
  return DecodeState(
    cache=init_cache(cfg, slots, cfg.block_size + SPARE),
    in_prompt=jnp.zeros(shape, bool),
    counts=jnp.zeros(shape, jnp.int32),
    bias=jnp.zeros(shape, jnp.float32),
  )


def buckets(block_size: int) -> list[int]:
  """[32, 64, 128, ..., block_size]: lengths that programs are compiled for."""
  sizes, n = [], 32
  while n < block_size:
    sizes.append(n)
    n *= 2
  return [*sizes, block_size]


def bucket_for(length: int, block_size: int) -> int:
  """The smallest bucket with at least `length` columns."""
  return next(b for b in buckets(block_size) if b >= length)


def window_start(n: int, block_size: int, stride: int) -> int:
  """Index of the window's first token when the row has n tokens.

  0 while n <= block_size, then the smallest multiple of `stride` that leaves at
  most block_size tokens in the window.
  """
  if n <= block_size:
    return 0
  return stride * -(-(n - block_size) // stride)


def steps_until_slide(n: int, block_size: int, stride: int) -> int:
  """Number of tokens to sample before the window moves; at least 1."""
  return window_start(n, block_size, stride) + block_size - n + 1


def stride_for(mode: str, block_size: int) -> int:
  """Tokens the window moves at once: 1 for 'exact', else half a window.

  Raises:
    UserError: an unknown mode.
  """
  if mode not in WINDOW_MODES:
    raise UserError(
      f'window mode {mode!r} is not known; allowed: {", ".join(WINDOW_MODES)}'
    )
  return 1 if mode == 'exact' else max(1, block_size // 2)


def for_decoding(model: GPT) -> GPT:
  """The model, with float32 products where those of its training are mixed.

  So a text does not depend on what decodes it: the compiled kernels have no
  mixed products, and nor have steps of one token.
  """
  if model.cfg.dtype != 'mixed':
    return model
  return GPT(dataclasses.replace(model.cfg, dtype='float32'))


def prefill(model: GPT, params: Params, tokens_BL: jax.Array) -> KVCache:
  """Computes the cache of whole rows.

  Args:
    tokens_BL: int32[B, L], padded on the right to a bucket of L columns.

  Returns:
    KVCache of L columns. Those of the padding are masked in decoding.
  """
  batch, length = tokens_BL.shape
  cache = init_cache(model.cfg, batch, length)
  mask_BLS = np.tril(np.ones((length, length), bool))[None]
  out: Any = model.apply(
    {'params': params}, tokens_BL, cache=cache, mask_BLS=mask_BLS, head=False
  )
  return out[1]


def insert(
  state: DecodeState,
  slot: jax.Array,
  row: KVCache,
  in_prompt_V: jax.Array,
  bias_V: jax.Array,
) -> DecodeState:
  """Starts a request in a slot: cache, prompt tokens, bias, zero counts.

  Args:
    slot: int32[].
    row: KVCache of one row (B = 1), from `prefill`.
    in_prompt_V: bool[V].
    bias_V: float32[V].
  """

  def put(old: jax.Array, new: jax.Array) -> jax.Array:
    start = (slot, *([0] * (old.ndim - 1)))
    return jax.lax.dynamic_update_slice(old, new.astype(old.dtype), start)

  return DecodeState(
    cache=jax.tree.map(put, state.cache, row),
    in_prompt=put(state.in_prompt, in_prompt_V[None]),
    counts=put(state.counts, jnp.zeros_like(in_prompt_V, jnp.int32)[None]),
    bias=put(state.bias, bias_V[None]),
  )


def refill(state: DecodeState, slot: jax.Array, row: KVCache) -> DecodeState:
  """Replaces a slot's cache after a slide; keeps counts, prompt and bias."""
  cache = jax.tree.map(
    lambda old, new: jax.lax.dynamic_update_slice(
      old, new.astype(old.dtype), (slot, 0, 0, 0)
    ),
    state.cache,
    row,
  )
  return dataclasses.replace(state, cache=cache)


def decode_block(
  model: GPT,
  params: Params,
  state: DecodeState,
  slots_b: jax.Array,
  last_b: jax.Array,
  length_b: jax.Array,
  step_b: jax.Array,
  settings: SamplingSettings,
  *,
  k: int,
  bucket: int,
  in_order: bool = False,
  uniform_bk: jax.Array | None = None,
) -> tuple[DecodeState, jax.Array, jax.Array]:
  """Runs k decode steps for b slots in one dispatch.

  The filled part of the cache (`bucket` columns) is read-only in the loop; new
  keys and values go to k fresh columns beside it, written back once at the end.

  Args:
    slots_b: int32[b], distinct slots (a slot may repeat with equal inputs).
    last_b: int32[b], each row's newest token, not yet in the cache.
    length_b: int32[b], tokens in the cache; bucket >= max(length_b).
    step_b: int32[b], completion tokens sampled before this block.
    settings: SamplingSettings of the b rows.
    k: number of steps.
    bucket: columns of the cache to read. The cache's full capacity together
      with `in_order` avoids a copy.
    in_order: row i is in slot i and b is the number of slots: no gather.
    uniform_bk: float32[b, k], the value of `sampling.uniforms` if the caller
      already has it; the program then compiles faster.

  Returns:
    (state, int32[b, k] tokens, float32[b, k, V] raw logits). Steps past the
    end of a row's window are meaningless (and not counted for the penalties):
    the caller takes the first `steps_until_slide`.
  """
  cfg = model.cfg
  rows = slots_b.shape[0]
  column = jnp.arange(bucket, dtype=jnp.int32)[None, None]
  filled_bS = jnp.broadcast_to(
    column < length_b[:, None, None], (rows, 1, bucket)
  )
  fresh_column = jnp.arange(k, dtype=jnp.int32)[None, None]
  if uniform_bk is None:
    uniform_bk = sampling.uniforms(settings.seed, step_b, k)

  def pick(x: jax.Array) -> jax.Array:
    return x if in_order else x[slots_b]

  in_prompt, bias = pick(state.in_prompt), pick(state.bias)
  vocab = jnp.arange(cfg.vocab_size, dtype=jnp.int32)[None]
  filled = jax.tree.map(lambda x: pick(x)[:, :, :bucket], state.cache)

  def step(
    carry: tuple[KVCache, jax.Array, jax.Array],
    xs: tuple[jax.Array, jax.Array],
  ) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    fresh, token_b, counts = carry
    i, uniform_b = xs
    fresh_bS = jnp.broadcast_to(fresh_column <= i, (rows, 1, k))
    position_b = jnp.minimum(length_b + i, cfg.block_size - 1)
    logits_bLV, fresh = model.apply(
      {'params': params},
      token_b[:, None],
      positions_BL=position_b[:, None],
      cache=fresh,
      filled=filled,
      mask_BLS=jnp.concatenate([filled_bS, fresh_bS], axis=-1),
      write_at=i,
    )
    raw_bV = logits_bLV[:, 0]
    logits_bV = sampling.penalise(raw_bV, settings, in_prompt, counts)
    token_b = sampling.sample(logits_bV, uniform_b, settings, bias)
    new_bV = vocab == token_b[:, None]
    new_bV &= (length_b + i < cfg.block_size)[:, None]
    counts = counts + new_bV.astype(jnp.int32)
    return (fresh, token_b, counts), (token_b, raw_bV)

  fresh = init_cache(cfg, rows, k, state.cache.k[0].dtype)
  carry = (fresh, last_b, pick(state.counts))
  xs = (jnp.arange(k, dtype=jnp.int32), uniform_bk.T)
  (fresh, _, counts), (tokens_kb, logits_kbV) = jax.lax.scan(step, carry, xs)

  # Equals length_b, with a data dependency on the last step: otherwise XLA,
  # which unrolls k=1, copies the cache so that it can write before all layers
  # have read.
  at_b = jnp.minimum(length_b, length_b + tokens_kb[-1])

  def write_back(i: jax.Array, cache: KVCache) -> KVCache:
    def put(old: jax.Array, new: jax.Array) -> jax.Array:
      piece = jax.lax.dynamic_slice_in_dim(new, i, 1)
      start = (slots_b[i], 0, at_b[i], 0)
      return jax.lax.dynamic_update_slice(old, piece, start)

    return jax.tree.map(put, cache, fresh)

  state = dataclasses.replace(
    state,
    cache=jax.lax.fori_loop(0, rows, write_back, state.cache),
    counts=state.counts.at[slots_b].set(counts),
  )
  return state, tokens_kb.T, logits_kbV.transpose(1, 0, 2)


jit_prefill = jax.jit(prefill, static_argnums=0)
jit_insert = jax.jit(insert, donate_argnums=0)
jit_refill = jax.jit(refill, donate_argnums=0)
jit_decode_block = jax.jit(
  decode_block,
  static_argnums=0,
  static_argnames=('k', 'bucket', 'in_order'),
  donate_argnums=2,
)
