"""Rows of `generate`, decoded by the compiled kernels."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from gpt.decoding.sampling import SamplingSettings
from gpt.kernels.calls import (
  Plan,
  jit_decode,
  jit_fill,
  jit_seat,
  new_state,
)
from gpt.kernels.weights import packed
from gpt.model.params import Params


class KernelRows:
  """All rows; row i is in slot i. `active` shrinks as rows end."""

  def __init__(self, plan: Plan, params: Params, rows: int) -> None:
    self._plan, self._rows = plan, rows
    self._weights = packed(plan.cfg, params, plan.pairs)
    self._state = new_state(plan, rows)
    self.active = list(range(rows))

  def fill(
    self,
    row: int,
    tokens: list[int],
    first: int,
    fresh: bool,
    bias_V: np.ndarray,
  ) -> None:
    """Prefills tokens[first:-1] into the row's slot."""
    cfg = self._plan.cfg
    slot = np.int32(row)
    if fresh:
      in_prompt_V = np.zeros(cfg.vocab_size, bool)
      in_prompt_V[tokens] = True
      counts_V = np.zeros(cfg.vocab_size, np.int32)
      self._state = jit_seat(self._state, slot, in_prompt_V, counts_V, bias_V)
    context = tokens[first:-1]
    if context:
      padded = np.zeros(cfg.block_size, np.int32)
      padded[: len(context)] = context
      count = np.int32(len(context))
      self._state, _ = jit_fill(
        self._plan, self._weights, self._state, slot, np.int32(0), count, padded
      )

  def decode(
    self,
    tokens: Sequence[list[int]],
    length: Mapping[int, int],
    sampled: Sequence[int],
    settings: SamplingSettings,
    *,
    k: int,
    useful: int,
  ) -> tuple[jax.Array, int]:
    """As DeviceRows.decode, of min(k, useful) steps."""
    steps = min(k, useful)
    rows = self.active + [0] * (self._rows - len(self.active))
    self._state, new_bk, _ = jit_decode(
      self._plan,
      self._weights,
      self._state,
      np.array(rows, np.int32),
      np.array([tokens[r][-1] for r in rows], np.int32),
      np.array([length.get(r, 0) for r in rows], np.int32),
      np.array([sampled[r] for r in rows], np.int32),
      settings,
      np.int32(len(self.active)),
      np.int32(steps),
    )
    return new_bk, steps
