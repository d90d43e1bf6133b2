"""Who waits and who is next: the queue between the routes and the engine.

Space is reserved before a prompt is even tokenised, so that a full queue costs
nothing. Of the waiting requests the one with the fewest slots is served next,
then the oldest: 64 prompts in one request do not shut out a single one.
"""

import threading
import time

from serving.http import errors


class Scheduler:
  """Thread-safe; the event loop puts jobs in, the engine takes choices out.

  Args:
    slots: sequences decoded at once.
    max_queue: requests that may wait beyond those a free slot is there for.
  """

  def __init__(self, slots: int, max_queue: int):
    self._lock = threading.Lock()
    self._max_queue = max_queue
    self._slots = slots
    self._busy = 0
    self._reserved = 0
    self._jobs = []  # with choices that wait for a slot, oldest first
    self._running = []  # with a slot

  def reserve(self) -> None:
    """Takes a place in the queue. Raises ApiError (503) if it is full."""
    with self._lock:
      if self._waiting() >= self._max_queue + self._slots - self._busy:
        raise errors.overloaded(
          f'The server is busy: {self._waiting()} requests wait already.',
          'queue_full',
        )
      self._reserved += 1

  def unreserve(self) -> None:
    """Gives the place back."""
    with self._lock:
      self._reserved -= 1

  def submit(self, job) -> None:
    """Turns a reservation into a waiting job."""
    with self._lock:
      self._reserved -= 1
      self._jobs.append(job)

  def next(self):
    """The Sequence to be given a slot, or None; counts it as busy."""
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

  def release(self, sequence) -> bool:
    """A slot is free again; True if that was the last of its job."""
    job = sequence.job
    with self._lock:
      job.busy -= 1
      self._busy -= 1
      if not job.busy:
        self._running.remove(job)
      return not job.busy and not job.pending

  def drop(self, job) -> bool:
    """Forgets the choices that still wait; True if nothing is left of it."""
    with self._lock:
      job.pending.clear()
      if job in self._jobs:
        self._jobs.remove(job)
      return not job.busy

  def waiting_jobs(self) -> list:
    with self._lock:
      return list(self._jobs)

  def _waiting(self) -> int:
    return self._reserved + sum(job.started is None for job in self._jobs)

  def counts(self) -> tuple[int, int, int]:
    """(requests running, requests waiting, busy slots)."""
    with self._lock:
      # Begun, and between two of its choices.
      begun = sum(j.started is not None and not j.busy for j in self._jobs)
      return len(self._running) + begun, self._waiting(), self._busy
