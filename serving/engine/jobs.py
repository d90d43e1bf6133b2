"""One request's work: the choices to generate, and what comes of them.

A Job is made by the event loop and worked on by the engine thread. What the
engine has to say travels as events, in order, through the job's mailbox.
"""

import asyncio
import collections
import dataclasses
import time

import numpy as np

from gpt.decoding import blocks
from serving.engine.text import Stop, TextStream
from serving.http.schemas import Sampling


@dataclasses.dataclass
class Token:
  """A token with its log-probability.

  Attributes:
    start, end: characters of its choice's text before it and after it.
    logprob: None for a prompt's first token.
    top: [(id, logprob)], most probable first.
  """

  id: int
  start: int
  end: int
  logprob: float | None
  top: list


@dataclasses.dataclass
class Started:
  """A slot is held."""


@dataclasses.dataclass
class Scored:
  """The log-probabilities of a prompt: a Token for each of its tokens."""

  prompt: int
  tokens: list


@dataclasses.dataclass
class Delta:
  """New text of a choice; `tokens` only where log-probabilities are wanted."""

  index: int
  text: str
  tokens: list


@dataclasses.dataclass
class Finished:
  """A choice has ended: reason is 'stop' or 'length'."""

  index: int
  reason: str


@dataclasses.dataclass
class Failed:
  """The request ends here; `error` is an ApiError or ClientGone."""

  error: Exception


@dataclasses.dataclass
class Closed:
  """Nothing more comes: all choices have ended, or were given up."""


class Mailbox:
  """Events from the engine, taken by one coroutine."""

  def __init__(self):
    self._events = []
    self._arrived = asyncio.Event()

  def put(self, event) -> None:
    """Called on the event loop."""
    self._events.append(event)
    self._arrived.set()

  def __len__(self):
    return len(self._events)

  def __iter__(self):
    return iter(self._events)

  async def wait(self) -> None:
    """Waits for an event, and leaves it there."""
    await self._arrived.wait()

  async def take(self) -> list:
    """All events that have come; waits for at least one."""
    await self.wait()
    self._arrived.clear()
    events, self._events = self._events, []
    return events


class Job:
  """One request; `fill` completes it before it is submitted.

  Attributes:
    sampling: what is asked for.
    prompts: int32[n] arrays, none of them empty.
    bias_V: float32[V] added to the logits.
    stop_ids: ids that end a choice. stops: strings that do, as Stops.
    sequences: one for each choice, prompt by prompt.
    scores: prompt number -> PromptScores, where they are wanted.
    weights: the Weights all its choices use, once a slot is held.
    cancelled: why nobody wants the answer any more, or ''.
    pending: sequences without a slot. busy: number of those that hold one.
    created, started, first, ended: seconds of time.perf_counter().
  """

  def __init__(self, sampling: Sampling):
    self.sampling = sampling
    self.mailbox = Mailbox()
    self.prompts = []
    self.tokenizer = None
    self.sequences = []
    self.pending = collections.deque()
    self.scores = {}
    self.bias_V = None
    self.stop_ids = frozenset()
    self.stops = []
    self.weights = None
    self.cancelled = ''
    self.created = time.perf_counter()
    self.started = self.first = self.ended = None
    self.busy = 0

  def fill(self, prompts, bias_V, stop_ids, tokenizer) -> None:
    """Sets what is known once the prompts are tokens."""
    self.prompts = prompts
    self.tokenizer = tokenizer
    self.bias_V = bias_V
    self.stop_ids = frozenset(stop_ids)
    n = self.sampling.n
    self.stops = [Stop(text) for text in self.sampling.stop]
    self.sequences = [
      Sequence(self, j * n + i, tokens, self.sampling.seed + i, tokenizer)
      for j, tokens in enumerate(prompts)
      for i in range(n)
    ]
    self.pending.extend(self.sequences)

  @property
  def prompt_tokens(self) -> int:
    return sum(map(len, self.prompts))

  @property
  def completion_tokens(self) -> int:
    return sum(seq.counted for seq in self.sequences)

  @property
  def wants_scores(self) -> bool:
    return self.sampling.echo and self.sampling.logprobs is not None


class Sequence:
  """One choice while it is generated; belongs to the engine thread.

  Attributes:
    index: of the choice; prompt: int32[n] tokens, not empty.
    sampled: ids sampled so far. counted: those of them that usage counts.
    start: first token of the window in the cache; -1: nothing is there.
    lane, slot: where it is decoded; None until it is admitted.
    finish: None, 'stop' or 'length'.
    scores: PromptScores to be done first, or None.
    last_time: when its newest tokens came, or the block that gives the first
      began, time.perf_counter().
    uniforms: float32 random numbers of the steps from `drawn` on, or None.
  """

  def __init__(self, job: Job, index: int, prompt, seed: int, tokenizer):
    self.job = job
    self.index = index
    self.prompt = prompt
    self.seed = seed & 0xFFFFFFFF
    self.sampled = []
    self.counted = 0
    self.start = -1
    self.slot = self.lane = None
    self.finish = None
    self.scores = None
    self.last_time = None
    self.uniforms, self.drawn = None, 0
    self._text = TextStream(tokenizer, job.stops)
    self._pending = []
    self._counts_V, self._tallied = None, 0

  def __len__(self):
    return len(self.prompt) + len(self.sampled)

  def window(self, start: int):
    """int32 tokens from `start` to the last but one: what the cache holds."""
    n = len(self.prompt)
    tail = np.array(self.sampled[max(0, start - n) : -1], np.int32)
    head = self.prompt[start:] if self.sampled else self.prompt[start:-1]
    return np.concatenate([head, tail]) if len(tail) else head

  def counts(self, vocab_size: int):
    """int32[V]: how often each id has been sampled."""
    if self._counts_V is None:
      self._counts_V = np.zeros(vocab_size, np.int32)
    new = np.array(self.sampled[self._tallied :], np.int64)
    np.add.at(self._counts_V, new, 1)
    self._tallied = len(self.sampled)
    return self._counts_V.copy()  # The device may read it later.

  @property
  def scored(self) -> bool:
    """Whether it need not wait for its prompt's log-probabilities."""
    return self.scores is None or self.scores.done

  @property
  def last_token(self) -> int:
    return self.sampled[-1] if self.sampled else int(self.prompt[-1])

  def room(self, block_size: int) -> int:
    """How many tokens may be sampled before something changes; 0: no more."""
    s = self.job.sampling
    slide = blocks.steps_until_slide(
      len(self), block_size, stride(s.overflow, block_size)
    )
    if s.overflow in ('stop', 'error') and len(self) > block_size:
      return 0
    return min(slide, s.max_tokens - len(self.sampled))

  def accept(self, ids, logprobs=None) -> Delta | None:
    """Takes newly sampled ids; sets `finish` where the text ends.

    Args:
      ids: list of int.
      logprobs: None or for each id (its logprob, [(id, logprob), ...]).

    Returns:
      The text that may be shown now, or None.
    """
    job = self.job
    plain = logprobs is None and not job.sampling.stop
    if plain and job.stop_ids.isdisjoint(ids):  # Nearly always: all at once.
      self.sampled += ids
      self.counted += len(ids)
      return self._delta([self._text.feed(*ids)])
    pieces = []
    for i, id in enumerate(ids):
      self.sampled.append(id)
      before = self._text.length
      ended = id in job.stop_ids
      if not ended:
        self.counted += 1
        pieces.append(self._text.feed(id))
      if logprobs is not None:
        self._pending.append(Token(id, before, self._text.length, *logprobs[i]))
      if ended or self._text.stopped:
        self.finish = 'stop'
        break
    return self._delta(pieces)

  def end(self, reason: str) -> Delta | None:
    """Ends it without another token."""
    self.finish = reason
    return self._delta([])

  def _delta(self, pieces) -> Delta | None:
    if not self.finish and len(self.sampled) >= self.job.sampling.max_tokens:
      self.finish = 'length'
    if self.finish:
      pieces.append(self._text.finish())
      tokens = [
        t
        for t in self._pending
        if t.start < self._text.shown or not self._text.stopped
      ]
      self._pending = []
    else:
      ready = sum(t.end <= self._text.shown for t in self._pending)
      tokens, self._pending = self._pending[:ready], self._pending[ready:]
    text = ''.join(pieces)
    return Delta(self.index, text, tokens) if text or tokens else None


def stride(overflow: str, block_size: int) -> int:
  """Of the window, for a value of context_overflow."""
  mode = 'stop' if overflow == 'error' else overflow
  return blocks.stride_for(mode, block_size)
