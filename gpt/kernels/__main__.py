"""Compiles the kernels now, so that the first use need not.

    python -m gpt.kernels

Prints a line for each library and always succeeds: without kernels, decoding
and training use JAX. The container image is built with
RGPT_KERNELS_MARCH=x86-64-v3, for one.
"""

import jaxlib.version
from jax import ffi

from gpt.native import build


def main() -> None:
  for source, purpose in build.PURPOSES.items():
    try:
      _, seconds = build.compiled(
        build.cache_directory(),
        build.chosen_march(),
        ffi.include_dir(),
        jaxlib.version.__version__,
        source,
      )
    except build.NoKernels as e:
      print(f'{purpose.capitalize()} kernels: none, {purpose} uses JAX: {e}')
      continue
    how = f'compiled in {seconds:.0f} s' if seconds else 'present'
    print(f'{purpose.capitalize()} kernels: {how}')


if __name__ == '__main__':
  main()
