"""Rows of a batch: the share of each process, and how many run at once."""

from typing import Any

import jax
from jax.sharding import Mesh

from gpt import devices, processor

# Tokens a CPU device processes at once, or half of them if only their
# activations fit its share of the L3 cache (docs/performance.md).
CPU_MICRO_TOKENS = 512


def micro_batch_size(config: Any, mesh: Mesh) -> int:
  """Rows a device processes at once (`parallel.micro_batch_size`)."""
  rows = -(-config.batch_size // devices.batch_shards(mesh))
  wanted = config.parallel.micro_batch_size
  if not wanted:
    if jax.default_backend() != 'cpu':
      return rows
    tokens = CPU_MICRO_TOKENS
    share = processor.l3_bytes(jax.local_device_count())
    kept = _activation_bytes(config.model)
    if tokens // 2 * kept <= share < tokens * kept:
      tokens //= 2
    wanted = max(1, tokens // config.model.block_size)
  wanted = min(wanted, rows)
  divisor = max(m for m in range(1, wanted + 1) if rows % m == 0)
  return divisor if 2 * divisor > wanted else wanted


def _activation_bytes(model: Any) -> int:
  """Bytes per token that a backward pass reads again, about."""
  # Old configs have neither option.
  F = model.get('mlp_width') or 4 * model.n_embd
  pieces = 9 * model.n_embd + (4 if model.get('mlp') == 'swiglu' else 3) * F
  return 4 * model.n_layer * pieces


def local_rows(
  dataset: Any, step: int, batch_size: int, padded: int, mesh: Mesh
) -> dict:
  """This process's share of the global batch of `padded` rows."""
  own = devices.process_rows(padded, mesh)
  rows = slice(min(own.start, batch_size), min(own.stop, batch_size))
  return devices.pad_rows(dataset.batch_at(step, rows), own.stop - own.start)
