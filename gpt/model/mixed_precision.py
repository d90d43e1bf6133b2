"""Products of activations and weights as XLA:CPU computes them fastest.

With bfloat16 instructions a product of bfloat16 operands takes half the time of
float32. XLA:CPU uses them only for row-major operands, a float32 output and
contracted axes in their usual places, and gradients of weights in float32 take
up to twice as long in another layout. So the gradients are written out here,
and operands that need a transposition are copied first.
"""

import functools

import jax
import jax.numpy as jnp

from gpt import sharding
from gpt.native import training


def einsum_f32(terms: str, x: jax.Array, y: jax.Array) -> jax.Array:
  """einsum of two arrays of equal dtype; sums and result in float32."""
  return jnp.einsum(terms, x, y, preferred_element_type=jnp.float32)


def einsum_bf16(terms: str, x: jax.Array, y: jax.Array) -> jax.Array:
  """einsum of two arrays rounded to bfloat16; sums and result in float32."""
  return einsum_f32(terms, x.astype(jnp.bfloat16), y.astype(jnp.bfloat16))


@jax.custom_vjp
def row_major(x: jax.Array) -> jax.Array:
  """A row-major copy of x; stops XLA:CPU from folding a transposition.

  Not of arrays that are divided over devices: to flatten one, XLA would gather
  it first.
  """
  if sharding.divided():
    return x
  return jax.lax.optimization_barrier(x.reshape(-1)).reshape(x.shape)


# jax 0.5 cannot differentiate optimization_barrier.
row_major.defvjp(lambda x: (row_major(x), None), lambda _, dout: (dout,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product(
  x: jax.Array, w: jax.Array, transposed: bool = False, dtype: str = 'float32'
) -> jax.Array:
  """x @ w with operands rounded to a dtype, in value and gradient.

  Args:
    x: float32[..., in].
    w: float[in, out]; with `transposed`, float[out, in] and x @ w.T.
    dtype: 'bfloat16' or 'float32'.

  Returns:
    float32[..., out].
  """
  terms = '...i,oi->...o' if transposed else '...i,io->...o'
  return einsum_f32(terms, x.astype(dtype), w.astype(dtype))


def _forward(
  x: jax.Array, w: jax.Array, transposed: bool, dtype: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  saved = x if training.usable() else x.astype(dtype)
  return product(x, w, transposed, dtype), (saved, w)


def _backward(
  transposed: bool,
  dtype: str,
  saved: tuple[jax.Array, jax.Array],
  dout: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  x, w = saved
  dout_no = dout.reshape(-1, dout.shape[-1])
  dout = dout.astype(dtype)
  terms = '...o,oi->...i' if transposed else '...o,io->...i'
  dx = einsum_f32(terms, dout, w.astype(dtype))
  x_ni = x.reshape(-1, x.shape[-1])
  if training.usable():
    pair = x_ni.astype(jnp.float32), dout_no.astype(jnp.float32)
    pair = pair[::-1] if transposed else pair
    dw = training.matrix_gradient(*pair, half=dtype == 'bfloat16')
    return dx, dw.astype(w.dtype)
  x_ni, dout_no = x_ni.astype(dtype), dout_no.astype(dtype)
  # Copy the smaller factor; the result may then be transposed.
  copied = x_ni.shape[1] <= dout_no.shape[1]
  if copied:
    dw = einsum_f32('in,no->io', row_major(x_ni.T), dout_no)
  else:
    dw = einsum_f32('on,ni->oi', row_major(dout_no.T), x_ni)
  dw = row_major(dw).T if copied == transposed else dw
  return dx, dw.astype(w.dtype)


product.defvjp(_forward, _backward)
