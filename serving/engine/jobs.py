"""One request as the engine sees it: a job, and a sequence for each choice.

The event loop creates a Job, the engine thread works on it. Results travel
back as events, in order, through the job's mailbox.
"""

import array
import collections
import time
from collections.abc import Collection, Iterable

import jax
import numpy as np

from gpt.decoding import blocks
from gpt.decoding.grammars import Constraint, Grammar
from gpt.tokenizers import Tokenizer
from serving.engine.events import Delta, Mailbox, Token
from serving.engine.notices import Notice
from serving.engine.sampling import Sampling
from serving.engine.scores import PromptScores, PromptVector
from serving.engine.text import Stop, TextStream
from serving.engine.weights import Weights
from serving.metrics import Metrics

# Bytes of events that a reader may be behind with before its request pauses,
# and those of all requests.
UNREAD, ALL_UNREAD = 256 << 10, 64 << 20


class Job:
  """One request; `fill` completes it before it is submitted.

  Args:
    sampling: the client's sampling options.
    created: arrival of the request, time.perf_counter().

  Attributes:
    prompts: int32[n] arrays, none of them empty.
    tokens_dropped: tokens of the prompts that do not fit into the context.
    notices: what else its sender should know.
    bias_V: float32[V], added to the logits.
    stop_ids: ids that end a choice. stops: strings that do.
    grammar: what each choice must look like, or None.
    sequences: all choices, prompt by prompt.
    scores: prompt number -> its PromptScores or PromptVector, where due.
    adapter: name of the adapter that was asked for; '': the model itself.
    weights: used by all choices; None until the first slot is held.
    cancelled: the cause, once nobody wants the answer; else ''.
    pending: sequences without a slot. busy: number of sequences with one.
    queued: since when it has been waiting, while no sequence has a slot.
    served: seconds that its sequences have held slots, those running aside.
    posted, taken: bytes of events, written by the engine's thread and by the
      event loop alone. behind: its reader is so far behind that it pauses.
    created, started, first, ended: seconds of time.perf_counter(): arrival,
      first slot, first token, end.
  """

  def __init__(self, sampling: Sampling, created: float | None = None) -> None:
    self.sampling = sampling
    self.mailbox = Mailbox()
    self.prompts: list[np.ndarray] = []
    self.tokens_dropped = 0
    self.notices: tuple[Notice, ...] = ()
    self.sequences: list[Sequence] = []
    self.pending: collections.deque[Sequence] = collections.deque()
    self.scores: dict[int, PromptScores | PromptVector] = {}
    self.bias_V: np.ndarray | None = None
    self.stop_ids: frozenset[int] = frozenset()
    self.stops: list[Stop] = []
    self.grammar: Grammar | None = None
    self.adapter = ''
    self.weights: Weights | None = None
    self.cancelled = ''
    self.created = time.perf_counter() if created is None else created
    self.started: float | None = None
    self.first: float | None = None
    self.ended: float | None = None
    self.busy = 0
    self.queued = self.created
    self.served = 0.0
    self.posted = 0
    self.taken = 0
    self.behind = False

  def fill(
    self,
    prompts: list[np.ndarray],
    bias_V: np.ndarray | None,
    stop_ids: Iterable[int],
    tokenizer: Tokenizer,
    tokens_dropped: int = 0,
    notices: Iterable[Notice] = (),
    grammar: Grammar | None = None,
  ) -> None:
    """Adds what is known once the prompts are tokenized."""
    self.grammar = grammar
    self.prompts = prompts
    self.tokens_dropped = tokens_dropped
    self.notices = tuple(notices)
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
  def cached_tokens(self) -> int:
    """Tokens of the prompts that needed no prefill."""
    firsts = self.sequences[:: self.sampling.n]
    return sum(seq.cached for seq in firsts)

  @property
  def completion_tokens(self) -> int:
    return sum(seq.counted for seq in self.sequences)

  @property
  def wants_scores(self) -> bool:
    s = self.sampling
    if s.embed:
      return True
    return (s.echo and s.logprobs is not None) or s.prompt_logprobs is not None

  def scores_of(
    self, seq: 'Sequence', block_size: int
  ) -> tuple[PromptScores | PromptVector, bool]:
    """(the scores of a prompt, shared by its choices; whether they are new)."""
    number, new = seq.index // self.sampling.n, False
    if self.sampling.embed:
      self.scores[number] = PromptVector(seq.prompt)
    elif number not in self.scores:
      new = True
      self.scores[number] = PromptScores(
        seq.prompt,
        seq.tokenizer,
        max(self.sampling.logprobs or 0, self.sampling.prompt_logprobs or 0),
        block_size,
        stride(self.sampling.overflow, block_size),
      )
    return self.scores[number], new

  @property
  def outcome(self) -> str:
    """For the log: why it was cancelled, or its finish reasons, or '-'."""
    reasons = {seq.finish or '' for seq in self.sequences}
    if self.cancelled or not reasons or '' in reasons:
      return self.cancelled or '-'
    return ','.join(sorted(reasons))


class Sequence:
  """One choice while it is generated; belongs to the engine thread.

  Args:
    job: its request.
    index: of the choice within the job.
    prompt: int32[n], not empty.
    seed: only its low 32 bits are used.

  Attributes:
    sampled: ids sampled so far. counted: how many of them usage counts.
    start: first token of the window in the cache; -1: the cache is empty.
    columns: keys and values to begin the cache with, in pieces; see
      Programs.write_columns.
    kept: columns that its slot has from another sequence, if it begins so.
    cached: tokens of its prompt that needed no prefill.
    reserved: bytes of `columns` that the prefix cache counts.
    since: when it got its slot, time.perf_counter().
    lane: index of its lane. slot: within the lane. Both -1 until admitted.
    finish: None, 'stop' or 'length'.
    scores: of its prompt; must be complete before decoding, or None.
    last_time: arrival of its newest tokens, or start of the block that yields
      the first; time.perf_counter().
    uniforms: float32 random numbers of the steps from `drawn` on, or None.
    constraint: where its text stands in the job's grammar, or None.
    bias_V: float32[V], the job's bias; with a constraint, -inf for tokens that
      may not come next, and before min_tokens for what would end the text.
  """

  def __init__(
    self,
    job: Job,
    index: int,
    prompt: np.ndarray,
    seed: int,
    tokenizer: Tokenizer,
  ) -> None:
    self.job = job
    self.index = index
    self.prompt = prompt
    self.tokenizer = tokenizer
    self.seed = seed & 0xFFFFFFFF
    self.sampled = array.array('i')  # A list takes nine times the memory.
    self.counted = 0
    self.start = -1
    self.columns: list[np.ndarray] = []
    self.kept = 0
    self.cached = 0
    self.reserved = 0
    self.since = 0.0
    self.lane = -1
    self.slot = -1
    self.finish: str | None = None
    self.scores: PromptScores | PromptVector | None = None
    self.last_time: float | None = None
    self.uniforms: np.ndarray | jax.Array | None = None
    self.drawn = 0
    self.constraint: Constraint | None = None
    self.bias_V = job.bias_V
    least = job.sampling.min_tokens
    if job.grammar is not None:
      self.constraint = job.grammar.start(int(prompt[-1]))
      self._constrain()
    elif least and job.bias_V is not None:
      self.bias_V = job.bias_V.copy()
      self.bias_V[list(job.stop_ids)] = -np.inf
    self._text = TextStream(
      tokenizer,
      () if least else job.stops,
      int(prompt[-1]),
      job.sampling.include_stop,
    )
    self._pending: list[Token] = []
    self._counts_V: np.ndarray | None = None
    self._tallied = 0

  def __len__(self) -> int:
    return len(self.prompt) + len(self.sampled)

  def window(self, start: int) -> np.ndarray:
    """int32 tokens from `start` to the last but one, as the cache holds."""
    n = len(self.prompt)
    tail = np.array(self.sampled[max(0, start - n) : -1], np.int32)
    head = self.prompt[start:] if self.sampled else self.prompt[start:-1]
    return np.concatenate([head, tail]) if len(tail) else head

  def counts(self, vocab_size: int) -> np.ndarray:
    """int32[V]: how often each id has been sampled; a fresh copy."""
    if self._counts_V is None:
      self._counts_V = np.zeros(vocab_size, np.int32)
    new = np.array(self.sampled[self._tallied :], np.int64)
    np.add.at(self._counts_V, new, 1)
    self._tallied = len(self.sampled)
    return self._counts_V.copy()  # The device may read it later.

  @property
  def scored(self) -> bool:
    """Whether no log-probability of its prompt is outstanding."""
    return self.scores is None or self.scores.done

  @property
  def last_token(self) -> int:
    return self.sampled[-1] if self.sampled else int(self.prompt[-1])

  def room(self, block_size: int) -> int:
    """Tokens that fit before the window moves or the choice ends."""
    s = self.job.sampling
    slide = blocks.steps_until_slide(
      len(self), block_size, stride(s.overflow, block_size)
    )
    if s.overflow in ('stop', 'error') and len(self) > block_size:
      return 0
    if self.constraint is not None:
      return min(1, s.max_tokens - len(self.sampled), self._choices)
    if len(self.sampled) < s.min_tokens:  # Then its ends are allowed.
      slide = min(slide, s.min_tokens - len(self.sampled))
    return min(slide, s.max_tokens - len(self.sampled))

  def observe(self, tokens: int, now: float, metrics: Metrics) -> None:
    """Records the latencies of newly sampled tokens."""
    job = self.job
    if job.first is None:
      job.first = now
      metrics.ttft.observe(now - job.created)
    # The first token of a sequence ends no gap.
    gaps = tokens - (len(self.sampled) == tokens)
    if gaps and self.last_time is not None:
      metrics.inter_token.observe((now - self.last_time) / tokens, gaps)
    self.last_time = now

  def accept(
    self,
    ids: list[int],
    logprobs: list[tuple[float, list[tuple[int, float]]]] | None = None,
  ) -> Delta | None:
    """Appends newly sampled ids; sets `finish` where the text ends.

    Args:
      logprobs: for each id (its logprob, [(id, logprob), ...]), or None.

    Returns:
      The text that may be shown now, or None.
    """
    job = self.job
    plain = logprobs is None and not job.sampling.stop
    plain = plain and self.constraint is None
    if plain and job.stop_ids.isdisjoint(ids):  # Nearly always: all at once.
      self.sampled.extend(ids)
      self.counted += len(ids)
      return self._delta([self._text.feed(*ids)])
    pieces = []
    for i, id in enumerate(ids):
      self.sampled.append(id)
      before = self._text.length
      ended = id in job.stop_ids
      if not ended or job.sampling.include_stop:
        self.counted += 1
        pieces.append(self._text.feed(id))
      if logprobs is not None:
        self._pending.append(Token(id, before, self._text.length, *logprobs[i]))
      if ended or self._text.stopped:
        self.finish = 'stop'
        break
      if self.constraint is not None:
        self.constraint.accept(id)
        self._constrain()
    return self._delta(pieces)

  def _constrain(self) -> None:
    """Bans what its grammar does not allow next; ends a text that is whole."""
    found, bias_V = self.constraint, self.job.bias_V
    assert found is not None and bias_V is not None
    ends = list(self.job.stop_ids)
    allowed_V = found.allowed_V.copy()
    allowed_V[ends] = False
    if not allowed_V.any() and self.sampled:
      self.finish = 'stop' if found.complete else 'length'
    enough = len(self.sampled) >= self.job.sampling.min_tokens
    allowed_V[ends] = found.complete and enough
    self.bias_V = np.where(allowed_V, bias_V, np.float32(-np.inf))
    self._choices = int(np.isfinite(self.bias_V).sum())

  def end(self, reason: str) -> Delta | None:
    """Ends the choice without another token."""
    self.finish = reason
    return self._delta([])

  def _allow_ends(self) -> None:
    """Lets the text end from here on; the slot is filled with the new bias."""
    if self.constraint is None:
      self.bias_V = self.job.bias_V
      self.start = -1
    self._text.watch(self.job.stops)

  def _delta(self, pieces: list[str]) -> Delta | None:
    if len(self.sampled) == self.job.sampling.min_tokens > 0:
      self._allow_ends()
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
  """Tokens the window moves at once, for a value of context_overflow."""
  mode = 'stop' if overflow == 'error' else overflow
  return blocks.stride_for(mode, block_size)


def hold_back(jobs: Collection[Job]) -> None:
  """Pauses requests whose readers are far behind, and resumes others."""
  limit = min(UNREAD, ALL_UNREAD // max(1, len(jobs)))
  for job in jobs:
    job.behind = job.posted - job.taken > limit
