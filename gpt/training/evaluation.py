"""The mean loss over a split, as nats, perplexity and bits per byte.

Training, `launch.evaluate` and notebooks share one program: quick estimates on
a fixed set of windows, or full passes over every target of a split.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from gpt import devices
from gpt.model import losses
from gpt.model.params import Params
from gpt.training.step import NOTHING, Frozen, Model, jit_eval_step

# Tokens a device processes at once.
CPU_TOKENS = 512
ACCELERATOR_TOKENS = 8192


class Evaluator:
  """Measures any parameters of one model on one dataset."""

  def __init__(
    self, model: Model, mesh: Mesh, dataset: Any, frozen: Frozen = NOTHING
  ) -> None:
    """`dataset`: of data.prepare.create_dataset; `frozen`: see step.py."""
    self._step = jit_eval_step(model, mesh)
    self._mesh, self._dataset, self._frozen = mesh, dataset, frozen
    on_cpu = mesh.devices.flat[0].platform == 'cpu'
    tokens = CPU_TOKENS if on_cpu else ACCELERATOR_TOKENS
    self._rows = max(1, tokens // model.cfg.block_size)
    self._rows *= devices.batch_shards(mesh)
    self._bytes_V = np.asarray(dataset.bytes_V, np.float32)

  def __call__(self, params: Params, split: str, windows: int | None) -> dict:
    """{'nats_per_token', 'ppl', 'bits_per_byte', 'tokens'} of a split.

    A full pass over conversations also has 'assistant_nats_per_token',
    'all_nats_per_token' and so on: over the assistant's tokens and over all
    tokens, whichever of them the training loss uses.

    Args:
      params: on the mesh, or numpy.
      windows: how many windows (or documents), the same ones every time; None:
        every target of the split exactly once.
    """
    dataset, rows, n = self._dataset, self._rows, len(self._dataset.losses)
    if windows is not None or n == 1:
      # As many masks as in a full pass, so that both are one program.
      same = itertools.tee(dataset.eval_batches(split, windows, rows), n)
      return self._measure(same, params)[0]
    passes = [
      dataset.with_loss(name).eval_batches(split, None, rows)
      for name in dataset.losses
    ]
    parts = dict(zip(dataset.losses, self._measure(passes, params)))
    return parts[dataset.loss_on] | {
      f'{name}_{key}': part[key] for name, part in parts.items() for key in part
    }

  def _measure(
    self, passes: Sequence[Iterator[Any]], params: Params
  ) -> list[dict]:
    """The values of passes over the same batches with different weights."""
    totals = np.zeros((len(passes), 3))
    own = devices.process_rows(self._rows, self._mesh)
    for batches in zip(*passes, strict=True):
      batch = batches[0]
      if len(batches) > 1:
        masks_BKT = np.stack([other['weights'] for other in batches], 1)
        batch = batch | {'weights': masks_BKT}
      batch = devices.pad_rows(batch, self._rows)
      batch = {name: x[own] for name, x in batch.items()}
      batch = devices.put_batch(batch, self._mesh)
      sums = self._step(params, batch, self._bytes_V, self._frozen)
      totals += np.asarray(sums, np.float64)
    return [_values(*total) for total in totals]


def _values(nats: float, tokens: float, n_bytes: float) -> dict:
  mean = nats / tokens if tokens else math.nan
  return {
    'nats_per_token': mean,
    'ppl': losses.perplexity(mean),
    'bits_per_byte': losses.bits_per_byte(nats, n_bytes),
    'tokens': int(tokens),
  }


def describe_parts(values: dict) -> list[str]:
  """One line for each part of a full pass over conversations; else none."""
  return [
    f'{what}: {values[f"{name}_nats_per_token"]:.4f} nats/token, '
    f'{values[f"{name}_bits_per_byte"]:.4f} bits/byte over '
    f'{values[f"{name}_tokens"]:,} tokens'
    for name, what in (('assistant', 'assistant only'), ('all', 'all tokens'))
    if f'{name}_tokens' in values
  ]
