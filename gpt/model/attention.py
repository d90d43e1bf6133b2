"""Attention: one function, several kernels, chosen once by `resolve_kernel`.

`plain` is the formula. `blocked` and `cudnn` compute the same function faster;
`blocked` is tested against `plain` in value and gradient. On a CPU it is a
compiled kernel (gpt/native/training.py), or, without one, what is here.
`attend_cached` is the attention of decoding.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from gpt.errors import UserError
from gpt.model.mixed_precision import einsum_f32, row_major
from gpt.native import training

KERNELS = ('plain', 'blocked', 'cudnn')
# Finite: a fully masked row gives numbers instead of NaN.
MASKED = -1e9
# Added to the square of a value in `exclusive`: one of zeros changes nothing.
OWN_VALUE_EPS = 1e-6


def resolve_kernel(
  name: str, backend: str, dtype: str = 'float32', head_dim: int = 0
) -> str:
  """Resolves `config.model.attention` to one of KERNELS.

  'auto' is 'blocked' on a CPU, 'cudnn' on a GPU that supports these operands,
  and 'plain' elsewhere.

  Args:
    backend: a value of gpt.devices.backend_name.
    dtype: dtype of queries, keys and values.
    head_dim: K.

  Raises:
    UserError: an unknown name; 'cudnn' where it does not work.
  """
  fits = dtype == 'bfloat16' and head_dim % 8 == 0 and head_dim <= 128
  if name == 'auto':
    if backend == 'cpu':
      return 'blocked'
    return 'cudnn' if backend == 'cuda' and fits else 'plain'
  if name == 'cudnn' and 'cuda' in backend and not (fits and backend == 'cuda'):
    raise UserError(
      'model.attention cudnn needs a GPU of compute capability 8.0, bfloat16 '
      'and a head dimension that is a multiple of 8, at most 128; got '
      f'{backend}, {dtype} and {head_dim}: set --config.model.attention=auto'
    )
  if name not in KERNELS:
    raise UserError(
      f'model.attention {name!r} is not known; allowed: auto, '
      f'{", ".join(KERNELS)}'
    )
  return name


def causal_mask(length: int) -> np.ndarray:
  """bool[L, L]: query l attends to keys s <= l."""
  return np.tril(np.ones((length, length), bool))


def attend(
  q_BLHK: jax.Array,
  k_BSGK: jax.Array,
  v_BSGK: jax.Array,
  mask_BLS: jax.Array | np.ndarray,
) -> jax.Array:
  """softmax(q k^T / sqrt(K)) v over the keys where the mask is true.

  Args:
    q_BLHK: float[B, L, H, K].
    k_BSGK, v_BSGK: float[B, S, G, K]; each head serves H/G query heads
      (grouped-query attention, Ainslie et al. 2023).
    mask_BLS: bool, broadcastable to [B, L, S].

  Returns:
    float[B, L, H, K] in the dtype of q. The softmax is in float32.
  """
  k_BSHK, v_BSHK = repeat_kv(q_BLHK, k_BSGK), repeat_kv(q_BLHK, v_BSGK)
  scores_BHLS = einsum_f32('BLHK,BSHK->BHLS', q_BLHK, k_BSHK)
  scores_BHLS *= q_BLHK.shape[-1] ** -0.5
  scores_BHLS = jnp.where(mask_BLS[:, None], scores_BHLS, MASKED)
  probs_BHLS = jax.nn.softmax(scores_BHLS).astype(v_BSHK.dtype)
  out_BLHK = einsum_f32('BHLS,BSHK->BLHK', probs_BHLS, v_BSHK)
  return out_BLHK.astype(q_BLHK.dtype)


def attend_cached(
  q_BLHK: jax.Array,
  pieces: Sequence[tuple[jax.Array, jax.Array]],
  mask_BLS: jax.Array | np.ndarray,
) -> jax.Array:
  """`attend` to keys and values stored in one or more pieces of cache.

  Reading the pieces separately avoids a concatenated copy of the cache.

  Args:
    q_BLHK: float[B, L, H, K].
    pieces: [(k, v), ...], each float[B, G, S_i, K].
    mask_BLS: bool, broadcastable to [B, L, S]; its S = sum(S_i) columns are
      those of the pieces in order.

  Returns:
    float[B, L, H, K].
  """
  B, L, H, K = q_BLHK.shape
  G = pieces[0][0].shape[1]
  # M = H/G * L: the queries that share a head are rows of one matmul. XLA:CPU
  # takes up to four times as long for a matmul with an axis of length 1.
  q_BGMK = q_BLHK.reshape(B, L, G, H // G, K).transpose(0, 2, 3, 1, 4)
  single = L == 1 and G == H
  q_BGMK = q_BGMK.reshape((B, G, K) if single else (B, G, -1, K))
  scores_BGMS = jnp.concatenate(
    [grouped_matmul(q_BGMK, k, transposed=True) for k, _ in pieces], axis=-1
  ).astype(jnp.float32)
  mask = mask_BLS if single else jnp.tile(mask_BLS, (1, H // G, 1))[:, None]
  scores_BGMS = jnp.where(mask, scores_BGMS * K**-0.5, MASKED)
  probs_BGMS = jax.nn.softmax(scores_BGMS).astype(q_BLHK.dtype)
  ends = np.cumsum([k.shape[2] for k, _ in pieces])[:-1]
  parts = zip(jnp.split(probs_BGMS, ends, axis=-1), pieces)
  out_BGMK = functools.reduce(
    jnp.add, (grouped_matmul(probs, v) for probs, (_, v) in parts)
  )
  out_BGRLK = out_BGMK.reshape(B, G, H // G, L, K)
  return out_BGRLK.transpose(0, 3, 1, 2, 4).reshape(q_BLHK.shape)


def grouped_matmul(
  x: jax.Array, y_BGSK: jax.Array, transposed: bool = False
) -> jax.Array:
  """x @ y for each of the B x G matrices, or x @ y.T if `transposed`.

  Args:
    x: float[B, G, M, S] ([B, G, M, K] if transposed), or without the axis M.
    y_BGSK: float[B, G, S, K], cast to the dtype of x.
  """
  row = '' if x.ndim == 3 else 'M'
  terms = (
    f'BG{row}K,BGSK->BG{row}S' if transposed else (f'BG{row}S,BGSK->BG{row}K')
  )
  return jnp.einsum(terms, x, y_BGSK.astype(x.dtype))


def repeat_kv(q_BLHK: jax.Array, kv_BSGK: jax.Array) -> jax.Array:
  """float[B, S, H, K]: each key/value head repeated for its query heads."""
  groups = q_BLHK.shape[2] // kv_BSGK.shape[2]
  return kv_BSGK if groups == 1 else jnp.repeat(kv_BSGK, groups, axis=2)


def exclusive(out_BLHK: jax.Array, v_BLGK: jax.Array) -> jax.Array:
  """Attention's output without what lies along the position's own value.

    z = y - (y . v) v / (v . v)

  Args:
    out_BLHK: float[B, L, H, K], y.
    v_BLGK: float[B, L, G, K], the values of the same positions.

  Returns:
    float[B, L, H, K] in the dtype of y; computed in float32.

  References:
    Zhai 2026, Exclusive Self Attention (https://arxiv.org/abs/2603.09078).
  """
  B, L, G, K = v_BLGK.shape
  v = v_BLGK.astype(jnp.float32)[:, :, :, None]
  y = out_BLHK.astype(jnp.float32).reshape(B, L, G, -1, K)
  along = jnp.sum(y * v, -1, keepdims=True)
  along /= jnp.sum(v * v, -1, keepdims=True) + OWN_VALUE_EPS
  return (y - along * v).reshape(out_BLHK.shape).astype(out_BLHK.dtype)


def causal_self_attention(
  q_BLHK: jax.Array,
  k_BLGK: jax.Array,
  v_BLGK: jax.Array,
  segments_BL: jax.Array | None = None,
  *,
  kernel: str,
  operands: DTypeLike | None = None,
) -> jax.Array:
  """Causal attention of whole sequences; see `attend` for the formula.

  Args:
    q_BLHK: float[B, L, H, K].
    k_BLGK, v_BLGK: float[B, L, G, K].
    segments_BL: int32[B, L]; attention stays within equal numbers.
    kernel: one of KERNELS, from `resolve_kernel`.
    operands: what factors of products are rounded to; None: the dtype of q.

  Returns:
    float[B, L, H, K] in the dtype of q.
  """
  dtype = q_BLHK.dtype
  operands = jnp.dtype(operands or dtype)
  if kernel == 'blocked' and dtype == jnp.float32 and training.usable():
    half = operands == jnp.bfloat16
    return training.attention(q_BLHK, k_BLGK, v_BLGK, segments_BL, half)
  q_BLHK, k_BLGK, v_BLGK = (
    x.astype(operands) for x in (q_BLHK, k_BLGK, v_BLGK)
  )
  attention = _in_jax(q_BLHK, k_BLGK, v_BLGK, segments_BL, kernel)
  return attention.astype(dtype)


def _in_jax(
  q_BLHK: jax.Array,
  k_BLGK: jax.Array,
  v_BLGK: jax.Array,
  segments_BL: jax.Array | None,
  kernel: str,
) -> jax.Array:
  # cuDNN takes a mask for even lengths only.
  if kernel == 'cudnn' and (segments_BL is None or q_BLHK.shape[1] % 2 == 0):
    return fused_attention(q_BLHK, k_BLGK, v_BLGK, segments_BL)
  if kernel == 'blocked':
    k_BLHK, v_BLHK = repeat_kv(q_BLHK, k_BLGK), repeat_kv(q_BLHK, v_BLGK)
    qkv = (x.transpose(0, 2, 1, 3) for x in (q_BLHK, k_BLHK, v_BLHK))
    if q_BLHK.dtype == jnp.bfloat16:
      qkv = map(row_major, qkv)
    out_BHLK = blocked_attention(*qkv, segments_BL)
    return out_BHLK.transpose(0, 2, 1, 3)
  mask_BLS = causal_mask(q_BLHK.shape[1])[None]
  if segments_BL is not None:
    mask_BLS = mask_BLS & (segments_BL[:, :, None] == segments_BL[:, None, :])
  return attend(q_BLHK, k_BLGK, v_BLGK, mask_BLS)


def fused_attention(
  q_BLHK: jax.Array,
  k_BLGK: jax.Array,
  v_BLGK: jax.Array,
  segments_BL: jax.Array | None = None,
  implementation: Literal['cudnn', 'xla'] = 'cudnn',
) -> jax.Array:
  """`causal_self_attention` in one kernel of JAX.

  The mask of packed documents is bool[B, 1, L, L], the same array for all
  heads and layers; the scores themselves never are in memory.

  Args:
    implementation: 'xla' is the same function on any backend.
  """
  same_document: Any = None
  if segments_BL is not None:
    same = segments_BL[:, :, None] == segments_BL[:, None, :]
    same_document = same[:, None]
  return jax.nn.dot_product_attention(
    q_BLHK,
    k_BLGK,
    v_BLGK,
    mask=same_document,
    is_causal=True,
    implementation=implementation,
  )


# Queries are processed in this many row blocks: blocks above the diagonal are
# never computed, and the scores of one block stay in the CPU's cache.
ROW_BLOCKS = 4


def row_blocks(length: int) -> list[tuple[int, int]]:
  """[(first, end), ...] of the query blocks."""
  size = max(1, -(-length // ROW_BLOCKS))
  return [(i, min(i + size, length)) for i in range(0, length, size)]


def _block_scores(
  q_BHLK: jax.Array,
  k_BHLK: jax.Array,
  segments_BL: jax.Array | None,
  first: int,
  end: int,
) -> jax.Array:
  """Scaled, masked float32 scores of queries first..end to keys 0..end."""
  scores_BHLS = einsum_f32(
    'BHLK,BHSK->BHLS', q_BHLK[:, :, first:end], k_BHLK[:, :, :end]
  )
  query = np.arange(first, end)[:, None]
  mask_BLS = (query >= np.arange(end)[None])[None]
  if segments_BL is not None:
    mask_BLS = mask_BLS & (
      segments_BL[:, first:end, None] == segments_BL[:, None, :end]
    )
  scores_BHLS *= q_BHLK.shape[-1] ** -0.5
  return jnp.where(mask_BLS[:, None], scores_BHLS, MASKED)


def _blocked_forward(
  q_BHLK: jax.Array,
  k_BHLK: jax.Array,
  v_BHLK: jax.Array,
  segments_BL: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
  outs, lses = [], []
  for first, end in row_blocks(q_BHLK.shape[2]):
    scores_BHLS = _block_scores(q_BHLK, k_BHLK, segments_BL, first, end)
    max_BHL1 = jnp.max(scores_BHLS, axis=-1, keepdims=True)
    exp_BHLS = jnp.exp(scores_BHLS - max_BHL1)
    sum_BHL1 = jnp.sum(exp_BHLS, axis=-1, keepdims=True)
    out_BHLK = einsum_f32(
      'BHLS,BHSK->BHLK', exp_BHLS.astype(v_BHLK.dtype), v_BHLK[:, :, :end]
    )
    outs.append((out_BHLK / sum_BHL1).astype(q_BHLK.dtype))
    lses.append(max_BHL1 + jnp.log(sum_BHL1))
  return jnp.concatenate(outs, axis=2), jnp.concatenate(lses, axis=2)


@jax.custom_vjp
def blocked_attention(
  q_BHLK: jax.Array,
  k_BHLK: jax.Array,
  v_BHLK: jax.Array,
  segments_BL: jax.Array | None = None,
) -> jax.Array:
  """Causal attention in row blocks; same value and gradient as `attend`.

  The backward pass recomputes the probabilities from the saved log-sum-exp, so
  no [L, S] array outlives its block.

  Args:
    q_BHLK, k_BHLK, v_BHLK: float[B, H, L, K].
    segments_BL: int32[B, L]; attention stays within equal numbers.

  Returns:
    float[B, H, L, K] in the dtype of q.

  References:
    Dao et al. 2022, FlashAttention (https://arxiv.org/abs/2205.14135), section
    3 and appendix B.
  """
  return _blocked_forward(q_BHLK, k_BHLK, v_BHLK, segments_BL)[0]


def _blocked_fwd(
  q_BHLK: jax.Array,
  k_BHLK: jax.Array,
  v_BHLK: jax.Array,
  segments_BL: jax.Array | None,
) -> tuple[jax.Array, tuple[jax.Array | None, ...]]:
  out_BHLK, lse_BHL1 = _blocked_forward(q_BHLK, k_BHLK, v_BHLK, segments_BL)
  return out_BHLK, (q_BHLK, k_BHLK, v_BHLK, segments_BL, out_BHLK, lse_BHL1)


def _blocked_bwd(
  saved: tuple[Any, ...], dout_BHLK: jax.Array
) -> tuple[jax.Array | None, ...]:
  q_BHLK, k_BHLK, v_BHLK, segments_BL, out_BHLK, lse_BHL1 = saved
  dtype = q_BHLK.dtype
  scale = q_BHLK.shape[-1] ** -0.5
  delta_BHL1 = jnp.sum(
    dout_BHLK.astype(jnp.float32) * out_BHLK.astype(jnp.float32),
    axis=-1,
    keepdims=True,
  )
  length = q_BHLK.shape[2]
  dqs: list[jax.Array] = []
  dk_BHKS: Any = 0.0
  dv_BHKS: Any = 0.0
  for first, end in row_blocks(length):
    rows = slice(first, end)
    q, dout = q_BHLK[:, :, rows], dout_BHLK[:, :, rows]
    scores_BHLS = _block_scores(q_BHLK, k_BHLK, segments_BL, first, end)
    probs_BHLS = jnp.exp(scores_BHLS - lse_BHL1[:, :, rows])
    dprobs_BHLS = einsum_f32('BHLK,BHSK->BHLS', dout, v_BHLK[:, :, :end])
    dscores_BHLS = probs_BHLS * (dprobs_BHLS - delta_BHL1[:, :, rows]) * scale
    dscores_BHLS = dscores_BHLS.astype(dtype)
    dqs.append(einsum_f32('BHLS,BHSK->BHLK', dscores_BHLS, k_BHLK[:, :, :end]))
    # Transpose the smaller factor; the other keeps its layout.
    q_BHKL = row_major(q.swapaxes(2, 3))
    dout_BHKL = row_major(dout.swapaxes(2, 3))
    dk = einsum_f32('BHKL,BHLS->BHKS', q_BHKL, dscores_BHLS)
    dv = einsum_f32('BHKL,BHLS->BHKS', dout_BHKL, probs_BHLS.astype(dtype))
    pad = ((0, 0), (0, 0), (0, 0), (0, length - end))
    dk_BHKS += jnp.pad(dk, pad)
    dv_BHKS += jnp.pad(dv, pad)
  dk_BHLK, dv_BHLK = (x.swapaxes(2, 3) for x in (dk_BHKS, dv_BHKS))
  dq_BHLK = jnp.concatenate(dqs, axis=2)
  return *(x.astype(dtype) for x in (dq_BHLK, dk_BHLK, dv_BHLK)), None


blocked_attention.defvjp(_blocked_fwd, _blocked_bwd)
