"""Groups of slots, each with its own cache, that decode side by side.

A decode step of a small model keeps one core busy, so on a CPU there is a lane
for each core. All lanes run the same compiled programs on the same weights,
each from its own thread. An accelerator has one lane. The text of a sequence
does not depend on its lane.
"""

import functools
import time
from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np

from gpt.decoding import blocks, sampling
from gpt.devices import num_cores
from gpt.model.params import Params
from serving.engine import jobs
from serving.engine.jobs import Sequence
from serving.engine.prefixes import BLOCK, PrefixCache
from serving.engine.programs import MANY_ROWS, Programs
from serving.engine.weights import Weights

# Steps of a block in which some row yields its first token: few, so that the
# token comes soon. With MANY_ROWS nearly every block holds such a row, so there
# the limit would cost too much.
FIRST_STEPS = 4
# Larger weights are limited by memory bandwidth, not by a core's caches: one
# lane then reads them once for all rows.
LANE_BYTES = 64 << 20
NOTHING = np.zeros(0, np.int32)


def lane_count(slots: int, params: Params) -> int:
  """The number of lanes that is fastest for these weights on this machine."""
  size = sum(x.nbytes for x in jax.tree.leaves(params))
  if jax.default_backend() != 'cpu' or size > LANE_BYTES:
    return 1
  return min(slots, num_cores())


class Lane:
  """Some slots and the device state behind them.

  Args:
    index: of the lane.
    programs: compiled for `programs.slots` slots.
    slots: how many of them may be used.

  Attributes:
    active: sequences that hold a slot.
  """

  def __init__(self, index: int, programs: Programs, slots: int) -> None:
    self.index = index
    self.active: list[Sequence] = []
    self._programs = programs
    self._cfg = programs.model.cfg
    self._free = list(range(slots))[::-1]  # The newest last: it is in caches.
    # Free slot -> the weights and the tokens of the columns left in it.
    self._left: dict[int, tuple[Weights, np.ndarray]] = {}
    self._sampling = sampling.settings(programs.slots)
    # Number of rows -> running average of the seconds a decode step takes.
    self._step_seconds: dict[int, float] = {}
    # Sequences whose columns others may want, with their slots.
    self._news: list[tuple[Sequence, int]] = []
    # In bfloat16 a decode step rounds otherwise than a prefill does: reusing
    # its columns could change a text.
    self._only_prompts = self._cfg.dtype != 'float32'
    self._state: Any = None

  def reset(self) -> None:
    """Clears the device state; no sequence may be active."""
    self._state = self._programs.new_state()
    self._news.clear()
    self._left.clear()

  def warm_up(self, params: Params) -> None:
    """Runs every program once: first runs are slow."""
    self.reset()
    self._state = self._programs.warm_up(params, self._state)

  @property
  def free(self) -> int:
    return len(self._free)

  def take(self, seq: Sequence, prefixes: PrefixCache | None) -> None:
    """Gives a sequence a slot; the next `step` fills its cache.

    Args:
      prefixes: it begins with the longest part of its prompt that these have,
        or that was left in a free slot; None: all of it is computed.
    """
    slot = self._free[-1]
    if prefixes is not None and seq.job.weights is not None:
      weights, tokens = seq.job.weights, seq.window(0)
      kept = {i: self._common(i, weights, tokens) for i in self._free[::-1]}
      slot = max(kept, key=kept.__getitem__)
      columns = prefixes.find(weights, tokens)
      found = sum(piece.shape[2] for piece in columns)
      if found > kept[slot]:
        seq.columns = columns
      else:
        seq.kept = kept[slot]
      if not seq.sampled:
        seq.cached = max(found, kept[slot])
    self._free.remove(slot)
    self._left.pop(slot, None)
    seq.lane, seq.slot = self.index, slot
    self.active.append(seq)
    s, rows = seq.job.sampling, self._sampling
    rows.seed[slot] = seq.seed
    rows.temperature[slot] = s.temperature
    rows.top_k[slot] = s.top_k
    # Far smaller values are 0 in float32: an empty set, or a division by zero.
    rows.top_p[slot] = max(s.top_p, 1e-6)
    rows.min_p[slot] = s.min_p
    rows.repetition[slot] = max(s.repetition, 1e-6)
    rows.frequency[slot] = s.frequency
    rows.presence[slot] = s.presence

  def release(self, seq: Sequence) -> None:
    """Takes the slot from a sequence that has ended or was cancelled."""
    self._free_slot(seq)
    self._news.append((seq, seq.slot))

  def preempt(self, seq: Sequence, reserve: Callable[[int], bool]) -> None:
    """Takes the slot from a sequence that continues later.

    Args:
      reserve: takes memory for its columns; if there is none, they are
        computed again.
    """
    n, window = len(seq) - 1 - seq.start, self._cfg.block_size
    stride = jobs.stride(seq.job.sampling.overflow, window)
    filled = seq.start == blocks.window_start(len(seq), window, stride)
    size = n * self._programs.column_bytes
    if filled and n and reserve(size):
      columns = self._programs.read_columns(self._state, seq.slot, 0, n)
      seq.columns, seq.reserved = [columns], size
    self._free_slot(seq)
    seq.start = -1

  def _free_slot(self, seq: Sequence) -> None:
    self.active.remove(seq)
    self._free.append(seq.slot)
    if columns := self._columns_of(seq):
      self._left[seq.slot] = columns

  def _columns_of(self, seq: Sequence) -> tuple[Weights, np.ndarray] | None:
    """The weights and the tokens of the columns that others may use, if any."""
    weights = seq.job.weights
    if seq.start or weights is None:  # It has slid, or never began.
      return None
    tokens = seq.window(0)
    if self._only_prompts:
      tokens = tokens[: len(seq.prompt) - 1]
    return weights, tokens

  def _common(self, slot: int, weights: Weights, tokens: np.ndarray) -> int:
    """Columns of a free slot that begin a window of these tokens."""
    known, left = self._left.get(slot, (None, NOTHING))
    if known is not weights:
      return 0
    n = min(len(tokens), len(left))
    differ = np.flatnonzero(tokens[:n] != left[:n])
    n = int(differ[0]) if len(differ) else n
    return n if n >= BLOCK else 0  # Fewer are not worth a word.

  def keep(self, weights: Collection[Weights]) -> None:
    """Forgets the columns of all other weights."""
    self._left = {
      slot: left for slot, left in self._left.items() if left[0] in weights
    }

  def enter_columns(self, prefixes: PrefixCache) -> None:
    """Offers the columns of new prompts and of completed texts for reuse."""
    for seq, slot in self._news:
      if columns := self._columns_of(seq):
        read = functools.partial(self._programs.read_columns, self._state, slot)
        prefixes.enter(*columns, read)
    self._news.clear()

  def step(
    self,
  ) -> list[tuple[Sequence, list[int], np.ndarray | None, bool]]:
    """Decodes one block for every sequence of the lane that can continue.

    Returns:
      [(sequence, new ids, raw logits float32[n, V] or None, slid)]. Sequences
      without room, whose prompt still waits for its scores, or whose reader is
      behind are left out.
    """
    window, out = self._cfg.block_size, []
    groups: dict[Any, list[tuple[Sequence, bool]]] = {}
    for seq in self.active:
      if seq.room(window) <= 0 or not seq.scored or seq.job.behind:
        continue
      stride = jobs.stride(seq.job.sampling.overflow, window)
      slid = blocks.window_start(len(seq), window, stride) != seq.start
      moved = slid and seq.start >= 0
      if slid:
        self._fill(seq, stride)
      # Jobs that began before a reload keep their weights.
      # Constrained ones need a new bias at every step.
      kind = seq.job.weights, seq.constraint is not None
      groups.setdefault(kind, []).append((seq, moved))
    fresh = any(not seq.sampled for g in groups.values() for seq, _ in g)
    for (weights, _), group in groups.items():
      out += self._decode(weights.params, group, fresh)
    return out

  def _fill(self, seq: Sequence, stride: int) -> None:
    """Fills the slot's cache from the current start of the window."""
    job = seq.job
    assert job.weights is not None
    seq.start = blocks.window_start(len(seq), self._cfg.block_size, stride)
    tokens, first, seq.kept = seq.window(seq.start), seq.kept, 0
    if seq.uniforms is None:  # Drawn while the prompt is prefilled.
      seq.uniforms = self._programs.uniforms(seq.seed, 0)
    if seq.columns:
      first = sum(piece.shape[2] for piece in seq.columns)
      self._state = self._programs.write_columns(
        self._state, seq.slot, seq.columns
      )
      seq.columns = []
    self._state = self._programs.fill(
      job.weights.params,
      self._state,
      seq.slot,
      tokens[first:],
      first,
      *self._rows_of(seq),
    )
    self._news.append((seq, seq.slot))

  def _rows_of(
    self, seq: Sequence
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """bool, int32, float32[V]: in the prompt, counts, bias of a slot."""
    in_prompt_V = np.zeros(self._cfg.vocab_size, bool)
    in_prompt_V[seq.prompt] = True
    return in_prompt_V, seq.counts(self._cfg.vocab_size), seq.bias_V

  def _decode(
    self, params: Params, group: list[tuple[Sequence, bool]], fresh: bool
  ) -> list[tuple[Sequence, list[int], np.ndarray | None, bool]]:
    """Decodes one block for sequences that share their weights.

    Args:
      group: (sequence, whether its window has just moved).
      fresh: some sequence of the lane has no token yet.
    """
    window = self._cfg.block_size
    for seq, _ in group:
      if seq.constraint is not None:  # Its bias has changed, nothing else.
        self._state = self._programs.fill(
          params, self._state, seq.slot, NOTHING, 0, *self._rows_of(seq)
        )
    rooms = [seq.room(window) for seq, _ in group]
    b = self._programs.rows(len(group))
    room = max(rooms)
    if fresh and b < MANY_ROWS:
      room = min(room, 1 if b == 1 else FIRST_STEPS)
    wanted = any(seq.job.sampling.logprobs is not None for seq, _ in group)
    k = self._block_steps(b, room, wanted)
    rows = {
      seq.slot: (seq.last_token, len(seq) - 1 - seq.start, len(seq.sampled))
      for seq, _ in group
    }
    # Idle slots pad the program's rows. Rows at the window's end write to the
    # cache's spare columns, which are never read.
    idle = [s for s in range(self._programs.slots) if s not in rows]
    rows |= {slot: (0, window, 0) for slot in idle[: b - len(group)]}
    slots = sorted(rows)
    uniform_bk = np.zeros((b, k), np.float32)
    for seq, _ in group:
      uniform_bk[slots.index(seq.slot)] = self._draw(seq, k)
    slots_b = np.array(slots, np.int32)
    last_b, length_b, step_b = np.array(
      [rows[slot] for slot in slots], np.int32
    ).T.copy()
    began = time.perf_counter()
    for seq, _ in group:
      seq.last_time = seq.last_time or began
    self._state, tokens_bk, logits_bkV = self._programs.block(
      params,
      self._state,
      slots_b,
      last_b,
      length_b,
      step_b,
      self._sampling,
      uniform_bk,
      wanted,
    )
    tokens_bk = np.asarray(tokens_bk).tolist()
    self._time_step(b, (time.perf_counter() - began) / k)
    out = []
    for (seq, slid), room in zip(group, rooms):
      i, logits = slots.index(seq.slot), None
      if seq.job.sampling.logprobs is not None:
        logits = np.asarray(logits_bkV)[i, :room]
      out.append((seq, tokens_bk[i][:room], logits, slid))
    return out

  def _draw(self, seq: Sequence, k: int) -> np.ndarray:
    """float32[k]: the random numbers of the next k steps."""
    at, drawn = len(seq.sampled) - seq.drawn, seq.uniforms
    if drawn is None or at + k > len(drawn):
      seq.drawn, at = len(seq.sampled), 0
      drawn = self._programs.uniforms(seq.seed, seq.drawn)
    seq.uniforms = np.asarray(drawn)
    return seq.uniforms[at : at + k]

  def _block_steps(self, b: int, room: int, logits: bool) -> int:
    """Steps of the next block: long blocks cost less, short ones wait less."""
    steps = self._programs.steps(b, logits)
    step = self._step_seconds.get(b, 0.0)
    limit = self._programs.block_seconds
    longest = max((k for k in steps if k * step <= limit), default=1)
    # A few steps too many cost less than another dispatch.
    enough = [k for k in steps if room <= k <= room * 4 // 3]
    below = [k for k in steps if k <= room]
    best = enough[0] if enough else (below or steps)[-1]
    return max(min(longest, best), steps[0])

  def _time_step(self, b: int, seconds: float) -> None:
    old = self._step_seconds.get(b, seconds)
    self._step_seconds[b] = 0.8 * old + 0.2 * seconds
