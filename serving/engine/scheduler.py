"""The queue between the routes and the engine, and who is next.

A request reserves its place before its prompt is tokenized, so rejecting it
costs nothing when the queue is full. Of the waiting requests the one with the
fewest slots is served next: one with 64 prompts does not shut out a single
prompt. Among equals the order is that of arrival, but who has had a slot lets
later ones pass, for a time that grows with what it has had.

Where all slots are taken and somebody waits, a sequence that has had its slice
gives its slot up and queues again (`victim`, `put_back`).
"""

import threading
import time
from collections.abc import Iterable

from serving.engine.errors import QueueFull
from serving.engine.jobs import Job, Sequence

# Seconds a slot is kept while others wait: requests without a token yet, or
# requests that have had one before.
FIRST_SLICE, SLICE = 0.25, 1.0
# Seconds that later requests may arrive in and still be served before one,
# for each second that it has held slots; and the most.
PATIENCE, MOST_PATIENCE = 4.0, 20.0
# A request that has held slots for this many times what others needed in all,
# and for so many seconds, does not count for a full queue: it would close it.
LONG, LONG_SECONDS = 4.0, 0.5
# Waiting requests of all kinds, for each that max_queue allows.
MOST_WAITING = 8


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
    self._served = 0.1  # running average of the seconds a job holds slots

  def reserve(self) -> None:
    """Takes a place in the queue. Raises QueueFull."""
    with self._lock:
      free = self._slots - self._busy
      counted = self._reserved + sum(map(self._counts, self._jobs))
      most = MOST_WAITING * (self._max_queue + 1)
      if (
        counted >= self._max_queue + free
        or self._reserved + len(self._jobs) >= most + free
      ):
        raise QueueFull(self._waiting(), self._wait_seconds())
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
      job = self._first()
      if job is None:
        return None
      sequence = job.pending.popleft()
      if not job.pending:
        self._jobs.remove(job)
      job.busy += 1
      self._busy += 1
      if job.busy == 1:
        self._running.append(job)
      sequence.since = time.perf_counter()
      if job.started is None:
        job.started = sequence.since
      return sequence

  def release(self, sequence: Sequence) -> bool:
    """Frees the slot of a sequence; True if its job is complete."""
    with self._lock:
      return self._leave(sequence)

  def put_back(self, sequence: Sequence) -> None:
    """Frees the slot of a sequence that continues later."""
    job = sequence.job
    with self._lock:
      if not job.pending:
        self._jobs.append(job)
      job.pending.append(sequence)
      self._leave(sequence)

  def victim(
    self, active: Iterable[Sequence], slowest: float = 0.0
  ) -> Sequence | None:
    """The sequence whose slot a waiting one should have, or None.

    Args:
      active: all that hold a slot.
      slowest: seconds a slice should last at least.
    """
    with self._lock:
      job, now = self._first(), time.perf_counter()
      if job is None:
        return None
      fresh = job.started is None
      slice = max(FIRST_SLICE if fresh else SLICE, slowest)
      place = self._place(job, job.busy, job.queued)
      found = []
      for seq in active:
        other, had = seq.job, now - seq.since
        if other.behind:  # Nobody reads what it computes.
          found.append(((True, 0, had), seq))
        elif other is not job and had >= slice:
          left = other.busy - 1
          if self._place(other, left, now, had) > place:
            found.append(((False, left, other.served + had), seq))
      return max(found, key=lambda entry: entry[0])[1] if found else None

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

  def wait_seconds(self) -> float:
    """Estimated seconds until everything that waits now has been served."""
    with self._lock:
      return self._wait_seconds()

  def counts(self) -> tuple[int, int, int]:
    """(requests running, requests waiting for a slot, busy slots)."""
    with self._lock:
      return len(self._running), self._waiting(), self._busy

  def _first(self) -> Job | None:
    jobs = [job for job in self._jobs if not job.behind]
    return min(
      jobs, key=lambda j: self._place(j, j.busy, j.queued), default=None
    )

  def _place(
    self, job: Job, busy: int, queued: float, had: float = 0.0
  ) -> tuple[int, float]:
    """The smaller, the sooner a job is next, if it has queued since then."""
    return busy, queued + min(PATIENCE * (job.served + had), MOST_PATIENCE)

  def _leave(self, sequence: Sequence) -> bool:
    job, now = sequence.job, time.perf_counter()
    job.served += now - sequence.since
    job.busy -= 1
    self._busy -= 1
    if not job.busy:
      self._running.remove(job)
      job.queued = now
    done = not job.busy and not job.pending
    if done:
      self._served += 0.1 * (job.served - self._served)
    return done

  def _waiting(self) -> int:
    return self._reserved + sum(not job.busy for job in self._jobs)

  def _counts(self, job: Job) -> bool:
    """Whether a waiting job counts for a full queue."""
    long = job.served > max(LONG_SECONDS, LONG * self._served)
    return not (job.busy or job.behind or long)

  def _wait_seconds(self) -> float:
    return self._waiting() * self._served / self._slots
