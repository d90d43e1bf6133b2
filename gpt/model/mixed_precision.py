"""Matrix products in mixed precision: bfloat16 operands, float32 sums.

Processors with bfloat16 instructions take half the time of float32. XLA:CPU
uses them only where it meets operands in row-major order, an output in
float32 and the contracted axes in their usual places; so the gradients are
written out here, and what has to be transposed first is copied.
"""

import functools

import jax
import jax.numpy as jnp


def einsum_f32(terms: str, x, y):
  """einsum of two arrays of any one dtype; sums and result in float32."""
  return jnp.einsum(terms, x, y, preferred_element_type=jnp.float32)


def product(terms: str, x, y):
  """einsum of two arrays rounded to bfloat16; float32."""
  return einsum_f32(terms, x.astype(jnp.bfloat16), y.astype(jnp.bfloat16))


@jax.custom_vjp
def row_major(x):
  """x, laid out anew; else XLA:CPU folds a transposition into the product."""
  return jax.lax.optimization_barrier(x.reshape(-1)).reshape(x.shape)


# JAX 0.5 cannot differentiate a barrier.
row_major.defvjp(lambda x: (row_major(x), None), lambda _, dout: (dout,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def mixed_product(x, w, transposed=False):
  """x @ w, and its gradient, with operands rounded to bfloat16.

  Args:
    x: float32[..., in].
    w: float32[in, out], or [out, in] if `transposed`: then x @ w.T.

  Returns:
    float32[..., out].
  """
  return product('...i,oi->...o' if transposed else '...i,io->...o', x, w)


def _forward(x, w, transposed):
  return mixed_product(x, w, transposed), (x.astype(jnp.bfloat16), w)


def _backward(transposed, saved, dout):
  x, w = saved
  dout = dout.astype(jnp.bfloat16)
  dx = product('...o,oi->...i' if transposed else '...o,io->...i', dout, w)
  x_ni = x.reshape(-1, x.shape[-1])
  dout_no = dout.reshape(-1, dout.shape[-1])
  # The smaller one is copied, and so the result may lie the other way round.
  copied = x_ni.shape[1] <= dout_no.shape[1]
  if copied:
    dw = product('in,no->io', row_major(x_ni.T), dout_no)
  else:
    dw = product('on,ni->oi', row_major(dout_no.T), x_ni)
  return dx, row_major(dw).T if copied == transposed else dw


mixed_product.defvjp(_forward, _backward)
