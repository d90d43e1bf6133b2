"""Compiles the kernels now, so that the first use need not.

    python -m gpt.kernels

Prints one line and always succeeds: without kernels, decoding uses JAX. The
container image is built with RGPT_KERNELS_MARCH=x86-64-v3, for one.
"""

import jaxlib.version
from jax import ffi

from gpt.kernels import build


def main() -> None:
  try:
    _, seconds = build.compiled(
      build.cache_directory(),
      build.chosen_march(),
      ffi.include_dir(),
      jaxlib.version.__version__,
    )
  except build.NoKernels as e:
    print(f'Decoding kernels: none, decoding uses JAX: {e}')
    return
  how = f'compiled in {seconds:.0f} s' if seconds else 'present'
  print(f'Decoding kernels: {how}')


if __name__ == '__main__':
  main()
