"""Frequencies of the rotary position embedding, scaled for long contexts.

`config.model.rope_scaling` is '' (none), 'linear:FACTOR' (Chen et al. 2023,
arXiv:2306.15595) or 'llama3:FACTOR,LOW,HIGH,CONTEXT', the rule of Llama 3.1.
This module imports neither JAX nor numpy when it is loaded: launchers check
options first.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpt.errors import UserError, quoted

if TYPE_CHECKING:
  import numpy as np

# Kind -> its parameters, all positive numbers.
SCALINGS = {
  'linear': ('FACTOR',),
  'llama3': ('FACTOR', 'LOW', 'HIGH', 'CONTEXT'),
}


def rope_frequencies(
  head_dim: int, base: float, scaling: str = ''
) -> 'np.ndarray':
  """float32[K / 2]: radians per position of each pair, base^(-2i / K).

  'linear' divides all of them by FACTOR. 'llama3' divides those whose
  wavelength exceeds CONTEXT / LOW, keeps those below CONTEXT / HIGH, and
  interpolates between.
  """
  import numpy as np  # Not for launchers that only check options.

  half = head_dim // 2
  freqs = base ** (-np.arange(half, dtype=np.float32) / half)
  kind, values = parse_scaling(scaling)
  if kind == 'linear':
    freqs = freqs / values[0]
  elif kind == 'llama3':
    factor, low, high, context = values
    turns = context * freqs / (2 * math.pi)  # Within the original context.
    kept = np.clip((turns - low) / (high - low), 0, 1)
    freqs = freqs * (kept + (1 - kept) / factor)
  return freqs.astype(np.float32)


def parse_scaling(text: str) -> tuple[str, Sequence[float]]:
  """(kind, its parameters) of `config.model.rope_scaling`; ('', ()) for ''.

  Raises:
    UserError: an unknown kind, or parameters it does not have.
  """
  if not text:
    return '', ()
  kind, _, given = text.partition(':')
  try:
    values = [float(x) for x in given.split(',')]
  except ValueError:
    values = []
  names = SCALINGS.get(kind, ())
  valid = len(values) == len(names) and all(0 < x < math.inf for x in values)
  if valid and kind == 'llama3':
    valid = values[1] < values[2]
  if not names or not valid:
    allowed = ' or '.join(
      repr(f'{name}:{",".join(values)}') for name, values in SCALINGS.items()
    )
    raise UserError(
      f"model.rope_scaling {quoted(text)} is not known; allowed: '', "
      f'{allowed}, with positive numbers and LOW < HIGH'
    )
  return kind, values
