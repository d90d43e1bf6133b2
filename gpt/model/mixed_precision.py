"""Mixed-precision matmuls: bfloat16 operands, float32 sums and results.

With bfloat16 instructions a matmul takes half the time of float32. XLA:CPU
uses them only for row-major operands, a float32 output and contracted axes in
their usual places. So the gradients are written out here, and operands that
need a transposition are copied first.
"""

import functools

import jax
import jax.numpy as jnp


def einsum_f32(terms: str, x: jax.Array, y: jax.Array) -> jax.Array:
  """einsum of two arrays of equal dtype; sums and result in float32."""
  return jnp.einsum(terms, x, y, preferred_element_type=jnp.float32)


def einsum_bf16(terms: str, x: jax.Array, y: jax.Array) -> jax.Array:
  """einsum of two arrays rounded to bfloat16; sums and result in float32."""
  return einsum_f32(terms, x.astype(jnp.bfloat16), y.astype(jnp.bfloat16))


@jax.custom_vjp
def row_major(x: jax.Array) -> jax.Array:
  """A row-major copy of x; stops XLA:CPU from folding a transposition."""
  return jax.lax.optimization_barrier(x.reshape(-1)).reshape(x.shape)


# jax 0.5 cannot differentiate optimization_barrier.
row_major.defvjp(lambda x: (row_major(x), None), lambda _, dout: (dout,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def mixed_product(
  x: jax.Array, w: jax.Array, transposed: bool = False
) -> jax.Array:
  """x @ w with operands rounded to bfloat16, in value and gradient.

  Args:
    x: float32[..., in].
    w: float32[in, out]; with `transposed`, float32[out, in] and x @ w.T.

  Returns:
    float32[..., out].
  """
  return einsum_bf16('...i,oi->...o' if transposed else '...i,io->...o', x, w)


def _forward(
  x: jax.Array, w: jax.Array, transposed: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return mixed_product(x, w, transposed), (x.astype(jnp.bfloat16), w)


def _backward(
  transposed: bool, saved: tuple[jax.Array, jax.Array], dout: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x, w = saved
  dout = dout.astype(jnp.bfloat16)
  dx = einsum_bf16('...o,oi->...i' if transposed else '...o,io->...i', dout, w)
  x_ni = x.reshape(-1, x.shape[-1])
  dout_no = dout.reshape(-1, dout.shape[-1])
  # Copy the smaller factor; the result may then be transposed.
  copied = x_ni.shape[1] <= dout_no.shape[1]
  if copied:
    dw = einsum_bf16('in,no->io', row_major(x_ni.T), dout_no)
  else:
    dw = einsum_bf16('on,ni->oi', row_major(dout_no.T), x_ni)
  return dx, row_major(dw).T if copied == transposed else dw


mixed_product.defvjp(_forward, _backward)
