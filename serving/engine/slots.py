"""What the compiled programs do to one slot, or for one prompt."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt.decoding import blocks
from gpt.model import GPT
from gpt.model.kv_cache import KVCache, init_cache
from gpt.model.params import Params
from serving.engine.sampling import MAX_TOP_LOGPROBS


def admit(
  model: GPT,
  params: Params,
  state: blocks.DecodeState,
  slot: Any,
  tokens_1L: Any,
  in_prompt_V: Any,
  counts_V: Any,
  bias_V: Any,
) -> blocks.DecodeState:
  """Prefills a slot when a request starts and after each slide.

  Args:
    slot: int32 scalar.
    tokens_1L: int32[1, L], right-padded to a bucket.
    in_prompt_V, counts_V, bias_V: bool, int32, float32[V], for the penalties.

  Returns:
    The new DecodeState.
  """
  row = blocks.prefill(model, params, tokens_1L)
  state = blocks.insert(state, slot, row, in_prompt_V, bias_V)
  counts = jax.lax.dynamic_update_slice(state.counts, counts_V[None], (slot, 0))
  return dataclasses.replace(state, counts=counts)


def extend(
  model: GPT,
  params: Params,
  state: blocks.DecodeState,
  slot: Any,
  first: Any,
  tokens_1L: Any,
) -> blocks.DecodeState:
  """Fills columns of a slot from `first` on; those before it are filled.

  Args:
    slot, first: int32 scalars.
    tokens_1L: int32[1, L], right-padded; their columns may pass the window's
      end, and those are not written.
  """
  cfg, length, capacity = model.cfg, tokens_1L.shape[1], state.cache.capacity
  filled = jax.tree.map(
    lambda x: jax.lax.dynamic_slice_in_dim(x, slot, 1), state.cache
  )
  earlier_1LS = jnp.broadcast_to(
    jnp.arange(capacity) < first, (1, length, capacity)
  )
  among_1LL = np.tril(np.ones((length, length), bool))[None]
  at_L = first + jnp.arange(length, dtype=jnp.int32)
  out: Any = model.apply(
    {'params': params},
    tokens_1L,
    positions_BL=jnp.minimum(at_L, cfg.block_size - 1)[None],
    cache=init_cache(cfg, 1, length, state.cache.k[0].dtype),
    filled=filled,
    mask_BLS=jnp.concatenate([earlier_1LS, among_1LL], axis=-1),
    head=False,
  )
  start = jnp.minimum(first, capacity - length)
  shift = first - start
  new_L1 = (jnp.arange(length) >= shift)[:, None]

  def put(old: jax.Array, new: jax.Array) -> jax.Array:
    at = (slot, 0, start, 0)
    there = jax.lax.dynamic_slice(old, at, new.shape)
    moved = jnp.roll(new, shift, axis=2)
    return jax.lax.dynamic_update_slice(
      old, jnp.where(new_L1, moved, there), at
    )

  return dataclasses.replace(
    state, cache=jax.tree.map(put, state.cache, out[1])
  )


def seat(
  state: blocks.DecodeState,
  slot: Any,
  in_prompt_V: Any,
  counts_V: Any,
  bias_V: Any,
) -> blocks.DecodeState:
  """Sets what a slot has beside its cache, for penalties and bias."""

  def put(old: jax.Array, new: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice(old, new[None], (slot, 0))

  return dataclasses.replace(
    state,
    in_prompt=put(state.in_prompt, in_prompt_V),
    counts=put(state.counts, counts_V),
    bias=put(state.bias, bias_V),
  )


def read(state: blocks.DecodeState, slot: Any, first: Any, *, n: int) -> Any:
  """float[2N, G, n, K]: keys, then values of n columns of a slot."""
  cache = state.cache
  G, _, K = cache.k[0].shape[1:]
  return jnp.stack(
    [
      jax.lax.dynamic_slice(x, (slot, 0, first, 0), (1, G, n, K))[0]
      for x in (*cache.k, *cache.v)
    ]
  )


def write(
  state: blocks.DecodeState, slot: Any, first: Any, columns: Any
) -> blocks.DecodeState:
  """Puts columns, as `read` returns them, into a slot."""
  half = len(columns) // 2
  new = KVCache(tuple(columns[:half]), tuple(columns[half:]))

  def put(old: jax.Array, new: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice(old, new[None], (slot, 0, first, 0))

  return dataclasses.replace(state, cache=jax.tree.map(put, state.cache, new))


def hidden(model: GPT, params: Params, tokens_1L: Any, length: Any) -> Any:
  """float32[D]: the mean of the last hidden states of int32[1, L] tokens.

  Only the first `length` count. Scaled to an L2 norm of 1.
  """
  state_1LD: Any = model.apply({'params': params}, tokens_1L, head=False)
  inside_L1 = jnp.arange(tokens_1L.shape[1])[:, None] < length
  state_LD = jnp.where(inside_L1, state_1LD[0].astype(jnp.float32), 0.0)
  mean_D = jnp.sum(state_LD, axis=0) / length
  return mean_D / jnp.maximum(jnp.linalg.norm(mean_D), 1e-12)


def score(
  model: GPT, params: Params, tokens_1L: Any, targets_L: Any
) -> tuple[Any, Any, Any]:
  """Log-probabilities of the given next tokens and of the most probable ones.

  Args:
    tokens_1L: int32[1, L] inputs. targets_L: int32[L].

  Returns:
    (float32[L] of the targets, float32[L, C] the largest, int32[L, C] their
    ids), with C = MAX_TOP_LOGPROBS or V, whichever is smaller.
  """
  logits_1LV: Any = model.apply({'params': params}, tokens_1L)
  return ranked(logits_1LV[0], targets_L)


def ranked(logits_LV: Any, targets_L: Any) -> tuple[Any, Any, Any]:
  """The result of `score` from float32[L, V] logits."""
  logp_LV = jax.nn.log_softmax(logits_LV)
  vocab = jnp.arange(logits_LV.shape[-1], dtype=jnp.int32)[None]
  hit_LV = vocab == targets_L[:, None]
  target_L = jnp.sum(jnp.where(hit_LV, logp_LV, 0.0), axis=-1)
  top = min(MAX_TOP_LOGPROBS, logits_LV.shape[-1])
  best_LC, ids_LC = jax.lax.top_k(logp_LV, top)
  return target_L, best_LC, ids_LC.astype(jnp.int32)


def pad(tokens: np.ndarray, length: int) -> np.ndarray:
  """int32[1, length]: tokens, then zeros."""
  padded = np.zeros((1, length), np.int32)
  padded[0, : len(tokens)] = tokens
  return padded
