"""Every program the server ever runs, compiled before it reports ready.

Programs differ in shapes alone: bucket of prompt lengths, number of rows, steps
per dispatch, filled columns. Requests are rounded up to a shape that exists, so
no request can cause a compilation. Compiled programs are called directly, not
through jit's tracing cache.
"""

import concurrent.futures
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt.decoding import blocks, sampling
from gpt.devices import num_cores
from gpt.model import GPT
from gpt.model.kv_cache import init_cache
from gpt.model.params import Params
from serving.engine.compilations import log_progress
from serving.engine.slots import (
  admit,
  extend,
  hidden,
  pad,
  read,
  score,
  seat,
  write,
)

ROW_COUNTS = (1, 4)  # and all slots; divided among the lanes
MANY_ROWS = 8
STEPS = (1, 4, 16)  # per block; each costs seconds of start-up
UNIFORMS = 256  # random numbers drawn at once for a sequence
SHORT = 256  # tokens of most texts that are embedded
FILL_LENGTHS = (32, 128)  # tokens that continue a prefix, at once
COLUMNS = 128  # read or written at once
PROGRESS_SECONDS = 5.0  # between two log lines while compiling


def block_shapes(
  slots: int, lanes: int, block_size: int
) -> list[tuple[int, int, int]]:
  """(rows, steps, bucket) of a lane's decode programs.

  Blocks of every length exist for the whole window. The longest blocks, where
  generation spends its time, also exist for shorter buckets: powers of two, and
  with many rows, whose caches cost more than the weights, eighths of it.
  """
  rows = {min(slots, -(-b // lanes)) for b in ROW_COUNTS} | {slots}
  shapes = []
  for b in sorted(rows):
    shapes += [(b, k, block_size) for k in STEPS]
    shorter = {c for c in blocks.buckets(block_size) if c >= 64}
    if b >= MANY_ROWS:
      shorter |= {block_size * i // 8 for i in range(1, 8)} - set(range(64))
    shapes += [(b, max(STEPS), c) for c in sorted(shorter - {block_size})]
  return shapes


class Programs:
  """The compiled programs of one model for lanes of a fixed number of slots.

  Args:
    slots: of a lane.
    lanes: how many share the rows.
    shapes: (rows, steps, bucket) of the decode programs; None: `block_shapes`.
  """

  # Longer blocks make streams jerky and new requests wait.
  block_seconds = 0.03

  def __init__(
    self,
    model: GPT,
    slots: int,
    lanes: int = 1,
    shapes: list[tuple[int, int, int]] | None = None,
  ) -> None:
    self.model = model
    self.slots = slots
    self.block_size = model.cfg.block_size
    self._shapes = shapes or block_shapes(slots, lanes, self.block_size)
    self._blocks: dict[tuple[int, int, int], Callable] = {}
    self._admit: dict[int, Callable] = {}
    self._extend: dict[int, Callable] = {}
    self._columns = min(COLUMNS, self.block_size)
    self._seat: Any = None
    self._read: Any = None
    self._write: Any = None
    self._score: Any = None
    self._hidden: dict[int, Callable] = {}
    self._uniforms: Any = None
    self._new_state: Any = None

  def prepare(self, params: Params, known: dict[tuple, Any]) -> Any:
    """The weights as the programs take them; twice is as good as once.

    Args:
      known: shared by weights that share arrays; see kernels.pack.
    """
    del known
    return params

  def compile(self, params: Params) -> int:
    """Compiles all programs, several at once, and logs its progress.

    Args:
      params: the weights, or ShapeDtypeStructs of them.

    Returns:
      The number of programs.
    """
    jobs = self._jobs(shapes_of(params))
    # XLA compiles without the interpreter lock; tracing needs it.
    pool = concurrent.futures.ThreadPoolExecutor(num_cores())
    with pool:
      futures = [pool.submit(job) for job in jobs]
      began = time.perf_counter()
      while True:
        done, left = concurrent.futures.wait(
          futures, PROGRESS_SECONDS, concurrent.futures.FIRST_EXCEPTION
        )
        for future in done:
          if future.exception():
            pool.shutdown(cancel_futures=True)
            future.result()
        if not left:
          return len(jobs)
        log_progress(len(done), len(jobs), time.perf_counter() - began)

  def _jobs(self, params: Params) -> list[Callable[[], None]]:
    """One function for each program; it compiles and stores it."""
    cfg, model, slots = self.model.cfg, self.model, self.slots
    int32 = jnp.int32
    state = jax.eval_shape(lambda: blocks.init_state(cfg, slots))
    vocab = (cfg.vocab_size,)

    def block(b: int, k: int, bucket: int) -> None:
      row = array((b,), int32)
      s = shapes_of(sampling.settings(b))
      every, columns = b == slots, bucket
      if every and bucket == self.block_size:
        columns += blocks.SPARE  # Reading the whole cache needs no copy.
      lowered = blocks.jit_decode_block.lower(
        model,
        params,
        state,
        row,
        row,
        row,
        row,
        s,
        k=k,
        bucket=columns,
        in_order=every,
        uniform_bk=array((b, k), jnp.float32),
      )
      self._blocks[b, k, bucket] = lowered.compile()

    def prefill(length: int) -> None:
      program = jax.jit(admit, static_argnums=0, donate_argnums=2)
      self._admit[length] = program.lower(
        model,
        params,
        state,
        array((), int32),
        array((1, length), int32),
        array(vocab, bool),
        array(vocab, int32),
        array(vocab, jnp.float32),
      ).compile()

    def extending(length: int) -> None:
      program = jax.jit(extend, static_argnums=0, donate_argnums=2)
      self._extend[length] = program.lower(
        model, params, state, *[array((), int32)] * 2, array((1, length), int32)
      ).compile()

    def seating() -> None:
      program = jax.jit(seat, donate_argnums=0)
      self._seat = program.lower(
        state,
        array((), int32),
        array(vocab, bool),
        array(vocab, int32),
        array(vocab, jnp.float32),
      ).compile()

    def copying() -> None:
      at = [array((), int32)] * 2
      reading = functools.partial(read, n=self._columns)
      columns = jax.eval_shape(reading, state, *at)
      self._read = jax.jit(reading).lower(state, *at).compile()
      program = jax.jit(write, donate_argnums=0)
      self._write = program.lower(state, *at, columns).compile()

    def scoring() -> None:
      length = self.block_size
      self._score = (
        jax.jit(score, static_argnums=0)
        .lower(
          model, params, array((1, length), int32), array((length,), int32)
        )
        .compile()
      )

    def hiding(length: int) -> None:
      shapes = array((1, length), int32), array((), jnp.float32)
      program = jax.jit(hidden, static_argnums=0)
      self._hidden[length] = program.lower(model, params, *shapes).compile()

    def uniforms() -> None:
      def draw(seed: Any, step: Any) -> Any:
        return sampling.uniforms(seed[None], step[None], UNIFORMS)[0]

      seed_and_step = array((), jnp.uint32), array((), int32)
      self._uniforms = jax.jit(draw).lower(*seed_and_step).compile()

    def new_state() -> None:
      program = jax.jit(lambda: blocks.init_state(cfg, slots))
      self._new_state = program.lower().compile()

    jobs = [functools.partial(block, *shape) for shape in self._shapes]
    lengths = blocks.buckets(self.block_size)
    jobs += [functools.partial(prefill, n) for n in lengths]
    jobs += [functools.partial(extending, n) for n in self._fill_lengths()]
    texts = {min(SHORT, self.block_size), self.block_size}
    jobs += [functools.partial(hiding, n) for n in texts]
    return [*jobs, seating, copying, scoring, uniforms, new_state]

  def _fill_lengths(self) -> list[int]:
    return sorted({min(n, self.block_size) for n in FILL_LENGTHS})

  def new_state(self) -> blocks.DecodeState:
    """An empty DecodeState."""
    return self._new_state()

  def warm_up(
    self, params: Params, state: blocks.DecodeState
  ) -> blocks.DecodeState:
    """Runs every program once on an idle state; returns the state."""
    vocab, zeros = self.model.cfg.vocab_size, np.zeros
    rows = zeros(vocab, bool), zeros(vocab, np.int32), zeros(vocab, np.float32)
    for length in self._admit:
      state = self.fill(params, state, 0, zeros(length, np.int32), 0, *rows)
    for length in self._extend:
      tokens = zeros(length, np.int32)
      state = self.fill(params, state, 0, tokens, 1, *rows)
    state = self.write_columns(state, 0, [self.read_columns(state, 0, 0, 1)])
    for b, k, bucket in self._shapes:
      slots_b, zeros_b = np.arange(b, dtype=np.int32), zeros(b, np.int32)
      length_b = np.full(b, bucket - 1, np.int32)
      state, _, _ = self.block(
        params,
        state,
        slots_b,
        zeros_b,
        length_b,
        zeros_b,
        sampling.settings(b),
        np.zeros((b, k), np.float32),
      )
    self.uniforms(0, 0)
    self.score(params, zeros(1, np.int32), zeros(1, np.int32))
    for length in self._hidden:
      self.hidden(params, zeros(length, np.int32))
    return jax.block_until_ready(state)

  def fill(
    self,
    params: Params,
    state: blocks.DecodeState,
    slot: int,
    tokens: np.ndarray,
    first: int,
    in_prompt_V: np.ndarray,
    counts_V: np.ndarray,
    bias_V: np.ndarray | None,
  ) -> blocks.DecodeState:
    """Prefills a slot when a request starts and after each slide.

    Args:
      tokens: int32[n] of columns first .. first + n - 1; n may be 0.
      first: columns that are filled already.
      in_prompt_V, counts_V, bias_V: bool, int32, float32[V].
    """
    at, longest = np.int32(slot), self._fill_lengths()[-1]
    if len(tokens) and not first:
      length = blocks.bucket_for(len(tokens), self.block_size)
      padded = pad(tokens, length)
      return self._admit[length](
        params, state, at, padded, in_prompt_V, counts_V, bias_V
      )
    state = self._seat(state, at, in_prompt_V, counts_V, bias_V)
    for i in range(0, len(tokens), longest):
      piece = tokens[i : i + longest]
      length = next(n for n in self._fill_lengths() if n >= len(piece))
      state = self._extend[length](
        params, state, at, np.int32(first + i), pad(piece, length)
      )
    return state

  def read_columns(
    self, state: blocks.DecodeState, slot: int, first: int, n: int
  ) -> np.ndarray:
    """float[2N, G, n, K]: a copy of n columns of a slot, from `first` on."""
    size, pieces = self._columns, []
    for i in range(first, first + n, size):
      at = min(i, state.cache.capacity - size)
      piece = np.asarray(self._read(state, np.int32(slot), np.int32(at)))
      end = min(i + size, first + n)
      pieces.append(piece[:, :, i - at : end - at])
    return np.concatenate(pieces, axis=2)

  def write_columns(
    self, state: blocks.DecodeState, slot: int, pieces: list[np.ndarray]
  ) -> blocks.DecodeState:
    """Puts columns, float[2N, G, n, K] each, into a slot from column 0 on."""
    columns = np.concatenate(pieces, axis=2)
    size, n = self._columns, columns.shape[2]
    for i in range(0, n, size):
      at = max(0, min(i, n - size))
      piece = columns[:, :, at : at + size]
      missing = size - piece.shape[2]
      piece = np.pad(piece, ((0, 0), (0, 0), (0, missing), (0, 0)))
      state = self._write(state, np.int32(slot), np.int32(at), piece)
    return state

  @property
  def column_bytes(self) -> int:
    """Size of the keys and values of one token."""
    cache = jax.eval_shape(lambda: init_cache(self.model.cfg, 1, 1))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))

  def rows(self, n: int) -> int:
    """Rows of the smallest program that decodes n sequences."""
    return min(b for b, _, _ in self._shapes if b >= n)

  def steps(self, b: int, logits: bool) -> list[int]:
    """Block lengths available with b rows, in ascending order."""
    del logits
    return sorted({k for a, k, _ in self._shapes if a == b})

  def uniforms(self, seed: int, step: int) -> jax.Array:
    """float32[UNIFORMS] of `sampling.uniforms` from `step` on; not awaited."""
    return self._uniforms(np.uint32(seed), np.int32(step))

  def block(
    self,
    params: Params,
    state: blocks.DecodeState,
    slots_b: np.ndarray,
    last_b: np.ndarray,
    length_b: np.ndarray,
    step_b: np.ndarray,
    s: sampling.SamplingSettings,
    uniform_bk: np.ndarray,
    logits: bool = True,
  ) -> tuple[blocks.DecodeState, jax.Array, jax.Array]:
    """As `blocks.decode_block`, for a b of `rows` and a k of `steps`.

    Slots are in ascending order; rows of length block_size are padding.
    The logits may be undefined unless `logits`. s: of all slots.
    """
    b, k = uniform_bk.shape
    longest = int(np.max(length_b, where=length_b < self.block_size, initial=1))
    bucket = min(
      c for a, j, c in self._shapes if (a, j) == (b, k) and c >= longest
    )
    return self._blocks[b, k, bucket](
      params,
      state,
      slots_b,
      last_b,
      length_b,
      step_b,
      jax.tree.map(lambda x: x[slots_b], s),
      uniform_bk=uniform_bk,
    )

  def score(
    self, params: Params, tokens: np.ndarray, targets: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `score`, for int32[n] tokens and targets; numpy of length n."""
    n = len(tokens)
    padded = np.zeros((2, self.block_size), np.int32)
    padded[0, :n], padded[1, :n] = tokens, targets
    target_L, best_LC, ids_LC = map(
      np.asarray, self._score(params, padded[:1], padded[1])
    )
    return target_L[:n], best_LC[:n], ids_LC[:n]

  def hidden(self, params: Params, tokens: np.ndarray) -> np.ndarray:
    """As `hidden`, for int32[n] tokens; numpy."""
    length = min(n for n in self._hidden if n >= len(tokens))
    padded, n = pad(tokens, length), np.float32(len(tokens))
    return np.asarray(self._hidden[length](params, padded, n))


def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype)


def shapes_of(tree: Any) -> Any:
  """ShapeDtypeStructs of arrays."""
  return jax.tree.map(lambda x: array(np.shape(x), x.dtype), tree)
