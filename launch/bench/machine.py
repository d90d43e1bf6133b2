"""The machine a benchmark ran on: what decides which program is faster."""

import os
import platform
import subprocess
from typing import Any

from gpt import processor
from gpt.devices import num_cores

# Instructions that our products, XLA's or a peer's choose between.
FLAGS = (
  *('avx2', 'fma', 'f16c', 'avx_vnni', 'avx512f', 'avx512_bf16'),
  *('avx512_vnni', 'avx512_fp16', 'amx_tile', 'amx_bf16', 'amx_int8'),
  *('asimd', 'asimdhp', 'asimddp', 'bf16', 'i8mm', 'sve', 'sve2', 'sme'),
)
# Variables that limit the threads of the contestants.
THREADS = ('OMP_NUM_THREADS', 'RGPT_KERNELS', 'RGPT_THREADS', 'XLA_FLAGS')


def facts() -> dict[str, Any]:
  """For a JSON line: processor, its FLAGS, cores, variables, versions."""
  import jax

  name, flags = processor.describe()
  return {
    'cpu': name,
    'cpu_flags': [flag for flag in FLAGS if flag in flags],
    'cores': num_cores(),
    'cores_of_machine': os.cpu_count(),
    'environment': {k: os.environ[k] for k in THREADS if k in os.environ},
    'python': platform.python_version(),
    'jax': jax.__version__,
  }


def line() -> str:
  """The processor, the cores this process may use, and Python's version."""
  version = platform.python_version()
  return f'{processor.describe()[0]}, {num_cores()} cores, Python {version}'


def commit() -> str:
  """The checked-out commit, with + if files differ; '' without git."""
  args = ['git', 'describe', '--always', '--dirty=+']
  try:
    return subprocess.run(args, capture_output=True, text=True).stdout.strip()
  except OSError:  # git is not installed.
    return ''
