"""RMSNorm and LayerNorm over the last axis, computed in float32."""

import jax
import jax.numpy as jnp

EPS = 1e-5


def rms_norm(
  x: jax.Array, gain: jax.Array | None = None, eps: float = EPS
) -> jax.Array:
  """x / sqrt(mean(x^2) + eps) * gain (Zhang & Sennrich 2019).

  Args:
    gain: float[D]; None: no gain.

  Returns:
    An array like x, of its dtype.
  """
  x32 = x.astype(jnp.float32)
  scale = jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + eps)
  return _scaled(x32 * scale, gain, None).astype(x.dtype)


def layer_norm(
  x: jax.Array,
  gain: jax.Array | None = None,
  bias: jax.Array | None = None,
  eps: float = EPS,
) -> jax.Array:
  """(x - mean(x)) / sqrt(var(x) + eps) * gain + bias (Ba et al. 2016).

  Args:
    gain, bias: float[D]; None: none.

  Returns:
    An array like x, of its dtype.
  """
  x32 = x.astype(jnp.float32)
  x32 = x32 - jnp.mean(x32, -1, keepdims=True)
  scale = jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + eps)
  return _scaled(x32 * scale, gain, bias).astype(x.dtype)


def along_last(vector: jax.Array, x: jax.Array) -> jax.Array:
  """A vector in the dtype of x and with its number of axes."""
  return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + vector.shape)


def _scaled(
  x32: jax.Array, gain: jax.Array | None, bias: jax.Array | None
) -> jax.Array:
  if gain is not None:
    x32 = x32 * along_last(gain, x32)
  return x32 if bias is None else x32 + along_last(bias, x32)
