"""The key/value cache of decoding: an explicit argument and result."""

from typing import Any

import jax.numpy as jnp
from flax import struct


@struct.dataclass
class KVCache:
  """Keys and values of the tokens seen, one pair of arrays for each layer.

  Attributes:
    k: tuple of N arrays float[B, G, S, K], rotated already where pos='rope'.
    v: tuple of N arrays float[B, G, S, K].

  Which of the S columns hold something is the caller's knowledge (a mask), so
  that rows of different lengths share one cache. Heads stand before columns:
  a decode step then reads each head's keys as one contiguous piece.
  """

  k: Any
  v: Any

  @property
  def capacity(self) -> int:
    return self.k[0].shape[2]


def init_cache(cfg, batch_size: int, capacity: int, dtype=None) -> KVCache:
  """Zeros for `batch_size` rows of `capacity` columns."""
  shape = (batch_size, cfg.kv_heads, capacity, cfg.head_dim)
  dtype = dtype or jnp.dtype(cfg.activation_dtype)
  k = tuple(jnp.zeros(shape, dtype) for _ in range(cfg.n_layer))
  v = tuple(jnp.zeros(shape, dtype) for _ in range(cfg.n_layer))
  return KVCache(k, v)
