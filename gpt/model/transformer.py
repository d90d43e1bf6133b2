"""The GPT: one linen module; each option of GPTConfig is one line of it.

Axis letters, used as suffixes of names and as einsum terms everywhere:
  B batch   L query length   S key/cache length   D model width   H heads
  G key/value heads   K head dimension   F MLP width   V vocabulary   N layers

Architecture `randy`: token + learned position embedding, then N times
  x += drop(Wo attn(rms(x)));  x += drop(W2 relu(W1 rms(x))^2)
and an untied head on the raw residual stream: no biases, no gains, no final
norm. `microgpt`: RMSNorm after the embedding, ReLU instead of its square.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gpt.model.attention import attend_cached, causal_self_attention
from gpt.model.config import ARCHS, GPTConfig
from gpt.model.dropout import dropout
from gpt.model.kv_cache import KeysValues, KVCache
from gpt.model.mixed_precision import mixed_product

RMS_EPS = 1e-5
ROPE_BASE = 10_000.0

# One layer's (columns that are only read, columns that are written).
LayerCache = tuple[KeysValues | None, KeysValues]
# (mask_BLS, write_at) of GPT.__call__. Any: without a cache the mask is None,
# and unused.
CacheAccess = tuple[Any, jax.Array | int]


def rms_norm(x: jax.Array) -> jax.Array:
  """x / sqrt(mean(x^2) + eps) over the last axis, in float32, without gain."""
  x32 = x.astype(jnp.float32)
  scale = jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + RMS_EPS)
  return (x32 * scale).astype(x.dtype)


def rope(x_BLHK: jax.Array, positions_BL: jax.Array) -> jax.Array:
  """Rotary position embedding (Su et al. 2021, arXiv:2104.09864).

  Rotates the pairs (x_i, x_{i + K/2}) by positions * 10000^(-2i / K), in
  float32.
  """
  half = x_BLHK.shape[-1] // 2
  freqs = ROPE_BASE ** (-np.arange(half, dtype=np.float32) / half)
  angles = positions_BL.astype(jnp.float32)[:, :, None] * freqs[None, None]
  cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
  x1, x2 = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
  out = jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)
  return out.astype(x_BLHK.dtype)


class Block(nn.Module):
  """x += drop(attention(rms(x))); x += drop(mlp(rms(x)))."""

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
      rms_norm(x_BLD), positions_BL, segments_BL, layer_cache, ctx
    )
    x_BLD = x_BLD + dropout(att_BLD, cfg.dropout, seeds_Bx2, site)
    mlp_BLD = self.mlp(rms_norm(x_BLD))
    x_BLD = x_BLD + dropout(mlp_BLD, cfg.dropout, seeds_Bx2, site + 1)
    return x_BLD, new_cache

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
    wo = self.param('wo', out_init(cfg), (cfg.n_embd, cfg.n_embd))

    written = None
    if layer_cache is None:
      q_BLHK, k_BLHK, v_BLHK = (
        x.astype(cfg.matmul_dtype) for x in (q_BLHK, k_BLHK, v_BLHK)
      )
      out_BLHK = causal_self_attention(
        q_BLHK, k_BLHK, v_BLHK, segments_BL, kernel=cfg.attention
      ).astype(x_BLD.dtype)
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
    return matmul(out_BLHK.reshape(x_BLD.shape), wo, cfg), written

  def qkv(
    self, x_BLD: jax.Array, positions_BL: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries [B, L, H, K], keys and values [B, L, G, K] of attention."""
    cfg = self.cfg
    D, H, G, K = cfg.n_embd, cfg.n_head, cfg.kv_heads, cfg.head_dim
    init = nn.initializers.normal(cfg.init_std)
    q_BLHK = heads(matmul(x_BLD, self.param('wq', init, (D, H * K)), cfg), H)
    k_BLHK = heads(matmul(x_BLD, self.param('wk', init, (D, G * K)), cfg), G)
    v_BLHK = heads(matmul(x_BLD, self.param('wv', init, (D, G * K)), cfg), G)
    if cfg.qk_norm:
      q_BLHK, k_BLHK = rms_norm(q_BLHK), rms_norm(k_BLHK)
    if cfg.pos == 'rope':
      q_BLHK, k_BLHK = rope(q_BLHK, positions_BL), rope(k_BLHK, positions_BL)
    return q_BLHK, k_BLHK, v_BLHK

  def mlp(self, x_BLD: jax.Array) -> jax.Array:
    """Two matrices with 4x expansion and a pointwise non-linearity between."""
    cfg = self.cfg
    D, F = cfg.n_embd, 4 * cfg.n_embd
    init = nn.initializers.normal(cfg.init_std)
    h_BLF = matmul(x_BLD, self.param('fc1', init, (D, F)), cfg)
    if cfg.mlp == 'swiglu':
      gate_BLF = matmul(x_BLD, self.param('gate', init, (D, F)), cfg)
      h_BLF = nn.silu(gate_BLF) * h_BLF
    elif cfg.mlp == 'gelu':
      h_BLF = nn.gelu(h_BLF, approximate=True)
    else:
      h_BLF = nn.relu(h_BLF)
      h_BLF = h_BLF * h_BLF if cfg.mlp == 'relu2' else h_BLF
    return matmul(h_BLF, self.param('fc2', out_init(cfg), (F, D)), cfg)


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
    wte = self.param(
      'wte', nn.initializers.normal(std), (cfg.vocab_size, cfg.n_embd)
    )
    # Not cast before the lookup: a row's gradient sums over all its tokens, in
    # float32.
    x_BLD = wte[tokens_BL]
    if learned:
      wpe_std = std * ARCHS[cfg.arch][2]
      wpe = self.param(
        'wpe', nn.initializers.normal(wpe_std), (cfg.block_size, cfg.n_embd)
      )
      length = tokens_BL.shape[1]
      x_BLD += wpe[None, :length] if positions_BL is None else wpe[positions_BL]
    x_BLD = x_BLD.astype(cfg.activation_dtype)
    if positions_BL is None:
      positions_BL = jnp.arange(tokens_BL.shape[1], dtype=jnp.int32)[None]
    if cfg.embed_norm:
      x_BLD = rms_norm(x_BLD)

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
      x_BLD = rms_norm(x_BLD)
    lm_head = (
      wte
      if cfg.tied_embeddings
      else self.param('lm_head', nn.initializers.normal(std), wte.shape)
    )
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
  """x @ w for float32[in, out] w, or x @ w.T, in the dtype of x."""
  if cfg.dtype == 'mixed' and x.shape[1] > 1:
    return mixed_product(x, w, transposed)
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
  if cfg.logit_softcap:
    logits_BLV = cfg.logit_softcap * jnp.tanh(logits_BLV / cfg.logit_softcap)
  return logits_BLV


def abstract_params(cfg: GPTConfig) -> dict[str, Any]:
  """The parameter tree as ShapeDtypeStructs: no memory, no device."""
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  key = jax.eval_shape(lambda: jax.random.key(0))
  return jax.eval_shape(GPT(cfg).init, key, tokens)['params']


def num_params(cfg: GPTConfig) -> int:
  """N = 12 L D^2 + T D + 2 V D for `randy` and `microgpt`."""
  return sum(x.size for x in jax.tree.leaves(abstract_params(cfg)))
