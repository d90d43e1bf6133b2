"""The GPT: one linen module; each option of GPTConfig is one line of it.

Axis letters, used as suffixes of names and as einsum terms everywhere:
  B batch   L query length   S key/cache length   D model width   H heads
  G key/value heads   K head dimension   F MLP width   V vocabulary   N layers

Architecture `randy`: token + learned position embedding, then N times
  x += drop(Wo attn(rms(x)));  x += drop(W2 relu(W1 rms(x))^2)
and an untied head on the raw residual stream: no biases, no gains, no final
norm. `microgpt`: RMSNorm after the embedding, ReLU instead of its square. With
other options the same module is a GPT-2, a Llama or a Qwen3: see
gpt/formats/architectures.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gpt import sharding
from gpt.model.attention import (
  attend_cached,
  causal_self_attention,
  exclusive,
)
from gpt.model.config import ARCHS, GPTConfig
from gpt.model.dropout import dropout
from gpt.model.kv_cache import KeysValues, KVCache
from gpt.model.mixed_precision import product
from gpt.model.norms import along_last, layer_norm, rms_norm
from gpt.model.rope_frequencies import rope_frequencies
from gpt.native import training

# A block's matrices and the names of their biases.
BIASES = {
  'wq': 'bq',
  'wk': 'bk',
  'wv': 'bv',
  'wo': 'bo',
  'fc1': 'b1',
  'gate': 'bgate',
  'fc2': 'b2',
}

# One layer's (columns that are only read, columns that are written).
LayerCache = tuple[KeysValues | None, KeysValues]
# (mask_BLS, write_at) of GPT.__call__. Any: without a cache the mask is None,
# and unused.
CacheAccess = tuple[Any, jax.Array | int]


def rope(
  x_BLHK: jax.Array, positions_BL: jax.Array, freqs: np.ndarray
) -> jax.Array:
  """Rotary position embedding (Su et al. 2021, arXiv:2104.09864).

  Rotates the pairs (x_i, x_{i + K/2}) by positions * freqs_i, in float32.

  Args:
    freqs: float32[K / 2], from `rope_frequencies`.
  """
  angles = positions_BL.astype(jnp.float32)[:, :, None] * freqs[None, None]
  cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
  x1, x2 = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
  out = jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)
  return out.astype(x_BLHK.dtype)


def weight(
  module: nn.Module,
  name: str,
  init: nn.initializers.Initializer,
  shape: tuple[int, ...],
) -> jax.Array:
  """A parameter of a module, drawn in float32 and stored as param_dtype."""
  dtype = jnp.dtype(module.cfg.param_dtype)
  stored = module.param(name, lambda key: init(key, shape).astype(dtype))
  return sharding.gathered(name, stored)


def norm(module: nn.Module, name: str, x_BLD: jax.Array) -> jax.Array:
  """RMSNorm or LayerNorm, with a gain and a bias if the model has them."""
  cfg, shape = module.cfg, x_BLD.shape[-1:]
  gain = bias = None
  if cfg.norm_gain:
    gain = weight(module, name, nn.initializers.ones, shape)
  if cfg.norm == 'rms':
    return rms_norm(x_BLD, gain, cfg.norm_eps)
  if cfg.norm_gain and cfg.bias:
    bias = weight(module, f'{name}_bias', nn.initializers.zeros, shape)
  return layer_norm(x_BLD, gain, bias, cfg.norm_eps)


class Block(nn.Module):
  """x += drop(attention(norm(x))); x += drop(mlp(norm(x)))."""

  cfg: GPTConfig
  index: int

  @nn.compact
  def __call__(
    self,
    x_BLD: jax.Array,
    positions_BL: jax.Array,
    segments_BL: jax.Array | None,
    layer_cache: LayerCache | None,
    ctx: CacheAccess,
    seeds_Bx2: jax.Array | None,
  ) -> tuple[jax.Array, KeysValues | None]:
    cfg, site = self.cfg, 2 * self.index
    att_BLD, new_cache = self.attention(
      norm(self, 'attn_norm', x_BLD),
      positions_BL,
      segments_BL,
      layer_cache,
      ctx,
    )
    x_BLD = x_BLD + dropout(att_BLD, cfg.dropout, seeds_Bx2, site)
    mlp_BLD = self.mlp(norm(self, 'mlp_norm', x_BLD))
    x_BLD = x_BLD + dropout(mlp_BLD, cfg.dropout, seeds_Bx2, site + 1)
    return sharding.constrain(x_BLD, 'batch', None, None), new_cache

  def attention(
    self,
    x_BLD: jax.Array,
    positions_BL: jax.Array,
    segments_BL: jax.Array | None,
    layer_cache: LayerCache | None,
    ctx: CacheAccess,
  ) -> tuple[jax.Array, KeysValues | None]:
    """Multi-head causal self-attention, within x or to the cache."""
    cfg = self.cfg
    q_BLHK, k_BLHK, v_BLHK = self.qkv(x_BLD, positions_BL)
    written = None
    if layer_cache is None:
      out_BLHK = causal_self_attention(
        q_BLHK,
        k_BLHK,
        v_BLHK,
        segments_BL,
        kernel=cfg.attention,
        operands=cfg.matmul_dtype,
      )
    else:
      filled, fresh = layer_cache
      mask_BLS, write_at = ctx
      new_k, new_v = (
        jax.lax.dynamic_update_slice(
          old, new.transpose(0, 2, 1, 3).astype(old.dtype), (0, 0, write_at, 0)
        )
        for old, new in zip(fresh, (k_BLHK, v_BLHK))
      )
      written = new_k, new_v
      pieces = [written] if filled is None else [filled, written]
      out_BLHK = attend_cached(q_BLHK, pieces, mask_BLS)
    if cfg.exclusive_attention:
      out_BLHK = exclusive(out_BLHK, v_BLHK)
    out_BLE = out_BLHK.reshape(*x_BLD.shape[:2], -1)
    return self.linear(out_BLE, 'wo', cfg.n_embd, out_init(cfg)), written

  def qkv(
    self, x_BLD: jax.Array, positions_BL: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries [B, L, H, K], keys and values [B, L, G, K] of attention."""
    cfg = self.cfg
    H, G, K = cfg.n_head, cfg.kv_heads, cfg.head_dim
    q_BLHK = heads(self.linear(x_BLD, 'wq', H * K), H)
    k_BLHK = heads(self.linear(x_BLD, 'wk', G * K), G)
    v_BLHK = heads(self.linear(x_BLD, 'wv', G * K), G)
    q_BLHK, k_BLHK, v_BLHK = (
      sharding.constrain(x, 'batch', None, 'heads', None)
      for x in (q_BLHK, k_BLHK, v_BLHK)
    )
    if cfg.qk_norm:
      q_gain = k_gain = None
      if cfg.qk_gain:
        q_gain = weight(self, 'q_gain', nn.initializers.ones, (K,))
        k_gain = weight(self, 'k_gain', nn.initializers.ones, (K,))
      q_BLHK = rms_norm(q_BLHK, q_gain, cfg.norm_eps)
      k_BLHK = rms_norm(k_BLHK, k_gain, cfg.norm_eps)
    if cfg.pos == 'rope':
      freqs = rope_frequencies(K, cfg.rope_base, cfg.rope_scaling)
      q_BLHK = rope(q_BLHK, positions_BL, freqs)
      k_BLHK = rope(k_BLHK, positions_BL, freqs)
    return q_BLHK, k_BLHK, v_BLHK

  def mlp(self, x_BLD: jax.Array) -> jax.Array:
    """Two matrices and a pointwise non-linearity, or a gate, between them."""
    cfg = self.cfg
    h_BLF = self.linear(x_BLD, 'fc1', cfg.mlp_width)
    if cfg.mlp == 'swiglu':
      h_BLF = nn.silu(self.linear(x_BLD, 'gate', cfg.mlp_width)) * h_BLF
    elif cfg.mlp == 'gelu':
      h_BLF = nn.gelu(h_BLF, approximate=True)
    else:
      h_BLF = nn.relu(h_BLF)
      h_BLF = h_BLF * h_BLF if cfg.mlp == 'relu2' else h_BLF
    h_BLF = sharding.constrain(h_BLF, 'batch', None, 'mlp')
    return self.linear(h_BLF, 'fc2', cfg.n_embd, out_init(cfg))

  def linear(
    self,
    x: jax.Array,
    name: str,
    width: int,
    init: nn.initializers.Initializer | None = None,
  ) -> jax.Array:
    """x @ w, plus a bias if the model has them: float[B, L, width]."""
    init = init or nn.initializers.normal(self.cfg.init_std)
    w = weight(self, name, init, (x.shape[-1], width))
    out = matmul(x, w, self.cfg)
    if self.cfg.bias:
      b = weight(self, BIASES[name], nn.initializers.zeros, (width,))
      out = out + along_last(b, out)
    return out


class GPT(nn.Module):
  """Tokens to next-token logits."""

  cfg: GPTConfig

  @nn.compact
  def __call__(
    self,
    tokens_BL: jax.Array,
    *,
    positions_BL: jax.Array | None = None,
    segments_BL: jax.Array | None = None,
    seeds_Bx2: jax.Array | None = None,
    cache: KVCache | None = None,
    filled: KVCache | None = None,
    mask_BLS: jax.Array | np.ndarray | None = None,
    write_at: jax.Array | int = 0,
    head: bool = True,
  ) -> jax.Array | tuple[jax.Array, KVCache]:
    """Logits of the token after each position.

    Args:
      tokens_BL: int32[B, L], L <= block_size.
      positions_BL: int32[B, L] in [0, block_size); default 0 .. L-1.
      segments_BL: int32[B, L]; attention stays within equal numbers.
      seeds_Bx2: uint32[B, 2] from `dropout.row_seeds`; None: no dropout.
      cache: keys and values are written to its columns write_at ..
        write_at + L - 1. The caller keeps this int32 scalar in range.
      filled: earlier keys and values, only read.
      mask_BLS: bool[B, L, S], needed with a cache: the columns of `filled` and
        then of `cache` that a query sees.
      head: whether to apply the LM head; else the residual stream is returned.

    Returns:
      float32[B, L, V] logits (or [B, L, D]); with a cache also the new cache.
    """
    cfg = self.cfg
    std = cfg.init_std
    learned = cfg.pos == 'learned'
    shape = cfg.vocab_size, cfg.n_embd
    wte = weight(self, 'wte', nn.initializers.normal(std), shape)
    # Not cast before the lookup: a row's gradient sums over all its tokens, in
    # float32.
    x_BLD = wte[tokens_BL].astype(jnp.float32)
    if learned:
      wpe_std = std * ARCHS[cfg.arch][2]
      shape = cfg.block_size, cfg.n_embd
      wpe = weight(self, 'wpe', nn.initializers.normal(wpe_std), shape)
      length = tokens_BL.shape[1]
      x_BLD += wpe[None, :length] if positions_BL is None else wpe[positions_BL]
    x_BLD = x_BLD.astype(cfg.activation_dtype)
    x_BLD = sharding.constrain(x_BLD, 'batch', None, None)
    if positions_BL is None:
      positions_BL = jnp.arange(tokens_BL.shape[1], dtype=jnp.int32)[None]
    if cfg.embed_norm:
      x_BLD = norm(self, 'embed_norm', x_BLD)

    block = nn.remat(Block) if cfg.remat and cache is None else Block
    new_cache = []
    for i in range(cfg.n_layer):
      layer_cache = None
      if cache is not None:
        earlier = None if filled is None else (filled.k[i], filled.v[i])
        layer_cache = earlier, (cache.k[i], cache.v[i])
      x_BLD, layer_cache = block(cfg, i, name=f'block_{i}')(
        x_BLD,
        positions_BL,
        segments_BL,
        layer_cache,
        (mask_BLS, write_at),
        seeds_Bx2,
      )
      new_cache.append(layer_cache)

    if cfg.final_norm:
      x_BLD = norm(self, 'final_norm', x_BLD)
    lm_head = wte
    if not cfg.tied_embeddings:
      init = nn.initializers.normal(std)
      lm_head = weight(self, 'lm_head', init, wte.shape)
    out = lm_logits(x_BLD, lm_head, cfg) if head else x_BLD
    if cache is None:
      return out
    k, v = zip(*new_cache)
    return out, KVCache(k, v)


def out_init(cfg: GPTConfig) -> nn.initializers.Initializer:
  """Initializer of wo and fc2: N(0, std / sqrt(2N)), or zeros.

  The scale keeps the variance of the residual stream bounded (GPT-2).
  """
  if cfg.zero_init:
    return nn.initializers.zeros
  return nn.initializers.normal(cfg.init_std / np.sqrt(2 * cfg.n_layer))


def matmul(
  x: jax.Array, w: jax.Array, cfg: GPTConfig, transposed: bool = False
) -> jax.Array:
  """x @ w for float[in, out] w, or x @ w.T, in the dtype of x."""
  # The attention kernel for CPUs stands for their layouts. A matrix with an
  # adapter is no array, and needs no gradient that would be slow.
  written_out = cfg.dtype == 'mixed' or (
    cfg.dtype == 'float32' and cfg.attention == 'blocked'
  )
  if written_out and x.shape[1] > 1 and isinstance(w, jax.Array | np.ndarray):
    return product(x, jnp.asarray(w), transposed, cfg.matmul_dtype)
  w = (w.T if transposed else w).astype(x.dtype)
  if x.shape[1] == 1:  # XLA:CPU is slow along an axis of length 1, and
    return (x[:, 0] @ w)[:, None]  # bfloat16 does not pay for few rows.
  return x @ w


def heads(x_BLE: jax.Array, n: int) -> jax.Array:
  """[B, L, n K] -> [B, L, n, K]."""
  return x_BLE.reshape(*x_BLE.shape[:2], n, -1)


def lm_logits(
  x_BLD: jax.Array, lm_head_VD: jax.Array, cfg: GPTConfig
) -> jax.Array:
  """float32[B, L, V] logits of the residual stream, soft-capped if set."""
  logits_BLV = matmul(x_BLD, lm_head_VD, cfg, transposed=True)
  logits_BLV = logits_BLV.astype(jnp.float32)
  logits_BLV = sharding.constrain(logits_BLV, 'batch', None, 'vocab')
  if cfg.logit_softcap:
    logits_BLV = cfg.logit_softcap * jnp.tanh(logits_BLV / cfg.logit_softcap)
  return logits_BLV


def abstract_params(cfg: GPTConfig) -> dict[str, Any]:
  """The parameter tree as ShapeDtypeStructs: no memory, no device."""
  # All blocks are alike: tracing one takes the same time for any depth.
  model = GPT(dataclasses.replace(cfg, n_layer=1))
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  key = jax.eval_shape(lambda: jax.random.key(0))
  with training.reference():
    tree = jax.eval_shape(model.init, key, tokens)['params']
  block = tree.pop('block_0')
  tree |= {f'block_{i}': dict(block) for i in range(cfg.n_layer)}
  return dict(sorted(tree.items()))  # In JAX's order.


def num_params(cfg: GPTConfig) -> int:
  """N = 12 L D^2 + T D + 2 V D for `randy` and `microgpt`."""
  return sum(x.size for x in jax.tree.leaves(abstract_params(cfg)))
