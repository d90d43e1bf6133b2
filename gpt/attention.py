"""Attention kernels behind one function; `resolve_kernel` chooses once.

`plain` is the formula. The others compute the same numbers faster and are
tested against it in value and gradient.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gpt.errors import UserError

KERNELS = ('plain', 'blocked', 'cudnn')
# Finite, so that a row with nothing to attend to gives numbers and not NaN.
MASKED = -1e9


def resolve_kernel(name: str, backend: str) -> str:
  """The kernel for `config.model.attention` on a JAX backend name."""
  if name == 'auto':
    return 'blocked' if backend == 'cpu' else 'plain'
  if name not in KERNELS:
    raise UserError(
      f'model.attention {name!r} is not known; allowed: auto, '
      f'{", ".join(KERNELS)}'
    )
  return name


def causal_mask(length: int):
  """bool[L, L]: query l may see key s <= l."""
  return np.tril(np.ones((length, length), bool))


def attend(q_BLHK, k_BSHK, v_BSHK, mask_BLS):
  """softmax(q k^T / sqrt(K)) v over the keys where the mask is true.

  Args:
    q_BLHK: float[B, L, H, K] queries.
    k_BSHK, v_BSHK: float[B, S, G, K]; each of the G heads serves H/G queries.
    mask_BLS: bool, broadcastable to [B, L, S].

  Returns:
    float[B, L, H, K] in the dtype of q. The softmax is float32.
  """
  k_BSHK, v_BSHK = repeat_kv(q_BLHK, k_BSHK), repeat_kv(q_BLHK, v_BSHK)
  scores_BHLS = jnp.einsum('BLHK,BSHK->BHLS', q_BLHK, k_BSHK)
  scores_BHLS = scores_BHLS.astype(jnp.float32) * q_BLHK.shape[-1] ** -0.5
  scores_BHLS = jnp.where(mask_BLS[:, None], scores_BHLS, MASKED)
  probs_BHLS = jax.nn.softmax(scores_BHLS).astype(v_BSHK.dtype)
  return jnp.einsum('BHLS,BSHK->BLHK', probs_BHLS, v_BSHK)


def repeat_kv(q_BLHK, kv_BSHK):
  """Repeats each key/value head for the queries that share it."""
  groups = q_BLHK.shape[2] // kv_BSHK.shape[2]
  return kv_BSHK if groups == 1 else jnp.repeat(kv_BSHK, groups, axis=2)


def causal_self_attention(q_BLHK, k_BLHK, v_BLHK, segments_BL=None, *, kernel):
  """Attention of a whole sequence to itself, no peeking ahead.

  Args:
    segments_BL: int32[B, L] or None; tokens attend within equal segments.
    kernel: one of KERNELS, from `resolve_kernel`.
  """
  if kernel == 'cudnn' and segments_BL is None:
    return jax.nn.dot_product_attention(
      q_BLHK, k_BLHK, v_BLHK, is_causal=True, implementation='cudnn'
    )
  mask_BLS = causal_mask(q_BLHK.shape[1])[None]
  if segments_BL is not None:
    mask_BLS = mask_BLS & (segments_BL[:, :, None] == segments_BL[:, None, :])
  return attend(q_BLHK, k_BLHK, v_BLHK, mask_BLS)
