"""Calls of the compiled kernels of training, as pure functions.

The same functions in JAX are the reference, and what runs where there is no
compiler, on other backends, or with RGPT_KERNELS=off: blocked_attention of
gpt/model/attention.py and the gradient of gpt/model/mixed_precision.py.
"""

import contextlib
import contextvars
import functools
import os
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import ffi

from gpt import devices, sharding
from gpt.native import build, targets

TARGETS = (
  'rgpt_attention',
  'rgpt_attention_gradient',
  'rgpt_matrix_gradient',
  'rgpt_orthogonal',
)

_reference = contextvars.ContextVar('reference', default=False)


@contextlib.contextmanager
def reference() -> Iterator[None]:
  """Programs that are first traced inside use no kernels.

  XLA then knows what all of it costs. What was traced before stays as it is.
  """
  token = _reference.set(True)
  try:
    yield
  finally:
    _reference.reset(token)


def usable() -> bool:
  """Whether a program that is traced now can call the kernels.

  Not if its arrays are divided over devices by XLA: it cannot divide a call.
  """
  if _reference.get() or sharding.divided():
    return False
  if os.environ.get('RGPT_KERNELS') == 'off':
    return False
  return jax.default_backend() == 'cpu' and not load()


@functools.cache
def load() -> str:
  """Registers the kernels with XLA; '' or why that is impossible."""
  without = 'training without compiled kernels: %s'
  return targets.register(build.TRAINING, TARGETS, without)


def _threads() -> np.int32:
  # The devices of a process work side by side.
  return np.int32(max(1, devices.num_cores() // jax.local_device_count()))


def _options(half: bool) -> dict[str, np.generic]:
  return {'threads': _threads(), 'half': np.bool_(half)}


def _call(
  target: str, *shapes: tuple[int, ...]
) -> Callable[..., Sequence[jax.Array]]:
  """A call that returns float32 arrays of the given shapes."""
  results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return ffi.ffi_call(target, results, vmap_method='sequential')


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attention(
  q_BLHK: jax.Array,
  k_BLGK: jax.Array,
  v_BLGK: jax.Array,
  segments_BL: jax.Array | None,
  half: bool,
) -> jax.Array:
  """Causal attention of whole sequences, and its gradient.

  Args:
    q_BLHK: float32[B, L, H, K].
    k_BLGK, v_BLGK: float32[B, L, G, K].
    segments_BL: int32[B, L]; attention stays within equal numbers.
    half: operands of products are rounded to bfloat16; sums are in float32.

  Returns:
    float32[B, L, H, K].
  """
  return _attention(q_BLHK, k_BLGK, v_BLGK, segments_BL, half)[0]


def _attention(
  q_BLHK: jax.Array,
  k_BLGK: jax.Array,
  v_BLGK: jax.Array,
  segments_BL: jax.Array | None,
  half: bool,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  B, L, H, _ = q_BLHK.shape
  if segments_BL is None:
    segments_BL = jnp.zeros((0, 0), jnp.int32)
  segments_BL = segments_BL.astype(jnp.int32)
  call = _call('rgpt_attention', q_BLHK.shape, (B, H, L))
  operands = q_BLHK, k_BLGK, v_BLGK, segments_BL
  out_BLHK, lse_BHL = call(*operands, **_options(half))
  return out_BLHK, (*operands, out_BLHK, lse_BHL)


def _attention_gradient(
  half: bool, saved: tuple[jax.Array, ...], dout_BLHK: jax.Array
) -> tuple[jax.Array | None, ...]:
  call = _call('rgpt_attention_gradient', *(x.shape for x in saved[:3]))
  return *call(*saved, dout_BLHK, **_options(half)), None


attention.defvjp(_attention, _attention_gradient)


def matrix_gradient(x_ni: jax.Array, dy_no: jax.Array, half: bool) -> jax.Array:
  """x^T dy: the gradient of w for y = x @ w.

  Args:
    x_ni: float32[n, in].
    dy_no: float32[n, out].
    half: see `attention`.

  Returns:
    float32[in, out].
  """
  call = _call('rgpt_matrix_gradient', (x_ni.shape[1], dy_no.shape[1]))
  (gradient,) = call(x_ni, dy_no, **_options(half))
  return gradient


def orthogonalise(
  x_NRC: jax.Array, steps: int, coefficients: tuple[float, float, float]
) -> jax.Array:
  """`muon.orthogonalise` with the coefficients A, B and C.

  Args:
    x_NRC: float32[N, R, C] with R <= C.
    steps: number of iterations, at least 1.

  Returns:
    float32[N, R, C].
  """
  (out_NRC,) = _call('rgpt_orthogonal', x_NRC.shape)(
    x_NRC,
    threads=_threads(),
    steps=np.int32(steps),
    **dict(zip('abc', map(np.float32, coefficients))),
  )
  return out_NRC
