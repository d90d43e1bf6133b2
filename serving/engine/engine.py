"""Continuous batching: one thread that owns the device and all slots.

Every turn of the loop drops what nobody wants any more, gives free slots to
waiting choices, moves windows that are full, and decodes one block for all
slots. What happens in a block depends on no neighbour: parameters are arrays
with one entry a row, and randomness is counted by (seed, token).
"""

import concurrent.futures
import dataclasses
import logging
import threading
import time

from serving.engine import jobs
from serving.engine.lanes import Lane, lane_count
from serving.engine.programs import Programs
from serving.engine.scheduler import Scheduler
from serving.engine.scores import PromptScores, choice_logprobs
from serving.http import errors
from serving.metrics import ABORTS

log = logging.getLogger('rgpt.serve')

# Prompts prefilled between two blocks, so that running streams go on; a lane.
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
    lanes: how many; None: as many as pay. shapes: see Programs.
  """

  def __init__(
    self,
    model,
    weights,
    slots,
    max_queue,
    metrics,
    post,
    on_death,
    lanes=None,
    shapes=None,
  ):
    self.block_size = model.cfg.block_size
    lanes = lanes or lane_count(slots, weights.params)
    in_lane = -(-slots // lanes)
    self.programs = Programs(model, in_lane, lanes, shapes)
    self.lanes = [
      Lane(self.programs, min(in_lane, slots - first))
      for first in range(0, slots, in_lane)
    ]
    self.scheduler = Scheduler(slots, max_queue)
    self.state = LOADING
    self._lock = threading.Lock()  # of the state
    self.weights = weights
    self._metrics = metrics
    self._post = post
    self._on_death = on_death
    self._wake = threading.Event()
    self._stopping = False
    self._outbox = []
    self._failures = 0
    self._workers = concurrent.futures.ThreadPoolExecutor(
      len(self.lanes), thread_name_prefix='rgpt-lane'
    )
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

  def close(self) -> None:
    """Takes no more requests; what runs goes on."""
    with self._lock:
      if self.state in (LOADING, READY):
        self.state = DRAINING

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
      for lane in self.lanes:
        lane.warm_up(self.weights.params)
      with self._lock:
        opening = self.state == LOADING
        self.state = READY if opening else self.state
      if opening:
        seconds = time.perf_counter() - began
        log.info('ready: %d programs in %.1f s', programs, seconds)
      while not self._stopping:
        self._turn()
    except BaseException as e:
      self.state = FAILED
      self._on_death(e)
      self._fail_everything(errors.internal())

  @property
  def _active(self) -> list:
    """Sequences that hold a slot."""
    return [seq for lane in self.lanes for seq in lane.active]

  def _turn(self) -> None:
    self._drop_cancelled()
    self._admit()
    self._score()
    self._decode()
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
    for seq in self._active:
      if seq.job.cancelled:
        self._release(seq)

  def _recover(self, lane, error: Exception) -> None:
    """Fails the requests whose state is lost; the lane starts from nothing."""
    self._failures += 1
    log.error('a step has failed; its requests end', exc_info=error)
    for job in {seq.job for seq in lane.active}:
      self._fail(job, errors.internal(), 'error')
    if self._failures >= MAX_FAILURES:
      raise error
    lane.reset()

  def _fail(self, job, error, cause: str) -> None:
    if not job.cancelled:
      job.cancelled = cause
      self._outbox.append((job, jobs.Failed(error)))
    if self.scheduler.drop(job):
      self._close(job)
    for seq in self._active:
      if seq.job is job:
        self._release(seq)

  def _fail_everything(self, error) -> None:
    running = {seq.job for seq in self._active}
    for job in running.union(self.scheduler.waiting_jobs()):
      self._fail(job, error, 'error')
    self._flush()

  def _release(self, seq) -> None:
    """Takes the slot from a sequence that has ended or is not wanted."""
    seq.lane.release(seq)
    if self.scheduler.release(seq):
      self._close(seq.job)

  def _close(self, job) -> None:
    job.ended = time.perf_counter()
    if job.cancelled in ABORTS:  # Not: it has waited too long for a slot.
      self._metrics.aborted.labels(job.cancelled).inc()
    elif not job.cancelled:
      self._metrics.success.labels(job.sequences[-1].finish).inc()
      self._metrics.e2e.observe(job.ended - job.created)
    self._outbox.append((job, jobs.Closed()))

  def _admit(self) -> None:
    """Gives free slots to waiting choices, a few between two blocks."""
    limit = sum(lane.free for lane in self.lanes)
    if self._active:
      limit = min(limit, ADMIT_AT_ONCE * len(self.lanes))
    for _ in range(limit):
      lane = max(self.lanes, key=lambda lane: lane.free)
      seq = self.scheduler.next()
      if seq is None:
        return
      job = seq.job
      seq.lane = lane
      lane.take(seq)
      if job.weights is None:
        job.weights = self.weights
        self._metrics.queue_time.observe(job.started - job.created)
        self._metrics.prompt_tokens.inc(job.prompt_tokens)
        self._outbox.append((job, jobs.Started()))
      if job.wants_scores:
        number = seq.index // job.sampling.n
        if number not in job.scores:
          job.scores[number] = PromptScores(seq.prompt, job, self.block_size)
          if job.scores[number].done:  # A single token has no pass to wait for.
            self._post_scores(job, number)
        seq.scores = job.scores[number]

  def _score(self) -> None:
    """One pass over a prompt for one of those that want its scores."""
    for seq in self._active:
      if seq.scored:
        continue
      try:
        seq.scores.advance(self.programs, seq.job.weights.params)
      except Exception as e:
        self._recover(seq.lane, e)
        return
      if seq.scored:
        self._post_scores(seq.job, seq.index // seq.job.sampling.n)
      return

  def _post_scores(self, job, number: int) -> None:
    event = jobs.Scored(number, job.scores[number].tokens)
    self._outbox.append((job, event))

  def _decode(self) -> None:
    """One block in every lane, all at the same time."""
    for seq in self._active:
      if seq.scored and seq.room(self.block_size) <= 0:
        self._progress(seq, seq.end('length'))
    busy = [lane for lane in self.lanes if lane.active]
    others = [self._workers.submit(lane.step) for lane in busy[1:]]
    results = []  # of all lanes, before any of them is touched
    for lane, future in zip(busy, [None, *others]):
      try:
        results.append((future.result() if future else lane.step(), None))
      except Exception as e:
        results.append(([], e))
    now = time.perf_counter()
    for lane, (rows, error) in zip(busy, results):
      for row in rows:
        self._accept(*row, now)
      if error is not None:
        self._recover(lane, error)
    if busy and not any(error for _, error in results):
      self._failures = 0

  def _accept(self, seq, ids, logits_kV, slid: bool, now: float) -> None:
    """Takes what a block has sampled for a sequence."""
    if seq.job.cancelled:
      return
    logprobs = None
    if logits_kV is not None:
      logprobs = choice_logprobs(logits_kV, ids, seq.job.sampling.logprobs)
    before, counted = len(seq.sampled), seq.counted
    delta = seq.accept(ids, logprobs)
    self._metrics.slides.inc(slid)
    self._metrics.generation_tokens.inc(seq.counted - counted)
    self._observe(seq, len(seq.sampled) - before, now)
    self._progress(seq, delta)

  def _observe(self, seq, tokens: int, now: float) -> None:
    """Times of newly sampled tokens."""
    job = seq.job
    if job.first is None:
      job.first = now
      self._metrics.ttft.observe(now - job.created)
    # There is none before a sequence's first token.
    gaps = tokens - (len(seq.sampled) == tokens)
    if gaps:
      self._metrics.inter_token.observe((now - seq.last_time) / tokens, gaps)
    seq.last_time = now

  def _progress(self, seq, delta) -> None:
    """Passes on new text; frees the slot of a sequence that has ended."""
    if delta is not None:
      self._outbox.append((seq.job, delta))
    if seq.finish:
      self._outbox.append((seq.job, jobs.Finished(seq.index, seq.finish)))
      self._release(seq)
