"""Generation: completions of token prompts of any length, several at once.

Built on gpt/kernels, or on gpt/decoding/blocks.py where they cannot be used.
The server runs its own loop on the same programs.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from gpt import kernels
from gpt.decoding.blocks import (
  bucket_for,
  for_decoding,
  steps_until_slide,
  stride_for,
  window_start,
)
from gpt.decoding.device_rows import DeviceRows
from gpt.decoding.kernel_rows import KernelRows
from gpt.decoding.sampling import SamplingSettings
from gpt.errors import UserError
from gpt.model import GPT, GPTConfig
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
  weights: str = 'float32',
  drafts: bool = True,
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
    weights, drafts: see kernels.plan_for.

  Yields:
    (row, new tokens), and (row, None) once when a row has ended.

  Raises:
    UserError: invalid arguments; a prompt longer than the window with
      window='stop'.
  """
  model = for_decoding(model)
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
  groups: list[DeviceRows | KernelRows]
  if plan := kernels.plan_for(cfg, weights, drafts):
    groups = [KernelRows(plan, params, rows)]
  else:
    groups = [
      DeviceRows(model, jax.device_put(params, device), members, device, bucket)
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
      room = [
        min(n, max_tokens - sampled[r]) for n, r in zip(until_slide, active)
      ]
      new_bk, k = group.decode(
        tokens,
        {r: len(tokens[r]) - 1 - start[r] for r in active},
        sampled,
        settings,
        k=1 if moving or max_tokens == 1 else block_steps,
        useful=max(room),
      )
      running.append((group, active, room, new_bk, k))
    for group, active, room, new_bk, k in running:
      new_bk = np.asarray(new_bk)[:, :k]
      for i, r in enumerate(active):
        new = new_bk[i, : room[i]].tolist()
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
