"""Continuous batching: one thread owns the device and all slots.

Each turn of its loop releases cancelled sequences, gives free slots to waiting
ones, moves full windows, and decodes one block for all slots. A row does not
depend on its neighbours: sampling parameters are arrays with one entry per row,
and random numbers are indexed by (seed, token).
"""

import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable, Mapping

import numpy as np

from gpt.model import GPT
from serving.engine.errors import RequestFailed, StepFailed, Unavailable
from serving.engine.events import (
  Closed,
  Delta,
  Event,
  Failed,
  Finished,
  Started,
  size_of,
)
from serving.engine.jobs import Job, Sequence, hold_back
from serving.engine.kernel_programs import make_programs
from serving.engine.lanes import Lane, lane_count
from serving.engine.prefixes import PrefixCache
from serving.engine.scheduler import SLICE, Scheduler
from serving.engine.scores import choice_logprobs
from serving.engine.weights import Weights, prepared
from serving.metrics import ABORTS, Metrics

log = logging.getLogger('rgpt.serve')

# Prompts a lane prefills between two blocks; more would stall its streams.
ADMIT_AT_ONCE = 4
# A slice lasts this many times as long as a change of the sequence takes, but
# no longer than SLICE.
SLICE_TO_SWAP = 10
# Consecutive failed steps after which the engine gives up.
MAX_FAILURES = 3
LOADING, READY, DRAINING, FAILED = 'loading', 'ready', 'draining', 'failed'


class Engine:
  """The slots and the thread that works on them.

  Args:
    weights: for jobs that start before the first `swap`.
    slots: sequences decoded at once.
    max_queue: requests that may wait.
    post: called on the engine's thread with a list of (job, event).
    on_death: called with the error that ends the thread.
    lanes: how many; None: the fastest number.
    shapes: see Programs.
    precision: of the weights in decoding; see kernels.plan_for.
    adapters: weights by name for jobs that ask for one (Job.adapter); of the
      same shapes and dtypes as `weights`.
    prefix_bytes: memory for the columns of earlier prompts; see PrefixCache.
  """

  def __init__(
    self,
    model: GPT,
    weights: Weights,
    slots: int,
    max_queue: int,
    metrics: Metrics,
    post: Callable[[list[tuple[Job, Event]]], None],
    on_death: Callable[[BaseException], None],
    lanes: int | None = None,
    shapes: list[tuple[int, int, int]] | None = None,
    precision: str = 'float32',
    adapters: Mapping[str, Weights] | None = None,
    prefix_bytes: int = 0,
  ) -> None:
    self.block_size = model.cfg.block_size
    lanes = lanes or lane_count(slots, weights.params)
    self.programs = make_programs(model, slots, lanes, shapes, precision)
    in_lane = self.programs.slots
    self.lanes = [
      Lane(index, self.programs, min(in_lane, slots - first))
      for index, first in enumerate(range(0, slots, in_lane))
    ]
    self.scheduler = Scheduler(slots, max_queue)
    self.prefixes = PrefixCache(prefix_bytes)
    self.state = LOADING
    self._lock = threading.Lock()  # of the state
    self.weights, self.adapters = prepared(self.programs, weights, adapters)
    self._metrics = metrics
    self._post = post
    self._on_death = on_death
    self._wake = threading.Event()
    self._stopping = False
    self._outbox: list[tuple[Job, Event]] = []
    self._failures = 0
    self._swap_seconds = 0.0
    self._workers = concurrent.futures.ThreadPoolExecutor(
      len(self.lanes), thread_name_prefix='rgpt-lane'
    )
    self._thread = threading.Thread(
      target=self._run, name='rgpt-engine', daemon=True
    )

  # Called by other threads.

  def start(self) -> None:
    """Starts the thread, which compiles every program before it is ready."""
    self._thread.start()

  def check_open(self) -> None:
    """Raises Unavailable unless the engine takes new requests."""
    if self.state != READY:
      raise Unavailable(self.state)

  def close(self) -> None:
    """Refuses new requests; running ones continue."""
    with self._lock:
      if self.state in (LOADING, READY):
        self.state = DRAINING

  def submit(self, job: Job) -> None:
    """Queues a filled job whose place was reserved with the scheduler."""
    self.scheduler.submit(job)
    self._wake.set()

  def cancel(self, job: Job, cause: str) -> None:
    """Ends a job early; its slots are free within one block."""
    if not job.cancelled:
      job.cancelled = cause
      self._wake.set()

  def wake(self) -> None:
    """Has the thread look again: a reader has caught up."""
    self._wake.set()

  def swap(
    self, weights: Weights, adapters: Mapping[str, Weights] | None = None
  ) -> None:
    """Sets the weights of jobs that have not started yet.

    On the event loop, call weights.prepared first, on another thread.
    """
    self.weights, self.adapters = prepared(self.programs, weights, adapters)
    self._wake.set()

  def stop(self) -> None:
    """Ends the thread after its current block."""
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
      self._fail_everything(StepFailed())

  @property
  def _active(self) -> list[Sequence]:
    """Sequences that hold a slot."""
    return [seq for lane in self.lanes for seq in lane.active]

  @property
  def _jobs(self) -> set[Job]:
    """Requests that hold a slot or wait for one."""
    running = {seq.job for seq in self._active}
    return running.union(self.scheduler.waiting_jobs())

  def _turn(self) -> None:
    weights = [self.weights, *self.adapters.values()]
    self.prefixes.keep(weights)
    for lane in self.lanes:
      lane.keep(weights)
    self._drop_cancelled()
    self._enter_columns()  # Before others take their slots.
    hold_back(self._jobs)
    self._admit()
    self._score()
    self._decode()
    self._flush()
    self._enter_columns()
    if all(job.behind for job in self._jobs):
      self._wake.wait()
    self._wake.clear()

  def _enter_columns(self) -> None:
    """Keeps the columns of new prompts and texts while their slots have them.

    After the flush: no client waits for it.
    """
    for lane in self.lanes:
      try:
        lane.enter_columns(self.prefixes)
      except Exception as e:
        self._recover(lane, e)
    kept = self.prefixes.size + self.prefixes.reserved
    self._metrics.prefix_bytes.set(kept)

  def _send(self, job: Job, event: Event) -> None:
    job.posted += size_of(event)
    self._outbox.append((job, event))

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

  def _recover(self, lane: Lane, error: Exception) -> None:
    """Fails the requests of a lane, whose state is lost, and resets it."""
    self._failures += 1
    log.error('a step failed; its requests end', exc_info=error)
    for job in {seq.job for seq in lane.active}:
      self._fail(job, StepFailed(), 'error')
    if self._failures >= MAX_FAILURES:
      raise error
    lane.reset()

  def _fail(self, job: Job, error: RequestFailed, cause: str) -> None:
    if not job.cancelled:
      job.cancelled = cause
      self._send(job, Failed(error))
    if self.scheduler.drop(job):
      self._close(job)
    for seq in self._active:
      if seq.job is job:
        self._release(seq)

  def _fail_everything(self, error: RequestFailed) -> None:
    for job in self._jobs:
      self._fail(job, error, 'error')
    self._flush()

  def _release(self, seq: Sequence) -> None:
    """Takes the slot from a sequence that has ended or was cancelled."""
    self.lanes[seq.lane].release(seq)
    if self.scheduler.release(seq):
      self._close(seq.job)

  def _close(self, job: Job) -> None:
    job.ended = time.perf_counter()
    for seq in job.sequences:
      self._take_columns_back(seq)
    if job.cancelled in ABORTS:  # A queue timeout is a rejection instead.
      self._metrics.aborted.labels(job.cancelled).inc()
    elif not job.cancelled:
      self._metrics.success.labels(str(job.sequences[-1].finish)).inc()
      self._metrics.e2e.observe(job.ended - job.created)
    self._send(job, Closed())

  def _admit(self) -> None:
    """Gives slots to waiting sequences, a few between two blocks."""
    limit = sum(lane.free for lane in self.lanes)
    if self._active:
      limit = ADMIT_AT_ONCE * len(self.lanes)
    for _ in range(limit):
      lane = max(self.lanes, key=lambda lane: lane.free)
      if not lane.free:
        lane = self._preempt()
      seq = self.scheduler.next() if lane else None
      if seq is None or lane is None:
        return
      job = seq.job
      self._take_columns_back(seq)
      if job.weights is None:
        name = job.adapter
        job.weights = self.adapters[name] if name else self.weights
        waited = (job.started or job.created) - job.created
        self._metrics.queue_time.observe(waited)
        self._metrics.prompt_tokens.inc(job.prompt_tokens)
        self._send(job, Started())
      self._take(lane, seq)
      if job.wants_scores and seq.scores is None:
        self._begin_scores(seq)

  def _preempt(self) -> Lane | None:
    """Makes room for a waiting sequence; the lane with the slot, or None."""
    slowest = min(SLICE_TO_SWAP * self._swap_seconds, SLICE)
    seq = self.scheduler.victim(self._active, slowest)
    if seq is None:
      return None
    lane, began = self.lanes[seq.lane], time.perf_counter()
    try:
      lane.preempt(seq, self.prefixes.reserve)
    except Exception as e:
      self._recover(lane, e)
      return lane
    # It is read now and written later.
    seconds = 2 * (time.perf_counter() - began)
    self._swap_seconds += 0.2 * (seconds - self._swap_seconds)
    self.scheduler.put_back(seq)
    self._metrics.preemptions.inc()
    return lane

  def _take_columns_back(self, seq: Sequence) -> None:
    """The columns of a preempted sequence no longer count as kept."""
    self.prefixes.unreserve(seq.reserved)
    seq.reserved = 0

  def _take(self, lane: Lane, seq: Sequence) -> None:
    """Gives a sequence a slot, and what is known of its prompt."""
    short = len(seq) <= self.block_size and not seq.job.sampling.embed
    reuses = self.prefixes.limit and short and not seq.columns
    lane.take(seq, self.prefixes if reuses else None)
    if reuses and not seq.sampled:
      self._metrics.prefix_queries.inc(len(seq))
      self._metrics.prefix_hits.inc(seq.cached)

  def _begin_scores(self, seq: Sequence) -> None:
    seq.scores, new = seq.job.scores_of(seq, self.block_size)
    if new and seq.scores.done:  # A single token needs no pass.
      self._post_scores(seq)

  def _score(self) -> None:
    """Runs one pass over one prompt whose scores are incomplete."""
    for seq in self._active:
      if seq.scores is None or seq.scores.done:
        continue
      try:
        assert seq.job.weights is not None
        seq.scores.advance(self.programs, seq.job.weights.params)
      except Exception as e:
        self._recover(self.lanes[seq.lane], e)
        return
      if seq.scored:
        self._post_scores(seq)
      return

  def _post_scores(self, seq: Sequence) -> None:
    assert seq.scores is not None
    number = seq.index // seq.job.sampling.n
    self._send(seq.job, seq.scores.event(number))

  def _decode(self) -> None:
    """Decodes one block in every lane, all lanes at the same time."""
    for seq in self._active:
      if seq.scored and seq.room(self.block_size) <= 0:
        self._progress(seq, seq.end('length'))
    busy = [lane for lane in self.lanes if lane.active]
    others = [self._workers.submit(lane.step) for lane in busy[1:]]
    # Complete before any lane's sequences are changed.
    results: list[tuple[list, Exception | None]] = []
    for lane, future in zip(busy, [None, *others]):
      try:
        results.append((future.result() if future else lane.step(), None))
      except Exception as e:
        results.append(([], e))
    now = time.perf_counter()
    for lane, (rows, error) in zip(busy, results):
      for seq, ids, logits_kV, slid in rows:
        self._accept(seq, ids, logits_kV, slid, now)
      if error is not None:
        self._recover(lane, error)
    if busy and not any(error for _, error in results):
      self._failures = 0

  def _accept(
    self,
    seq: Sequence,
    ids: list[int],
    logits_kV: np.ndarray | None,
    slid: bool,
    now: float,
  ) -> None:
    """Appends what a block has sampled to its sequence."""
    if seq.job.cancelled:
      return
    logprobs = None
    if logits_kV is not None:
      alternatives = seq.job.sampling.logprobs or 0
      logprobs = choice_logprobs(logits_kV, ids, alternatives)
    before, counted = len(seq.sampled), seq.counted
    delta = seq.accept(ids, logprobs)
    self._metrics.slides.inc(slid)
    self._metrics.generation_tokens.inc(seq.counted - counted)
    seq.observe(len(seq.sampled) - before, now, self._metrics)
    self._progress(seq, delta)

  def _progress(self, seq: Sequence, delta: Delta | None) -> None:
    """Posts new text and frees the slot of a sequence that has ended."""
    if delta is not None:
      self._send(seq.job, delta)
    if seq.finish:
      self._send(seq.job, Finished(seq.index, seq.finish))
      self._release(seq)
