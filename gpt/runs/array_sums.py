"""Checksums of arrays that no process holds whole.

    sum(x) = sum over i of mix(bits(x_i) ^ mix(i))  mod 2^32

`i` counts the elements in row-major order and `mix` is a bijection of uint32,
so any change of one element changes the sum, and elements that trade places do
too. Every device adds up its own shard; the total does not depend on how the
array is divided, so a checkpoint can be verified on another mesh.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt import sharding
from gpt.model.dropout import mix

# Elements that numpy works on at once.
CHUNK = 1 << 20


def sum_of(tree: Any) -> int:
  """CRC-32 of the leaves' sums in tree order.

  Args:
    tree: numpy arrays; or JAX arrays, then all processes must call this.
  """
  leaves = jax.tree.leaves(tree)
  if leaves and all(isinstance(x, jax.Array) for x in leaves):
    sums = jax.jit(
      lambda xs: [_on_device(x) for x in xs],
      out_shardings=sharding.replicated_like(leaves[0]),
    )
    found = [int(np.asarray(x)) for x in sums(leaves)]
  else:
    found = [_on_host(np.asarray(x)) for x in leaves]
  return zlib.crc32(np.asarray(found, np.uint32).tobytes())


def _on_device(x: jax.Array) -> jax.Array:
  """uint32[]: the sum of one array, computed where its shards are."""
  index = jnp.zeros(x.shape, jnp.uint32)
  stride = 1
  for axis in reversed(range(x.ndim)):
    index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(
      stride % 2**32
    )
    stride *= x.shape[axis]
  bits = jax.lax.bitcast_convert_type(x, _unsigned(x.dtype))
  return jnp.sum(mix(bits.astype(jnp.uint32) ^ mix(index)), dtype=jnp.uint32)


def _on_host(x: np.ndarray) -> int:
  flat = np.ascontiguousarray(x).reshape(-1).view(_unsigned(x.dtype))
  total = 0
  for start in range(0, len(flat), CHUNK):
    bits = flat[start : start + CHUNK].astype(np.uint32)
    index = np.arange(start, start + len(bits), dtype=np.uint64)
    bits ^= _mix(index.astype(np.uint32))
    total += int(_mix(bits).sum(dtype=np.uint64))
  return total % 2**32


def _mix(x: np.ndarray) -> np.ndarray:
  """dropout.mix for numpy."""
  x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
  x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
  return x ^ (x >> np.uint32(16))


def _unsigned(dtype: Any) -> Any:
  size = np.dtype(dtype).itemsize
  return {1: np.uint8, 2: np.uint16, 4: np.uint32}[size]
