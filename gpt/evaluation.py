"""The mean loss over a split, as nats, perplexity and bits per byte.

It exists so that training, `launch.evaluate` and notebooks measure with one
program: quickly on a fixed set of windows, or every target of a split once.
"""

import jax
import numpy as np

from gpt import losses, sharding
from gpt.train_step import jit_eval_step

# Tokens a device works on at once.
CPU_TOKENS = 512
ACCELERATOR_TOKENS = 8192


class Evaluator:
  """Measures any parameters of one model on one dataset."""

  def __init__(self, model, mesh, dataset):
    """Args: linen GPT; the mesh to use; a gpt.dataset.TextDataset."""
    self._step = jit_eval_step(model, mesh)
    self._mesh, self._dataset = mesh, dataset
    on_cpu = mesh.devices.flat[0].platform == 'cpu'
    tokens = CPU_TOKENS if on_cpu else ACCELERATOR_TOKENS
    self._rows = max(1, tokens // model.cfg.block_size) * mesh.size
    self._bytes_V = np.asarray(dataset.bytes_V, np.float32)

  def __call__(self, params, split: str, windows: int | None) -> dict:
    """{'nats_per_token', 'ppl', 'bits_per_byte', 'tokens'} of a split.

    Args:
      params: on the mesh, or numpy.
      windows: how many windows, the same ones every time; None: every target
        of the split exactly once.
    """
    total = np.zeros(3)
    for batch in self._dataset.eval_batches(split, windows, self._rows):
      batch = sharding.pad_rows(batch, self._rows)
      batch = sharding.put_batch(self._own_rows(batch), self._mesh)
      total += np.asarray(self._step(params, batch, self._bytes_V), np.float64)
    nats, tokens, n_bytes = total
    return {
      'nats_per_token': nats / tokens,
      'ppl': losses.perplexity(nats / tokens),
      'bits_per_byte': losses.bits_per_byte(nats, n_bytes),
      'tokens': int(tokens),
    }

  def _own_rows(self, batch: dict) -> dict:
    """This host's share of a batch."""
    share = self._rows // jax.process_count()
    first = share * jax.process_index()
    return {name: x[first : first + share] for name, x in batch.items()}
