"""Generation: completions of token prompts of any length, several at once.

Built on gpt/decoding/blocks.py. The server runs its own loop on the same
programs.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gpt.decoding.blocks import (
  bucket_for,
  init_state,
  jit_decode_block,
  jit_insert,
  jit_prefill,
  jit_refill,
  steps_until_slide,
  stride_for,
  window_start,
)
from gpt.decoding.sampling import SamplingSettings
from gpt.errors import UserError
from gpt.model import GPT, GPTConfig
from gpt.model.kv_cache import init_cache
from gpt.model.params import Params
from gpt.tokenizers import Tokenizer


def generate(
  model: GPT,
  params: Params,
  prompts: Sequence[Sequence[int]],
  settings: SamplingSettings,
  max_tokens: int,
  *,
  bias_V: np.ndarray | None = None,
  stop_ids: Collection[int] = (),
  window: str = 'slide',
  block_steps: int = 8,
) -> Iterator[tuple[int, list[int] | None]]:
  """Streams completions of B token prompts.

  A single decode program serves the whole call (two with window='exact'):
  compiling more, smaller ones takes longer than they save.

  Args:
    prompts: B token sequences, none empty (start from BOS).
    settings: sampling.settings of B rows.
    max_tokens: maximum number of tokens to sample per row.
    bias_V: float32[V], added to the logits of all rows.
    stop_ids: a row ends at the first of these, which is not yielded.
    window: what happens at the window's end: 'slide' by half a window, 'exact'
      (by one token), or 'stop'.
    block_steps: tokens per dispatch, from blocks.BLOCK_STEPS; it does not
      change the result.

  Yields:
    (row, new tokens), and (row, None) once when a row has ended.

  Raises:
    UserError: invalid arguments; a prompt longer than the window with
      window='stop'.
  """
  cfg = model.cfg
  stride = stride_for(window, cfg.block_size)
  tokens = [list(map(int, p)) for p in prompts]
  check_request(cfg, tokens, max_tokens, window)
  rows = len(tokens)
  if bias_V is None:
    bias_V = np.zeros(cfg.vocab_size, np.float32)
  longest = min(max(map(len, tokens)) + max_tokens - 1, cfg.block_size)
  bucket = bucket_for(longest, cfg.block_size)
  start = [-1] * rows
  sampled = [0] * rows
  groups = [
    _DeviceRows(model, jax.device_put(params, device), members, device, bucket)
    for members, device in rows_per_device(rows)
  ]
  while any(group.active for group in groups):
    # Dispatch a block on every device before waiting for any result.
    running = []
    for group in groups:
      active = list(group.active)
      if not active:
        continue
      for r in active:
        first = window_start(len(tokens[r]), cfg.block_size, stride)
        if first != start[r]:
          group.fill(r, tokens[r], first, start[r] < 0, bias_V)
          start[r] = first
      until_slide = [
        steps_until_slide(len(tokens[r]), cfg.block_size, stride)
        for r in active
      ]
      # With a window that moves at every token, only the first step counts.
      moving = window == 'exact' and max(until_slide) == 1
      new_bk = group.decode(
        tokens,
        {r: len(tokens[r]) - 1 - start[r] for r in active},
        sampled,
        settings,
        k=1 if moving or max_tokens == 1 else block_steps,
      )
      running.append((group, active, until_slide, new_bk))
    for group, active, until_slide, new_bk in running:
      new_bk = np.asarray(new_bk)
      for i, r in enumerate(active):
        room = min(until_slide[i], max_tokens - sampled[r])
        new = new_bk[i, :room].tolist()
        stop = next((j for j, t in enumerate(new) if t in stop_ids), None)
        taken = new if stop is None else new[:stop]
        tokens[r] += taken
        sampled[r] += len(taken)
        if taken:
          yield r, taken
        full = window == 'stop' and len(tokens[r]) > cfg.block_size
        if stop is not None or full or sampled[r] >= max_tokens:
          group.active.remove(r)
          yield r, None


def rows_per_device(rows: int) -> list[tuple[list[int], Any]]:
  """[(row indices, device)]: split over CPU devices; one accelerator."""
  devices = jax.local_devices()
  devices = devices if devices[0].platform == 'cpu' else devices[:1]
  share = -(-rows // min(rows, len(devices)))
  return [
    (list(range(i, min(i + share, rows))), device)
    for i, device in zip(range(0, rows, share), devices)
  ]


class _DeviceRows:
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
      cache = jax.device_put(init_cache(cfg, 1, self._bucket), self._device)
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
  ) -> jax.Array:
    """Dispatches a block; returns int32[slots, k] without waiting for it."""
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
    return new_bk


def check_request(
  cfg: GPTConfig,
  prompts: Sequence[Sequence[int]],
  max_tokens: int,
  window: str,
) -> None:
  """Raises UserError for arguments that `generate` rejects."""
  stride_for(window, cfg.block_size)
  if max_tokens < 1:
    raise UserError(f'max_tokens {max_tokens} must be at least 1')
  for tokens in prompts:
    if not tokens:
      raise UserError('the prompt is empty; start from BOS')
    invalid = [t for t in tokens if not 0 <= t < cfg.vocab_size]
    if invalid:
      raise UserError(
        f'token {invalid[0]} is outside the vocabulary of {cfg.vocab_size}'
      )
    if window == 'stop' and len(tokens) > cfg.block_size:
      raise UserError(
        f'the prompt has {len(tokens)} tokens; with window=stop at most the '
        f'context of {cfg.block_size} fits: shorten it or use window=slide'
      )


def ban_bias(tokenizer: Tokenizer) -> np.ndarray:
  """float32[V]: -inf for tokens that must never be sampled, else 0."""
  bias_V = np.zeros(tokenizer.vocab_size, np.float32)
  bias_V[list(tokenizer.unsampleable_ids)] = -np.inf
  return bias_V
