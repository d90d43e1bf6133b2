"""Every program the server ever runs, compiled before it reports ready.

Shapes are the only thing a program is compiled for: prompt lengths in buckets,
numbers of rows, steps a dispatch, filled columns. Requests are rounded up to
what exists, so none of them can cause a compilation. Each compiled program is
called directly; there is no tracing cache to fall through.
"""

import concurrent.futures
import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np

from gpt.decoding import blocks, sampling
from gpt.devices import num_cores
from serving.http.schemas import MAX_TOP_LOGPROBS

ROW_COUNTS = (1, 4)  # and all slots, over all lanes
MANY_ROWS = 8
STEPS = (1, 4, 16)  # of a block; each costs seconds of start-up
UNIFORMS = 256  # random numbers drawn at once for a sequence
COMPILE_EVENT = '/jax/core/compile/backend_compile_duration'


class CompileCount:
  """Counts compilations of this process, from the moment it is made."""

  def __init__(self):
    self._lock = threading.Lock()
    self.value = 0
    jax.monitoring.register_event_duration_secs_listener(self._listen)

  def _listen(self, event: str, duration: float, **_) -> None:
    if event == COMPILE_EVENT:
      with self._lock:
        self.value += 1


@functools.cache
def compile_count() -> CompileCount:
  """The one counter: JAX keeps listeners for ever."""
  return CompileCount()


def admit(model, params, state, slot, tokens_1L, in_prompt_V, counts_V, bias_V):
  """Prefills a slot, at a request's start and after each slide.

  Args:
    slot: int32 scalar.
    tokens_1L: int32[1, L], right-padded to a bucket.
    in_prompt_V, counts_V, bias_V: bool, int32, float32[V], for the penalties.

  Returns:
    The new DecodeState.
  """
  row = blocks.prefill(model, params, tokens_1L)
  state = blocks.insert(state, slot, row, in_prompt_V, bias_V)
  counts = jax.lax.dynamic_update_slice(state.counts, counts_V[None], (slot, 0))
  return state.replace(counts=counts)


def score(model, params, tokens_1L, targets_L):
  """Log-probabilities of given next tokens, and the most probable ones.

  Args:
    tokens_1L: int32[1, L] inputs. targets_L: int32[L].

  Returns:
    (float32[L] of the targets, float32[L, C] largest, int32[L, C] their ids).
  """
  logits_LV = model.apply({'params': params}, tokens_1L)[0]
  logp_LV = jax.nn.log_softmax(logits_LV)
  vocab = jnp.arange(logits_LV.shape[-1], dtype=jnp.int32)[None]
  hit_LV = vocab == targets_L[:, None]
  target_L = jnp.sum(jnp.where(hit_LV, logp_LV, 0.0), axis=-1)
  top = min(MAX_TOP_LOGPROBS, logits_LV.shape[-1])
  best_LC, ids_LC = jax.lax.top_k(logp_LV, top)
  return target_L, best_LC, ids_LC.astype(jnp.int32)


def block_shapes(
  slots: int, lanes: int, block_size: int
) -> list[tuple[int, int, int]]:
  """(rows, steps, bucket) of a lane's decode programs.

  All numbers of steps exist for the whole window. Shorter buckets exist for
  the long blocks, where a generation spends its time: doubling ones, and for
  many rows, whose caches cost more than the weights, eighths of the window.
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
  """The compiled programs of one model, for lanes of a number of slots.

  Args:
    model: the GPT.
    slots: of a lane.
    lanes: how many share the rows.
    shapes: (rows, steps, bucket) of the decode programs; None: `block_shapes`.
  """

  def __init__(self, model, slots: int, lanes: int = 1, shapes=None):
    self.model = model
    self.slots = slots
    self.block_size = model.cfg.block_size
    self._shapes = shapes or block_shapes(slots, lanes, self.block_size)
    self._blocks = {}
    self._admit = {}
    self._score = self._uniforms = self._new_state = None

  def compile(self, params) -> int:
    """Compiles everything, several programs at once; gives their number.

    Args:
      params: the weights, or ShapeDtypeStructs of them.
    """
    params = shapes_of(params)
    jobs = self._jobs(params)
    # XLA compiles without the interpreter lock; tracing needs it.
    with concurrent.futures.ThreadPoolExecutor(num_cores()) as pool:
      futures = [pool.submit(job) for job in jobs]
      for future in futures:
        future.result()
    return len(jobs)

  def _jobs(self, params):
    cfg, model, slots = self.model.cfg, self.model, self.slots
    int32 = jnp.int32
    state = jax.eval_shape(lambda: blocks.init_state(cfg, slots))
    vocab = (cfg.vocab_size,)

    def block(b, k, bucket):
      row = array((b,), int32)
      s = shapes_of(sampling.settings(b))
      every, columns = b == slots, bucket
      if every and bucket == self.block_size:
        columns += blocks.SPARE  # The whole cache is read without a copy.
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

    def prefill(length):
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

    def scoring():
      length = self.block_size
      self._score = (
        jax.jit(score, static_argnums=0)
        .lower(
          model, params, array((1, length), int32), array((length,), int32)
        )
        .compile()
      )

    def uniforms():
      program = jax.jit(
        lambda seed, step: sampling.uniforms(seed[None], step[None], UNIFORMS)[
          0
        ]
      )
      self._uniforms = program.lower(
        array((), jnp.uint32), array((), int32)
      ).compile()

    def new_state():
      program = jax.jit(lambda: blocks.init_state(cfg, slots))
      self._new_state = program.lower().compile()

    jobs = [functools.partial(block, *shape) for shape in self._shapes]
    jobs += [
      functools.partial(prefill, n) for n in blocks.buckets(self.block_size)
    ]
    return [*jobs, scoring, uniforms, new_state]

  def new_state(self):
    """An empty DecodeState."""
    return self._new_state()

  def warm_up(self, params, state):
    """Runs everything once on an idle state; gives the state."""
    vocab, zeros = self.model.cfg.vocab_size, np.zeros
    for length in self._admit:
      state = self.admit(
        params,
        state,
        0,
        zeros(length, np.int32),
        zeros(vocab, bool),
        zeros(vocab, np.int32),
        zeros(vocab, np.float32),
      )
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
    return jax.block_until_ready(state)

  def admit(self, params, state, slot, tokens, in_prompt_V, counts_V, bias_V):
    """As `admit`; `tokens` is int32[n] with n <= block_size."""
    length = blocks.bucket_for(max(1, len(tokens)), self.block_size)
    padded = np.zeros((1, length), np.int32)
    padded[0, : len(tokens)] = tokens
    return self._admit[length](
      params, state, np.int32(slot), padded, in_prompt_V, counts_V, bias_V
    )

  def rows(self, n: int) -> int:
    """The number of rows of the program that decodes n."""
    return min(b for b, _, _ in self._shapes if b >= n)

  def steps(self, b: int) -> list[int]:
    """Numbers of steps there are programs for, with b rows; ascending."""
    return sorted({k for a, k, _ in self._shapes if a == b})

  def uniforms(self, seed: int, step: int):
    """float32[UNIFORMS] of `sampling.uniforms`, from `step` on; not awaited."""
    return self._uniforms(np.uint32(seed), np.int32(step))

  def block(
    self, params, state, slots_b, last_b, length_b, step_b, s, uniform_bk
  ):
    """As `decode.decode_block`, for a b of `rows` and a k of `steps`.

    Slots are in ascending order; rows of length block_size are not decoded.
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
      s,
      uniform_bk=uniform_bk,
    )

  def score(self, params, tokens, targets):
    """As `score`, for int32[n] tokens and targets, as numpy of length n."""
    n = len(tokens)
    padded = np.zeros((2, self.block_size), np.int32)
    padded[0, :n], padded[1, :n] = tokens, targets
    out = self._score(params, padded[:1], padded[1])
    return tuple(np.asarray(x)[:n] for x in out)


def array(shape, dtype):
  return jax.ShapeDtypeStruct(shape, dtype)


def shapes_of(tree):
  """ShapeDtypeStructs of arrays."""
  return jax.tree.map(lambda x: array(np.shape(x), x.dtype), tree)
