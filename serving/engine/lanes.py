"""Slots and the device state behind them, in lanes that work side by side.

A decode step of a small model keeps one core busy, so on a CPU there is a lane
for each core: a group of slots with a cache of its own. All lanes run the same
compiled programs on the same weights, each from a thread of its own. On an
accelerator there is one lane. Which lane a sequence is in changes nothing in
its text.
"""

import time

import jax
import numpy as np

from gpt.decoding import blocks, sampling
from gpt.devices import num_cores
from serving.engine import jobs
from serving.engine.programs import MANY_ROWS

# A block that takes longer makes streams jerky and new requests wait.
BLOCK_SECONDS = 0.03
# Steps of a block in which some row is to give its first token: it should not
# have to wait for many more, nor the others lose much. With many rows, in
# nearly every block one begins.
FIRST_STEPS = 4
# Weights beyond this share the memory's bandwidth, not the caches of cores:
# then all rows should use them at once.
LANE_BYTES = 64 << 20


def lane_count(slots: int, params) -> int:
  """How many lanes pay for these weights on this machine."""
  size = sum(x.nbytes for x in jax.tree.leaves(params))
  if jax.default_backend() != 'cpu' or size > LANE_BYTES:
    return 1
  return min(slots, num_cores())


class Lane:
  """Some slots, and the device state behind them.

  Args:
    programs: the Programs, compiled for `programs.slots` slots.
    slots: how many of them may be used.

  Attributes:
    active: sequences that hold a slot.
  """

  def __init__(self, programs, slots: int):
    self.active = []
    self._programs = programs
    self._cfg = programs.model.cfg
    self._free = list(range(slots))[::-1]
    self._sampling = sampling.settings(programs.slots)
    self._step_seconds = {}  # rows -> running average of a decode step
    self._state = None

  def reset(self) -> None:
    """An empty device state; no sequence may be active."""
    self._state = self._programs.new_state()

  def warm_up(self, params) -> None:
    """Runs everything once: first runs are slow."""
    self.reset()
    self._state = self._programs.warm_up(params, self._state)

  @property
  def free(self) -> int:
    return len(self._free)

  def take(self, seq) -> None:
    """Gives a sequence a slot; its cache is filled by the next `step`."""
    slot = seq.slot = self._free.pop()
    self.active.append(seq)
    s, rows = seq.job.sampling, self._sampling
    rows.seed[slot] = seq.seed
    rows.temperature[slot] = s.temperature
    rows.top_k[slot] = s.top_k
    # float32 takes what is far smaller for 0, and 0 for nothing or infinity.
    rows.top_p[slot] = max(s.top_p, 1e-6)
    rows.min_p[slot] = s.min_p
    rows.repetition[slot] = max(s.repetition, 1e-6)
    rows.frequency[slot] = s.frequency
    rows.presence[slot] = s.presence

  def release(self, seq) -> None:
    """Takes the slot from a sequence that has ended or is not wanted."""
    self.active.remove(seq)
    self._free.append(seq.slot)

  def step(self) -> list:
    """One block for every sequence of the lane that can go on.

    Returns:
      [(sequence, new ids, raw logits float32[n, V] or None, slid)]; none for
      those that may not sample any more or wait for their prompt's scores.
    """
    window, groups, out = self._cfg.block_size, {}, []
    for seq in self.active:
      if seq.room(window) <= 0 or not seq.scored:
        continue
      stride = jobs.stride(seq.job.sampling.overflow, window)
      slid = blocks.window_start(len(seq), window, stride) != seq.start
      if slid:
        self._prefill(seq, stride)
      # Jobs that began before a reload keep their weights.
      group = groups.setdefault(seq.job.weights, [])
      group.append((seq, slid and bool(seq.sampled)))
    fresh = any(not seq.sampled for g in groups.values() for seq, _ in g)
    for weights, group in groups.items():
      out += self._decode(weights.params, group, fresh)
    return out

  def _prefill(self, seq, stride: int) -> None:
    """Fills the slot's cache for where the window starts now."""
    job, vocab = seq.job, self._cfg.vocab_size
    seq.start = blocks.window_start(len(seq), self._cfg.block_size, stride)
    in_prompt_V = np.zeros(vocab, bool)
    in_prompt_V[seq.prompt] = True
    if seq.uniforms is None:  # Drawn while the prompt is prefilled.
      seq.uniforms = self._programs.uniforms(seq.seed, 0)
    self._state = self._programs.admit(
      job.weights.params,
      self._state,
      seq.slot,
      seq.window(seq.start),
      in_prompt_V,
      seq.counts(vocab),
      job.bias_V,
    )

  def _decode(self, params, group, fresh: bool) -> list:
    """One block for sequences that share their weights."""
    window = self._cfg.block_size
    rooms = [seq.room(window) for seq, _ in group]
    b = self._programs.rows(len(group))
    room = max(rooms)
    if fresh and b < MANY_ROWS:
      room = min(room, 1 if b == 1 else FIRST_STEPS)
    k = self._block_steps(b, room)
    rows = {
      seq.slot: (seq.last_token, len(seq) - 1 - seq.start, len(seq.sampled))
      for seq, _ in group
    }
    # Others only fill the program up: what a row does past the window's end
    # goes to spare columns, which nobody reads.
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
      jax.tree.map(lambda x: x[slots_b], self._sampling),
      uniform_bk,
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

  def _draw(self, seq, k: int):
    """float32[k]: the random numbers of the next k steps."""
    at = len(seq.sampled) - seq.drawn
    if at + k > len(seq.uniforms):
      seq.drawn, at = len(seq.sampled), 0
      seq.uniforms = self._programs.uniforms(seq.seed, seq.drawn)
    seq.uniforms = np.asarray(seq.uniforms)
    return seq.uniforms[at : at + k]

  def _block_steps(self, b: int, room: int) -> int:
    """Steps of the next block: long ones cost less, short ones wait less."""
    steps = self._programs.steps(b)
    step = self._step_seconds.get(b, 0.0)
    longest = max((k for k in steps if k * step <= BLOCK_SECONDS), default=1)
    # A few steps too many cost less than another dispatch.
    enough = [k for k in steps if room <= k <= room * 4 // 3]
    below = [k for k in steps if k <= room]
    return max(min(longest, (enough or below or steps)[-1]), steps[0])

  def _time_step(self, b: int, seconds: float) -> None:
    old = self._step_seconds.get(b, seconds)
    self._step_seconds[b] = 0.8 * old + 0.2 * seconds
