"""Loads a library of kernels, so that programs of XLA can call it."""

import ctypes
import logging
import pathlib
from collections.abc import Sequence

import jaxlib.version
from jax import ffi

from gpt.native import build

log = logging.getLogger(__name__)


def register(source: pathlib.Path, names: Sequence[str], without: str) -> str:
  """Registers the targets `names` of a source with XLA.

  Args:
    without: format of the line in the log if that is impossible.

  Returns:
    '', or why that is impossible, which is logged.
  """
  try:
    path = build.library(ffi.include_dir(), jaxlib.version.__version__, source)
    library = ctypes.CDLL(str(path))
    for name in names:
      handler = ffi.pycapsule(getattr(library, name))
      ffi.register_ffi_target(name, handler, platform='cpu')
  except (build.NoKernels, OSError, AttributeError, RuntimeError) as e:
    log.info(without, e)
    return str(e)
  return ''
