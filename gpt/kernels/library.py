"""Loads the kernels and says for which models they can be used."""

import functools
import os

import jax

from gpt.devices import num_cores
from gpt.errors import UserError
from gpt.kernels.calls import DRAFT, Plan
from gpt.model.config import GPTConfig
from gpt.native import build, targets

TARGETS = ('rgpt_fill', 'rgpt_decode')
WEIGHTS = ('float32', 'bfloat16')
# Kernels were measured on two cores; every product waits for all its threads.
MAX_THREADS = 16


def plan_for(
  cfg: GPTConfig, weights: str = 'float32', drafts: bool = True
) -> Plan | None:
  """The Plan of the kernels for a model; None: decode in JAX.

  Args:
    weights: 'bfloat16' rounds weights, keys and values, and where the processor
      multiplies bfloat16, activations too. 'float32' is exact; weights that are
      stored in bfloat16 stay so.
    drafts: whether a single row tries what its own text suggests. It does not
      change the text.

  Raises:
    UserError: bfloat16 was asked for, and the kernels cannot be used.
  """
  half = weights == 'bfloat16'
  problem = unsupported(cfg, half) or load()
  if problem:
    if half:
      raise UserError(
        f'bfloat16 weights in decoding need the compiled kernels: {problem}'
      )
    return None
  return Plan(
    cfg,
    threads=min(num_cores(), MAX_THREADS),
    pairs=half or (cfg.param_dtype == 'bfloat16' and is_even(cfg)),
    rounded=half,
    cache_pairs=half,
    draft=DRAFT if drafts else 0,
  )


def unsupported(cfg: GPTConfig, half: bool = False) -> str:
  """Why the kernels cannot be used here with this model, or ''."""
  if os.environ.get('RGPT_KERNELS') == 'off':
    return 'RGPT_KERNELS is off'
  if jax.default_backend() != 'cpu':
    return f'the backend is {jax.default_backend()}, not a CPU'
  if cfg.dtype == 'bfloat16':
    return 'model.dtype is bfloat16'  # Activations, too: another function.
  if half and not is_even(cfg):
    return 'bfloat16 needs even widths'
  config = jax.config
  if (
    config.jax_default_prng_impl != 'threefry2x32'
    or not config.jax_threefry_partitionable
  ):
    return 'JAX uses another random number generator'
  return ''


def is_even(cfg: GPTConfig) -> bool:
  """Whether pairs of bfloat16 fit all widths."""
  widths = cfg.n_embd, cfg.head_dim, cfg.mlp_width
  return not any(width % 2 for width in widths)


@functools.cache
def load() -> str:
  """Registers the kernels with XLA; '' or why that is impossible."""
  without = 'decoding without compiled kernels: %s'
  return targets.register(build.DECODING, TARGETS, without)
