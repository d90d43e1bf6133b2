"""Rows of `generate` on one device, decoded by gpt/decoding/blocks.py."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gpt.decoding.blocks import (
  init_state,
  jit_decode_block,
  jit_insert,
  jit_prefill,
  jit_refill,
)
from gpt.decoding.sampling import SamplingSettings
from gpt.model import GPT
from gpt.model.kv_cache import KVCache, init_cache
from gpt.model.params import Params


class DeviceRows:
  """The rows decoded on one device: row i is in slot i - members[0].

  `active` shrinks as rows end; array shapes never change.
  """

  def __init__(
    self,
    model: GPT,
    params: Params,
    members: list[int],
    device: Any,  # A jax.Device.
    bucket: int,
  ) -> None:
    self._model, self._params, self._device = model, params, device
    self._first, self._slots = members[0], len(members)
    self._bucket = bucket
    self._state = jax.device_put(init_state(model.cfg, len(members)), device)
    self.active = members

  @functools.cached_property
  def _empty(self) -> KVCache:
    """Of prompts of one token. Making it takes longer than inserting it."""
    return jax.device_put(
      init_cache(self._model.cfg, 1, self._bucket), self._device
    )

  def fill(
    self,
    row: int,
    tokens: list[int],
    first: int,
    fresh: bool,
    bias_V: np.ndarray,
  ) -> None:
    """Prefills tokens[first:-1] into the row's slot."""
    cfg = self._model.cfg
    context = tokens[first:-1]
    if context:
      padded = np.zeros((1, self._bucket), np.int32)
      padded[0, : len(context)] = context
      cache = jit_prefill(
        self._model, self._params, jax.device_put(padded, self._device)
      )
    else:
      cache = self._empty
    slot = np.int32(row - self._first)
    if fresh:
      in_prompt_V = np.zeros(cfg.vocab_size, bool)
      in_prompt_V[tokens] = True
      self._state = jit_insert(self._state, slot, cache, in_prompt_V, bias_V)
    else:
      self._state = jit_refill(self._state, slot, cache)

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
    """Dispatches a block of k steps without waiting for it.

    Args:
      length: row -> tokens in its cache.
      sampled: tokens sampled so far, of all rows.
      useful: steps after which no row has use for more. Ignored: a block of
        another length would be another program.

    Returns:
      (int32[rows, >= steps], steps).
    """
    del useful
    # Slots of ended rows repeat an active row, to keep the shapes.
    idle = self._slots - len(self.active)
    pick = np.array(self.active + self.active[:1] * idle, np.int32)
    self._state, new_bk, _ = jit_decode_block(
      self._model,
      self._params,
      self._state,
      pick - self._first,
      np.array([tokens[r][-1] for r in pick], np.int32),
      np.array([length[r] for r in pick], np.int32),
      np.array([sampled[r] for r in pick], np.int32),
      jax.tree.map(lambda x: x[pick], settings),
      k=k,
      bucket=self._bucket,
    )
    return new_bk, k
