"""Generation: completions of token prompts, any length, several at once.

Built on gpt/decoding/blocks.py; the server runs its own loop around blocks.
"""

import jax
import numpy as np

from gpt.decoding import sampling
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
from gpt.errors import UserError
from gpt.model.kv_cache import init_cache
from gpt.tokenizers import StreamDecoder


def generate(
  model,
  params,
  prompts,
  s: sampling.SamplingParams,
  max_tokens: int,
  *,
  bias_V=None,
  stop_ids=(),
  window: str = 'slide',
  block_steps: int = 8,
  growing: bool = False,
):
  """Completions of token prompts, as they come.

  One program decodes all of it (two with window='exact'), because compiling
  another takes longer than what smaller ones would save.

  Args:
    prompts: list of B int sequences, none of them empty (BOS stands first).
    s: SamplingParams with B rows.
    max_tokens: most tokens to sample for each row.
    bias_V: float32[V] added to the logits of all rows, or None.
    stop_ids: a row ends with the first of these; it is not yielded.
    window: 'slide', 'exact' or 'stop' (end where the window would move).
    block_steps: tokens a dispatch (decode.BLOCK_STEPS); the text is the same.
    growing: compile a program for every bucket and read no more of the cache
      than is filled: for generations so long that it pays.

  Yields:
    (row, list of new tokens), then (row, None) once a row has ended.

  Raises:
    UserError: an argument that makes no sense; a prompt longer than the window
      with window='stop'.
  """
  cfg = model.cfg
  stride = stride_for(window, cfg.block_size)
  tokens = [list(map(int, p)) for p in prompts]
  check_request(cfg, tokens, max_tokens, window)
  rows = len(tokens)
  if bias_V is None:
    bias_V = np.zeros(cfg.vocab_size, np.float32)
  longest = min(max(map(len, tokens)) + max_tokens - 1, cfg.block_size)
  start = [-1] * rows
  sampled = [0] * rows
  groups = [
    _Group(model, jax.device_put(params, device), members, device)
    for members, device in share_out(rows)
  ]
  while any(group.active for group in groups):
    running = []
    for group in groups:
      active = list(group.active)
      if not active:
        continue
      for r in active:
        first = window_start(len(tokens[r]), cfg.block_size, stride)
        if first != start[r]:
          group.fill(r, tokens[r], first, start[r] < 0, longest, bias_V)
          start[r] = first
      until_slide = [
        steps_until_slide(len(tokens[r]), cfg.block_size, stride)
        for r in active
      ]
      # Where the window moves with every token, more than one would be noise.
      moving = window == 'exact' and max(until_slide) == 1
      length = {r: len(tokens[r]) - 1 - start[r] for r in active}
      filled = max(1, *length.values()) if growing else longest
      new_bk = group.decode(
        tokens,
        length,
        sampled,
        s,
        k=1 if moving or max_tokens == 1 else block_steps,
        bucket=bucket_for(filled, cfg.block_size),
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


def share_out(rows: int):
  """[(rows, device)]: a share for each CPU device; all for one accelerator."""
  devices = jax.local_devices()
  devices = devices if devices[0].platform == 'cpu' else devices[:1]
  share = -(-rows // min(rows, len(devices)))
  return [
    (list(range(i, min(i + share, rows))), device)
    for i, device in zip(range(0, rows, share), devices)
  ]


class _Group:
  """The rows that one device decodes. `active` shrinks, shapes never do."""

  def __init__(self, model, params, members, device):
    self._model, self._params, self._device = model, params, device
    self._first, self._slots = members[0], len(members)
    self._state = jax.device_put(init_state(model.cfg, len(members)), device)
    self.active = members

  def fill(self, row, tokens, first, fresh, longest, bias_V) -> None:
    """Prefills tokens[first:-1] into the row's slot."""
    cfg = self._model.cfg
    context = tokens[first:-1]
    length = bucket_for(longest, cfg.block_size)
    if context:
      padded = np.zeros((1, length), np.int32)
      padded[0, : len(context)] = context
      cache = jit_prefill(
        self._model, self._params, jax.device_put(padded, self._device)
      )
    else:
      cache = jax.device_put(init_cache(cfg, 1, length), self._device)
    slot = np.int32(row - self._first)
    if fresh:
      in_prompt_V = np.zeros(cfg.vocab_size, bool)
      in_prompt_V[tokens] = True
      self._state = jit_insert(self._state, slot, cache, in_prompt_V, bias_V)
    else:
      self._state = jit_refill(self._state, slot, cache)

  def decode(self, tokens, length, sampled, s, *, k, bucket):
    """Starts a block; returns its tokens int32[slots, k], to be waited for."""
    # Rows that have ended keep their place with another row's numbers.
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
      jax.tree.map(lambda x: x[pick], s),
      k=k,
      bucket=bucket,
    )
    return new_bk


def check_request(cfg, prompts, max_tokens: int, window: str) -> None:
  """Raises UserError for what `generate` would refuse."""
  stride_for(window, cfg.block_size)
  if max_tokens < 1:
    raise UserError(f'max_tokens {max_tokens} must be at least 1')
  for tokens in prompts:
    if not tokens:
      raise UserError('an empty prompt: start from BOS')
    wrong = [t for t in tokens if not 0 <= t < cfg.vocab_size]
    if wrong:
      raise UserError(
        f'token {wrong[0]} is outside the vocabulary of {cfg.vocab_size}'
      )
    if window == 'stop' and len(tokens) > cfg.block_size:
      raise UserError(
        f'the prompt has {len(tokens)} tokens, but with window=stop no more '
        f'than the context of {cfg.block_size} fit; shorten it or use '
        'window=slide'
      )


def prompt_tokens(tokenizer, prompt: str) -> list[int]:
  """Token ids of a prompt; an empty one starts from BOS."""
  return tokenizer.encode(prompt).tolist() or [tokenizer.bos_id]


def ban_bias(tokenizer) -> np.ndarray:
  """float32[V]: -inf for what must never be sampled, else 0."""
  bias_V = np.zeros(tokenizer.vocab_size, np.float32)
  bias_V[list(tokenizer.unsampleable_ids)] = -np.inf
  return bias_V


def complete(
  model, params, tokenizer, prompt, s, max_tokens, *, window='slide'
):
  """Pieces of text that continue one prompt; never half a character."""
  text = StreamDecoder(tokenizer)
  for _, new in generate(
    model,
    params,
    [prompt_tokens(tokenizer, prompt)],
    s,
    max_tokens,
    bias_V=ban_bias(tokenizer),
    stop_ids=(tokenizer.eos_id,),
    window=window,
  ):
    piece = text.flush() if new is None else ''.join(map(text.feed, new))
    if piece:
      yield piece
