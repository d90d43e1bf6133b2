"""The queue between the routes and the engine.

A request reserves its place before its prompt is tokenized, so rejecting it
costs nothing when the queue is full. The waiting request with the fewest slots
is served next, then the oldest: one request with 64 prompts does not shut out a
single prompt.
"""

import threading
import time

from serving.engine.errors import QueueFull
from serving.engine.jobs import Job, Sequence


class Scheduler:
  """Thread-safe; the event loop adds jobs, the engine takes sequences.

  Args:
    slots: sequences decoded at once.
    max_queue: requests that may wait beyond those that free slots will take.
  """

  def __init__(self, slots: int, max_queue: int) -> None:
    self._lock = threading.Lock()
    self._max_queue = max_queue
    self._slots = slots
    self._busy = 0
    self._reserved = 0
    self._jobs: list[Job] = []  # with sequences that wait, oldest first
    self._running: list[Job] = []  # with at least one slot

  def reserve(self) -> None:
    """Takes a place in the queue. Raises QueueFull."""
    with self._lock:
      if self._waiting() >= self._max_queue + self._slots - self._busy:
        raise QueueFull(self._waiting())
      self._reserved += 1

  def unreserve(self) -> None:
    """Returns the place."""
    with self._lock:
      self._reserved -= 1

  def submit(self, job: Job) -> None:
    """Turns a reservation into a waiting job."""
    with self._lock:
      self._reserved -= 1
      self._jobs.append(job)

  def next(self) -> Sequence | None:
    """The next sequence to get a slot, counted as busy; None if none waits."""
    with self._lock:
      if not self._jobs:
        return None
      job = min(self._jobs, key=lambda j: j.busy)
      sequence = job.pending.popleft()
      if not job.pending:
        self._jobs.remove(job)
      job.busy += 1
      self._busy += 1
      if job.busy == 1:
        self._running.append(job)
      if job.started is None:
        job.started = time.perf_counter()
      return sequence

  def release(self, sequence: Sequence) -> bool:
    """Frees the slot of a sequence; True if its job is complete."""
    job = sequence.job
    with self._lock:
      job.busy -= 1
      self._busy -= 1
      if not job.busy:
        self._running.remove(job)
      return not job.busy and not job.pending

  def drop(self, job: Job) -> bool:
    """Removes a job's waiting sequences; True if it holds no slot either."""
    with self._lock:
      job.pending.clear()
      if job in self._jobs:
        self._jobs.remove(job)
      return not job.busy

  def waiting_jobs(self) -> list[Job]:
    with self._lock:
      return list(self._jobs)

  def _waiting(self) -> int:
    return self._reserved + sum(job.started is None for job in self._jobs)

  def counts(self) -> tuple[int, int, int]:
    """(requests running, requests waiting, busy slots)."""
    with self._lock:
      # A job between two of its sequences is running without a slot.
      between = sum(j.started is not None and not j.busy for j in self._jobs)
      return len(self._running) + between, self._waiting(), self._busy
