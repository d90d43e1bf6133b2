"""Prefill, decode blocks, and generation with a key/value cache.

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

from gpt import sampling
from gpt.cache import KVCache, init_cache
from gpt.errors import UserError
from gpt.tokenizer import StreamDecoder

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
  model, params, state, slots_b, last_b, length_b, step_b, s, *, k, bucket,
  in_order=False, uniform_bk=None,
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


def generate(
  model,
  params,
  prompts,
  s: sampling.SamplingParams,
  max_tokens: int,
  *,
  bias_V=None,
  stop_ids=(),
  window: str = 'slide',
  block_steps: int = 8,
  growing: bool = False,
  devices=None,
):
  """Completions of token prompts, as they come.

  One program decodes all of it (two with window='exact'), because compiling
  another takes longer than what smaller ones would save.

  Args:
    prompts: list of B int sequences, none of them empty (BOS stands first).
    s: SamplingParams with B rows.
    max_tokens: most tokens to sample for each row.
    bias_V: float32[V] added to the logits of all rows, or None.
    stop_ids: a row ends with the first of these; it is not yielded.
    window: 'slide', 'exact' or 'stop' (end where the window would move).
    block_steps: tokens a dispatch, one of BLOCK_STEPS; the text is the same.
    growing: compile a program for every bucket and read no more of the cache
      than is filled: for generations so long that it pays.
    devices: the rows are shared out over these; default: the first CPU
      devices, one for each row, or the one accelerator.

  Yields:
    (row, list of new tokens), then (row, None) once a row has ended.

  Raises:
    UserError: an argument that makes no sense; a prompt longer than the window
      with window='stop'.
  """
  cfg = model.cfg
  stride = stride_for(window, cfg.block_size)
  tokens = [list(map(int, p)) for p in prompts]
  check_request(cfg, tokens, max_tokens, window)
  rows = len(tokens)
  if bias_V is None:
    bias_V = np.zeros(cfg.vocab_size, np.float32)
  longest = min(max(map(len, tokens)) + max_tokens - 1, cfg.block_size)
  start = [-1] * rows
  sampled = [0] * rows
  groups = [
    _Group(model, jax.device_put(params, device), members, device)
    for members, device in _share_out(rows, devices)
  ]
  while any(group.active for group in groups):
    running = []
    for group in groups:
      active = list(group.active)
      if not active:
        continue
      for r in active:
        first = window_start(len(tokens[r]), cfg.block_size, stride)
        if first != start[r]:
          group.fill(r, tokens[r], first, start[r] < 0, longest, bias_V)
          start[r] = first
      until_slide = [
        steps_until_slide(len(tokens[r]), cfg.block_size, stride)
        for r in active
      ]
      # Where the window moves with every token, more than one would be noise.
      moving = window == 'exact' and max(until_slide) == 1
      length = {r: len(tokens[r]) - 1 - start[r] for r in active}
      filled = max(1, *length.values()) if growing else longest
      new_bk = group.decode(
        tokens, length, sampled, s,
        k=1 if moving or max_tokens == 1 else block_steps,
        bucket=bucket_for(filled, cfg.block_size),
      )
      running.append((group, active, until_slide, new_bk))
    for group, active, until_slide, new_bk in running:
      new_bk = np.asarray(new_bk)
      for i, r in enumerate(active):
        room = min(until_slide[i], max_tokens - sampled[r])
        new = new_bk[i, :room].tolist()
        stop = next((j for j, t in enumerate(new) if t in stop_ids), None)
        taken = new if stop is None else new[:stop]
        tokens[r] += taken
        sampled[r] += len(taken)
        if taken:
          yield r, taken
        full = window == 'stop' and len(tokens[r]) > cfg.block_size
        if stop is not None or full or sampled[r] >= max_tokens:
          group.active.remove(r)
          yield r, None


def _share_out(rows: int, devices):
  """[(rows, device)]: consecutive rows for each device."""
  if devices is None:
    devices = jax.local_devices()
    devices = devices if devices[0].platform == 'cpu' else devices[:1]
  share = -(-rows // min(rows, len(devices)))
  return [
    (list(range(i, min(i + share, rows))), device)
    for i, device in zip(range(0, rows, share), devices)
  ]


class _Group:
  """The rows that one device decodes. `active` shrinks, shapes never do."""

  def __init__(self, model, params, members, device):
    self._model, self._params, self._device = model, params, device
    self._first, self._slots = members[0], len(members)
    self._state = jax.device_put(init_state(model.cfg, len(members)), device)
    self.active = members

  def fill(self, row, tokens, first, fresh, longest, bias_V) -> None:
    """Prefills tokens[first:-1] into the row's slot."""
    cfg = self._model.cfg
    context = tokens[first:-1]
    length = bucket_for(longest, cfg.block_size)
    if context:
      padded = np.zeros((1, length), np.int32)
      padded[0, : len(context)] = context
      cache = jit_prefill(
        self._model, self._params, jax.device_put(padded, self._device)
      )
    else:
      cache = jax.device_put(init_cache(cfg, 1, length), self._device)
    slot = np.int32(row - self._first)
    if fresh:
      in_prompt_V = np.zeros(cfg.vocab_size, bool)
      in_prompt_V[tokens] = True
      self._state = jit_insert(self._state, slot, cache, in_prompt_V, bias_V)
    else:
      self._state = jit_refill(self._state, slot, cache)

  def decode(self, tokens, length, sampled, s, *, k, bucket):
    """Starts a block; returns its tokens int32[slots, k], to be waited for."""
    # Rows that have ended keep their place with another row's numbers.
    idle = self._slots - len(self.active)
    pick = np.array(self.active + self.active[:1] * idle, np.int32)
    self._state, new_bk, _ = jit_decode_block(
      self._model, self._params, self._state, pick - self._first,
      np.array([tokens[r][-1] for r in pick], np.int32),
      np.array([length[r] for r in pick], np.int32),
      np.array([sampled[r] for r in pick], np.int32),
      jax.tree.map(lambda x: x[pick], s),
      k=k, bucket=bucket,
    )
    return new_bk


def check_request(cfg, prompts, max_tokens: int, window: str) -> None:
  """Raises UserError for what `generate` would refuse."""
  stride_for(window, cfg.block_size)
  if max_tokens < 1:
    raise UserError(f'max_tokens {max_tokens} must be at least 1')
  for tokens in prompts:
    if not tokens:
      raise UserError('an empty prompt: start from BOS')
    wrong = [t for t in tokens if not 0 <= t < cfg.vocab_size]
    if wrong:
      raise UserError(
        f'token {wrong[0]} is outside the vocabulary of {cfg.vocab_size}'
      )
    if window == 'stop' and len(tokens) > cfg.block_size:
      raise UserError(
        f'the prompt has {len(tokens)} tokens, but with window=stop no more '
        f'than the context of {cfg.block_size} fit; shorten it or use '
        'window=slide'
      )


def prompt_tokens(tokenizer, prompt: str) -> list[int]:
  """Token ids of a prompt; an empty one starts from BOS."""
  return tokenizer.encode(prompt).tolist() or [tokenizer.bos_id]


def ban_bias(tokenizer) -> np.ndarray:
  """float32[V]: -inf for what must never be sampled, else 0."""
  bias_V = np.zeros(tokenizer.vocab_size, np.float32)
  bias_V[list(tokenizer.unsampleable_ids)] = -np.inf
  return bias_V


def complete(
  model, params, tokenizer, prompt, s, max_tokens, *, window='slide'
):
  """Pieces of text that continue one prompt; never half a character."""
  text = StreamDecoder(tokenizer)
  for _, new in generate(
    model, params, [prompt_tokens(tokenizer, prompt)], s, max_tokens,
    bias_V=ban_bias(tokenizer), stop_ids=(tokenizer.eos_id,), window=window,
  ):
    piece = text.flush() if new is None else ''.join(map(text.feed, new))
    if piece:
      yield piece
