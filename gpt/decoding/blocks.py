"""Prefill and decode blocks with a key/value cache.

A row's tokens so far are `tokens[0:n]`. The cache holds all of its window but
the last token; a decode step feeds that one, gets logits and samples the next.
So prompts of one token (BOS) need no prefill, and sampling stands in one place.

Learned positions are absolute: nothing in the cache survives a slide. Where
the window starts is a pure function of n (`window_start`); when it moves, the
row is prefilled anew.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from gpt.decoding import sampling
from gpt.errors import UserError
from gpt.model.kv_cache import KVCache, init_cache

BLOCK_STEPS = (1, 4, 8, 16)
# Spare columns, so that a block may write past the window's end unread.
SPARE = max(BLOCK_STEPS)
WINDOW_MODES = ('slide', 'exact', 'stop')


@struct.dataclass
class DecodeState:
  """What decoding keeps on the device, one entry a slot.

  Attributes:
    cache: KVCache of block_size + SPARE columns.
    in_prompt: bool[B, V]; counts: int32[B, V]; both for the penalties.
    bias: float32[B, V], added to the logits; -inf bans a token.
  """

  cache: Any
  in_prompt: Any
  counts: Any
  bias: Any


def init_state(cfg, slots: int) -> DecodeState:
  """An empty state."""
  shape = (slots, cfg.vocab_size)
  return DecodeState(
    cache=init_cache(cfg, slots, cfg.block_size + SPARE),
    in_prompt=jnp.zeros(shape, bool),
    counts=jnp.zeros(shape, jnp.int32),
    bias=jnp.zeros(shape, jnp.float32),
  )


def buckets(block_size: int) -> list[int]:
  """32, 64, 128, ... block_size: the lengths programs are compiled for."""
  sizes, n = [], 32
  while n < block_size:
    sizes.append(n)
    n *= 2
  return [*sizes, block_size]


def bucket_for(length: int, block_size: int) -> int:
  """The smallest bucket of at least `length` columns."""
  return next(b for b in buckets(block_size) if b >= length)


def window_start(n: int, block_size: int, stride: int) -> int:
  """First token of the window when n tokens exist: 0 until they overflow."""
  if n <= block_size:
    return 0
  return stride * -(-(n - block_size) // stride)


def steps_until_slide(n: int, block_size: int, stride: int) -> int:
  """How many tokens can be sampled before the window moves; at least 1."""
  return window_start(n, block_size, stride) + block_size - n + 1


def stride_for(mode: str, block_size: int) -> int:
  """How far the window moves at once: half for 'slide', 1 for 'exact'."""
  if mode not in WINDOW_MODES:
    raise UserError(
      f'window mode {mode!r} is not known; allowed: {", ".join(WINDOW_MODES)}'
    )
  return 1 if mode == 'exact' else max(1, block_size // 2)


def prefill(model, params, tokens_BL) -> KVCache:
  """Keys and values of whole (right-padded) rows; L is a bucket.

  Columns past a row's own length hold padding: decoding masks them.
  """
  batch, length = tokens_BL.shape
  cache = init_cache(model.cfg, batch, length)
  mask_BLS = np.tril(np.ones((length, length), bool))[None]
  _, cache = model.apply(
    {'params': params}, tokens_BL, cache=cache, mask_BLS=mask_BLS, head=False
  )
  return cache


def insert(state: DecodeState, slot, row: KVCache, in_prompt_V, bias_V):
  """Puts one prefilled row (B=1) into a slot and forgets what was there."""

  def put(old, new):
    start = (slot, *([0] * (old.ndim - 1)))
    return jax.lax.dynamic_update_slice(old, new.astype(old.dtype), start)

  return DecodeState(
    cache=jax.tree.map(put, state.cache, row),
    in_prompt=put(state.in_prompt, in_prompt_V[None]),
    counts=put(state.counts, jnp.zeros_like(in_prompt_V, jnp.int32)[None]),
    bias=put(state.bias, bias_V[None]),
  )


def refill(state: DecodeState, slot, row: KVCache) -> DecodeState:
  """Replaces a slot's keys and values after a slide; penalties go on."""
  cache = jax.tree.map(
    lambda old, new: jax.lax.dynamic_update_slice(
      old, new.astype(old.dtype), (slot, 0, 0, 0)
    ),
    state.cache,
    row,
  )
  return state.replace(cache=cache)


def decode_block(
  model,
  params,
  state,
  slots_b,
  last_b,
  length_b,
  step_b,
  s,
  *,
  k,
  bucket,
  in_order=False,
  uniform_bk=None,
):
  """k decode steps for b slots in one dispatch.

  The filled part of the cache (`bucket` columns) is read-only inside; new keys
  and values go to k columns beside it and are written back once at the end.

  Args:
    state: DecodeState of all slots.
    slots_b: int32[b], distinct slots (a scratch slot may repeat).
    last_b: int32[b], each row's newest token, not in the cache yet.
    length_b: int32[b], tokens in the cache; bucket >= max(length_b).
    step_b: int32[b], completion tokens sampled before this block.
    s: SamplingParams for the b rows.
    k: how many steps.
    bucket: columns of the cache to read; with `in_order` all of them are read
      without a copy if it is the cache's capacity.
    in_order: row i is slot i, for all slots: nothing has to be gathered.
    uniform_bk: float32[b, k] of `sampling.uniforms`, where it is known already:
      then nothing here draws it, and programs compile faster.

  Returns:
    (state, tokens int32[b, k], logits float32[b, k, V] raw). What a row gets
    past its window's end is noise, which the penalties do not count: the
    caller takes `steps_until_slide`.
  """
  cfg = model.cfg
  rows = slots_b.shape[0]
  column = jnp.arange(bucket, dtype=jnp.int32)[None, None]
  filled_bS = jnp.broadcast_to(
    column < length_b[:, None, None], (rows, 1, bucket)
  )
  fresh_column = jnp.arange(k, dtype=jnp.int32)[None, None]
  if uniform_bk is None:
    uniform_bk = sampling.uniforms(s.seed, step_b, k)

  def pick(x):
    return x if in_order else x[slots_b]

  in_prompt, bias = pick(state.in_prompt), pick(state.bias)
  vocab = jnp.arange(cfg.vocab_size, dtype=jnp.int32)[None]
  filled = jax.tree.map(lambda x: pick(x)[:, :, :bucket], state.cache)

  def step(carry, xs):
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
    logits_bV = sampling.penalise(raw_bV, s, in_prompt, counts)
    token_b = sampling.sample(logits_bV, uniform_b, s, bias)
    new_bV = vocab == token_b[:, None]
    new_bV &= (length_b + i < cfg.block_size)[:, None]
    counts = counts + new_bV.astype(jnp.int32)
    return (fresh, token_b, counts), (token_b, raw_bV)

  fresh = init_cache(cfg, rows, k, state.cache.k[0].dtype)
  carry = (fresh, last_b, pick(state.counts))
  xs = (jnp.arange(k, dtype=jnp.int32), uniform_bk.T)
  (fresh, _, counts), (tokens_kb, logits_kbV) = jax.lax.scan(step, carry, xs)

  # The same as length_b, but known only once all layers have read the cache:
  # else XLA, which unrolls k=1, copies the cache to write it meanwhile.
  at_b = jnp.minimum(length_b, length_b + tokens_kb[-1])

  def write_back(i, cache):
    def put(old, new):
      piece = jax.lax.dynamic_slice_in_dim(new, i, 1)
      start = (slots_b[i], 0, at_b[i], 0)
      return jax.lax.dynamic_update_slice(old, piece, start)

    return jax.tree.map(put, cache, fresh)

  state = state.replace(
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
