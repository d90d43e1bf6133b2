"""Continuous batching: one thread that owns the device and all slots.

Every turn of the loop drops what nobody wants any more, gives free slots to
waiting choices, moves windows that are full, and decodes one block for all
slots. What happens in a block depends on no neighbour: parameters are arrays
with one entry a row, and randomness is counted by (seed, token).
"""

import dataclasses
import logging
import threading
import time

import jax
import numpy as np

from gpt import decode, sampling
from serving import errors, jobs
from serving.programs import Programs
from serving.scheduler import Scheduler
from serving.scores import PromptScores, choice_logprobs

log = logging.getLogger('rgpt.serve')

# A block that takes longer makes streams jerky and new requests wait.
BLOCK_SECONDS = 0.03
# Prompts prefilled between two blocks, so that running streams go on.
ADMIT_AT_ONCE = 4
# Failed steps in a row after which the state is beyond repair.
MAX_FAILURES = 3
LOADING, READY, DRAINING, FAILED = 'loading', 'ready', 'draining', 'failed'


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
  """One set of weights; jobs keep theirs while newer ones are in use.

  Attributes:
    params: arrays on the device.
    fingerprint: short text that differs between sets.
  """

  params: object
  fingerprint: str


class Engine:
  """The slots, the thread that works them, and what other threads may ask.

  Args:
    model: the GPT. weights: the Weights to begin with.
    slots: choices decoded at once.
    max_queue: requests that may wait.
    metrics: a Metrics.
    post: called with a list of (job, event), on the engine's thread.
    on_death: called with the error that ends the thread.
    shapes: see Programs.
  """

  def __init__(
    self, model, weights, slots, max_queue, metrics, post, on_death,
    shapes=None,
  ):
    self.model = model
    self.block_size = model.cfg.block_size
    self.programs = Programs(model, slots, shapes)
    self.scheduler = Scheduler(slots, max_queue)
    self.state = LOADING
    self.weights = weights
    self._metrics = metrics
    self._post = post
    self._on_death = on_death
    self._wake = threading.Event()
    self._stopping = False
    self._free = list(range(slots))[::-1]
    self._active = []  # sequences that hold a slot
    self._fresh = False  # somebody waits for a first token
    self._device = None  # DecodeState
    self._outbox = []
    self._failures = 0
    self._step_seconds = {}  # rows -> running average of a decode step
    # Per slot; the last one is scratch.
    self._sampling = sampling.params(slots + 1)
    self._thread = threading.Thread(
      target=self._run, name='rgpt-engine', daemon=True
    )

  # What other threads call.

  def start(self) -> None:
    """Starts the thread; it compiles everything before it is ready."""
    self._thread.start()

  def check_open(self) -> None:
    """Raises ApiError (503) unless new requests are taken."""
    if self.state != READY:
      raise errors.unavailable(self.state)

  def submit(self, job) -> None:
    """Queues a filled job for which `scheduler.reserve` was called."""
    self.scheduler.submit(job)
    self._wake.set()

  def cancel(self, job, cause: str) -> None:
    """Nobody wants the job any more; its slots are free within one block."""
    if not job.cancelled:
      job.cancelled = cause
      self._wake.set()

  def swap(self, weights: Weights) -> None:
    """New weights for jobs that have not begun."""
    self.weights = weights
    self._wake.set()

  def stop(self) -> None:
    """Ends the thread after the block in progress."""
    self._stopping = True
    self._wake.set()

  def join(self, timeout: float) -> bool:
    """Waits for the thread; False if it is still busy."""
    if self._thread.is_alive():
      self._thread.join(timeout)
    return not self._thread.is_alive()

  # The thread.

  def _run(self) -> None:
    try:
      began = time.perf_counter()
      programs = self.programs.compile(self.weights.params)
      self._device = self.programs.warm_up(self.weights.params)
      if self.state == LOADING:
        self.state = READY
        seconds = time.perf_counter() - began
        log.info('ready: %d programs in %.1f s', programs, seconds)
      while not self._stopping:
        self._turn()
    except BaseException as e:
      self.state = FAILED
      self._on_death(e)
      self._fail_everything(errors.internal())

  def _turn(self) -> None:
    self._drop_cancelled()
    try:
      self._admit()
      if self._active:
        self._score()
        self._decode()
        self._failures = 0
    except Exception as e:
      self._recover(e)
    self._flush()
    if not self._active and not self.scheduler.waiting_jobs():
      self._wake.wait()
    self._wake.clear()

  def _flush(self) -> None:
    if self._outbox:
      self._post(self._outbox)
      self._outbox = []

  def _drop_cancelled(self) -> None:
    for job in self.scheduler.waiting_jobs():
      if job.cancelled and self.scheduler.drop(job):
        self._close(job)
    for seq in list(self._active):
      if seq.job.cancelled:
        self._release(seq)

  def _recover(self, error: Exception) -> None:
    """Fails the requests whose state is lost and starts from an empty one."""
    self._failures += 1
    log.error('a step has failed; its requests end', exc_info=error)
    for seq in list(self._active):
      self._fail(seq.job, errors.internal(), 'error')
    if self._failures >= MAX_FAILURES:
      raise error
    self._device = self.programs.new_state()

  def _fail(self, job, error, cause: str) -> None:
    if not job.cancelled:
      job.cancelled = cause
      self._outbox.append((job, jobs.Failed(error)))
    if self.scheduler.drop(job):
      self._close(job)
    for seq in [s for s in self._active if s.job is job]:
      self._release(seq)

  def _fail_everything(self, error) -> None:
    for job in self.scheduler.waiting_jobs():
      self._fail(job, error, 'error')
    for seq in list(self._active):
      self._fail(seq.job, error, 'error')
    self._flush()

  def _release(self, seq) -> None:
    """Takes the slot from a sequence that has ended or is not wanted."""
    self._active.remove(seq)
    self._free.append(seq.slot)
    if self.scheduler.release(seq):
      self._close(seq.job)

  def _close(self, job) -> None:
    job.ended = time.perf_counter()
    if job.cancelled:
      self._metrics.aborted.labels(job.cancelled).inc()
    else:
      self._metrics.e2e.observe(job.ended - job.created)
    self._outbox.append((job, jobs.Closed()))

  def _admit(self) -> None:
    """Gives free slots to waiting choices, a few between two blocks."""
    for _ in range(ADMIT_AT_ONCE if self._active else len(self._free)):
      seq = self._free and self.scheduler.next()
      if not seq:
        return
      seq.slot = self._free.pop()
      self._active.append(seq)
      job = seq.job
      if job.weights is None:
        job.weights = self.weights
        self._metrics.queue_time.observe(job.started - job.created)
        self._metrics.prompt_tokens.inc(job.prompt_tokens)
        self._outbox.append((job, jobs.Started()))
      self._set_sampling(seq)
      if job.wants_scores:
        n = job.sampling.n
        scores = job.scores.setdefault(
          seq.index // n, PromptScores(seq.prompt, job, self.block_size)
        )
        seq.scores = scores
      if job.sampling.max_tokens > 0:
        self._prefill(seq)
      self._fresh = True

  def _set_sampling(self, seq) -> None:
    s, rows, slot = seq.job.sampling, self._sampling, seq.slot
    rows.seed[slot] = seq.seed
    rows.temperature[slot] = s.temperature
    rows.top_k[slot] = s.top_k
    rows.top_p[slot] = s.top_p
    rows.min_p[slot] = s.min_p
    rows.repetition[slot] = s.repetition
    rows.frequency[slot] = s.frequency
    rows.presence[slot] = s.presence

  def _prefill(self, seq) -> None:
    """Fills the slot's cache for where the window starts now."""
    job = seq.job
    step = jobs.stride(job.sampling.overflow, self.block_size)
    seq.start = decode.window_start(len(seq), self.block_size, step)
    vocab = self.model.cfg.vocab_size
    in_prompt_V = np.zeros(vocab, bool)
    in_prompt_V[seq.prompt] = True
    counts_V = np.bincount(
      np.array(seq.sampled, np.int64), minlength=vocab
    ).astype(np.int32)
    self._device = self.programs.admit(
      job.weights.params, self._device, seq.slot, seq.window(seq.start),
      in_prompt_V, counts_V, job.bias_V,
    )

  def _score(self) -> None:
    """One pass over a prompt for one of those that want its scores."""
    for seq in list(self._active):
      scores = seq.scores
      if scores is None or scores.done:
        continue
      scores.advance(self.programs, seq.job.weights.params)
      if scores.done:
        event = jobs.Scored(seq.index // seq.job.sampling.n, scores.tokens)
        self._outbox.append((seq.job, event))
      return

  def _decode(self) -> None:
    """One block for every slot that can go on."""
    groups = {}
    for seq in list(self._active):
      if seq.scores is not None and not seq.scores.done:
        continue
      if seq.room(self.block_size) <= 0:
        self._progress(seq, seq.end('length'))
        continue
      s = jobs.stride(seq.job.sampling.overflow, self.block_size)
      if decode.window_start(len(seq), self.block_size, s) != seq.start:
        self._prefill(seq)
        self._metrics.slides.inc()
      groups.setdefault(seq.job.weights, []).append(seq)
    fresh, self._fresh = self._fresh, False
    for weights, group in groups.items():
      self._decode_group(weights.params, group, fresh)

  def _decode_group(self, params, group, fresh: bool) -> None:
    """One block for sequences that share their weights."""
    rooms = [seq.room(self.block_size) for seq in group]
    b = self.programs.rows(len(group))
    k = self._block_steps(b, 1 if fresh else max(rooms))
    spare = b - len(group)
    slots_b = np.array(
      [seq.slot for seq in group] + [self.programs.scratch] * spare, np.int32
    )
    rows = [(s.last_token, len(s) - 1 - s.start, len(s.sampled)) for s in group]
    last_b, length_b, step_b = np.array(
      rows + [(0, 0, 0)] * spare, np.int32
    ).T.copy()
    began = time.perf_counter()
    self._device, tokens_bk, logits_bkV = self.programs.block(
      params, self._device, slots_b, last_b, length_b, step_b,
      jax.tree.map(lambda x: x[slots_b], self._sampling), k,
    )
    tokens_bk = np.asarray(tokens_bk).tolist()
    now = time.perf_counter()
    self._time_step(b, (now - began) / k)
    for i, (seq, room) in enumerate(zip(group, rooms)):
      ids, logprobs = tokens_bk[i][:room], None
      if seq.job.sampling.logprobs is not None:
        logits_kV = np.asarray(logits_bkV)[i, : len(ids)]
        logprobs = choice_logprobs(logits_kV, ids, seq.job.sampling.logprobs)
      done = len(seq.sampled)
      delta = seq.accept(ids, logprobs)
      self._observe(seq, len(seq.sampled) - done, now)
      self._progress(seq, delta)

  def _block_steps(self, b: int, room: int) -> int:
    """Steps of the next block: long ones cost less, short ones wait less."""
    steps = self.programs.steps(b)
    step = self._step_seconds.get(b, 0.0)
    longest = max((k for k in steps if k * step <= BLOCK_SECONDS), default=1)
    # A few steps too many cost less than another dispatch.
    enough = [k for k in steps if room <= k <= room * 4 // 3]
    below = [k for k in steps if k <= room]
    return max(min(longest, (enough or below or steps)[-1]), steps[0])

  def _time_step(self, b: int, seconds: float) -> None:
    old = self._step_seconds.get(b, seconds)
    self._step_seconds[b] = 0.8 * old + 0.2 * seconds

  def _observe(self, seq, tokens: int, now: float) -> None:
    """Metrics of newly sampled tokens."""
    job = seq.job
    self._metrics.generation_tokens.inc(tokens)
    if job.first is None:
      job.first = now
      self._metrics.ttft.observe(now - job.created)
    if seq.last_time is not None:
      gap = (now - seq.last_time) / tokens
      self._metrics.inter_token.observe(gap, tokens)
    seq.last_time = now

  def _progress(self, seq, delta) -> None:
    """Passes on new text; frees the slot of a sequence that has ended."""
    if delta is not None:
      self._outbox.append((seq.job, delta))
    if seq.finish:
      self._metrics.success.labels(seq.finish).inc()
      self._outbox.append((seq.job, jobs.Finished(seq.index, seq.finish)))
      self._release(seq)
