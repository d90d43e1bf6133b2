"""What runs here, as far as kernels and number formats depend on it."""

import jax

# With them came matrix units for bfloat16, and cuDNN's fused attention.
CUDA_CAPABILITY = 8.0


def name() -> str:
  """'cpu', 'tpu', 'metal', ...; of GPUs 'cuda', 'old cuda' or 'rocm'.

  An 'old cuda' device has a compute capability below 8.0 (T4, V100).
  """
  backend = jax.default_backend().lower()
  if backend not in ('gpu', 'cuda', 'rocm'):
    return backend
  try:
    capability = float(jax.local_devices()[0].compute_capability)
  except (AttributeError, ValueError):  # AMD's are names: 'gfx90a'.
    return 'rocm'
  return 'cuda' if capability >= CUDA_CAPABILITY else 'old cuda'
