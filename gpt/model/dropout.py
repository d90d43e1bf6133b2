"""Dropout (Srivastava et al. 2014) with bits from a counter-based hash.

JAX's threefry takes a quarter of a training step on a CPU, and masks need far
less than a cryptographic generator. Here the bits of element i of row b at
dropout site s in step t are a hash of (key, t, b, s, i), so the mask does not
depend on how the batch is divided into devices and micro-batches.

References:
  Chris Wellons 2018, "Prospecting for hash functions": the 32-bit finaliser
  lowbias32 (bias 0.17), a bijection of uint32.
"""

import jax
import jax.numpy as jnp

_GOLDEN = 0x9E3779B9  # 2^32 / golden ratio: spreads consecutive counters.


def mix(x: jax.Array) -> jax.Array:
  """lowbias32: uint32 -> uint32; each input bit flips half the output bits."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)


def row_seeds(key: jax.Array, rows_B: jax.Array) -> jax.Array:
  """uint32[B, 2]: a pair of seeds per row.

  Args:
    key: the step's dropout key (`jax.random.key`).
    rows_B: int32[B], index of each row in the global batch.
  """
  words = jax.random.key_data(key).astype(jnp.uint32).reshape(-1)
  rows_B = rows_B.astype(jnp.uint32) * jnp.uint32(_GOLDEN)
  a_B = mix(mix(rows_B ^ words[0]) ^ words[1])
  b_B = mix(mix(rows_B ^ words[1]) + words[0])
  return jnp.stack([a_B, b_B], axis=-1)


def dropout(
  x_BLD: jax.Array, rate: float, seeds_Bx2: jax.Array | None, site: int
) -> jax.Array:
  """Zeroes elements with probability `rate` and scales the others.

    x' = x * keep / (1 - rate),  keep ~ Bernoulli(1 - rate)

  The rate is rounded to a multiple of 2^-16; the scale uses the rounded rate,
  so the expectation is exactly x.

  Args:
    x_BLD: float[B, L, D].
    rate: in [0, 1).
    seeds_Bx2: uint32[B, 2] from `row_seeds`; None: no dropout (inference).
    site: index of this dropout in the network.

  Returns:
    float[B, L, D] in the dtype of x.
  """
  threshold = min(round(rate * 65536), 65535)
  if seeds_Bx2 is None or threshold == 0:
    return x_BLD
  _, length, width = x_BLD.shape
  count_LD = jax.lax.iota(jnp.uint32, length * width).reshape(length, width)
  site_word = jnp.uint32((site * 0x85EBCA6B + 1) & 0xFFFFFFFF)
  a_B = mix(seeds_Bx2[:, 0] + site_word)
  b_B = seeds_Bx2[:, 1] ^ site_word
  x = count_LD[None] ^ a_B[:, None, None]
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D) + b_B[:, None, None]
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  bits_BLD = x >> 16
  scale = 65536 / (65536 - threshold)
  keep_BLD = bits_BLD >= threshold
  kept_BLD = x_BLD.astype(jnp.float32) * jnp.where(keep_BLD, scale, 0.0)
  return kept_BLD.astype(x_BLD.dtype)
