"""Events of a job, posted by the engine thread and read by one coroutine."""

import asyncio
import dataclasses
from collections.abc import Iterator

import numpy as np

from serving.engine.errors import RequestFailed


@dataclasses.dataclass
class Token:
  """A token with its log-probability.

  Attributes:
    start, end: length of its choice's text before and after it, in characters.
    logprob: None for the first token of a prompt.
    top: [(id, logprob)], most probable first.
  """

  id: int
  start: int
  end: int
  logprob: float | None
  top: list[tuple[int, float]]


@dataclasses.dataclass
class Started:
  """The job holds its first slot."""


@dataclasses.dataclass
class Scored:
  """The log-probabilities of a prompt, by its number; one Token per token."""

  prompt: int
  tokens: list[Token]


@dataclasses.dataclass
class Embedded:
  """A prompt, by its number, as a vector: float32[D] of L2 norm 1."""

  prompt: int
  vector_D: np.ndarray


@dataclasses.dataclass
class Delta:
  """New text of a choice; `tokens` is empty unless logprobs were requested."""

  index: int
  text: str
  tokens: list[Token]


@dataclasses.dataclass
class Finished:
  """A choice has ended; `reason` is 'stop' or 'length'."""

  index: int
  reason: str


@dataclasses.dataclass
class Failed:
  """The request ends here, with this error."""

  error: RequestFailed


@dataclasses.dataclass
class Closed:
  """The last event: every choice has ended or was given up."""


Event = Started | Scored | Embedded | Delta | Finished | Failed | Closed

# Bytes of memory, as measured: of an event with its text, of a token with its
# log-probability, and of each alternative.
EVENT_BYTES, TOKEN_BYTES, TOP_BYTES = 300, 160, 110


def size_of(event: Event) -> int:
  """About the bytes that an event keeps until its reader has taken it."""
  if isinstance(event, Embedded):
    return EVENT_BYTES + event.vector_D.nbytes
  if not isinstance(event, Delta | Scored):
    return 0
  text = len(event.text) if isinstance(event, Delta) else 0
  tops = sum(len(token.top) for token in event.tokens)
  tokens = TOKEN_BYTES * len(event.tokens) + TOP_BYTES * tops
  return EVENT_BYTES + text + tokens


class Mailbox:
  """A queue of events; every method runs on the event loop."""

  def __init__(self) -> None:
    self._events: list[Event] = []
    self._arrived = asyncio.Event()

  def put(self, event: Event) -> None:
    self._events.append(event)
    self._arrived.set()

  def __len__(self) -> int:
    return len(self._events)

  def __iter__(self) -> Iterator[Event]:
    return iter(self._events)

  async def wait(self) -> None:
    """Waits for an event and leaves it in the queue."""
    await self._arrived.wait()

  async def take(self) -> list[Event]:
    """Removes and returns all events; waits for at least one."""
    await self.wait()
    self._arrived.clear()
    events, self._events = self._events, []
    return events
