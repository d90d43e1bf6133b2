"""The key/value cache of decoding, an explicit argument and result."""

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from gpt.model.config import GPTConfig

# Keys and values of one layer: two arrays float[B, G, S, K].
KeysValues = tuple[jax.Array, jax.Array]


@struct.dataclass
class KVCache:
  """Keys and values of earlier tokens, one pair of arrays per layer.

  The cache does not record which of its S columns are filled: the caller
  passes a mask, so rows of different lengths share a cache. Heads come before
  columns, so that a decode step reads each head's keys contiguously.

  Attributes:
    k: N arrays float[B, G, S, K]; with pos='rope', already rotated.
    v: N arrays float[B, G, S, K].
  """

  k: tuple[jax.Array, ...]
  v: tuple[jax.Array, ...]

  @property
  def capacity(self) -> int:
    """S, the number of columns."""
    return self.k[0].shape[2]


def init_cache(
  cfg: GPTConfig,
  batch_size: int,
  capacity: int,
  dtype: DTypeLike | None = None,
) -> KVCache:
  """A cache of zeros.

  Args:
    batch_size: B.
    capacity: S, columns.
    dtype: default: the dtype of the activations.
  """
  shape = (batch_size, cfg.kv_heads, capacity, cfg.head_dim)
  dtype = dtype or jnp.dtype(cfg.activation_dtype)
  k = tuple(jnp.zeros(shape, dtype) for _ in range(cfg.n_layer))
  v = tuple(jnp.zeros(shape, dtype) for _ in range(cfg.n_layer))
  return KVCache(k, v)
