"""One request's way through the engine: prompts in, events out.

`complete` and `chat` open a Generation. However its coroutine ends, its slots
are free within one block.
"""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from gpt.decoding.grammars import Source
from serving.engine.engine import FAILED
from serving.engine.errors import (
  ClientGone,
  ContextTooLong,
  InvalidRequest,
  NotRead,
  QueueTimeout,
  RequestFailed,
  RequestTimeout,
  StepFailed,
  Unavailable,
)
from serving.engine.events import Closed, Event, Failed, size_of
from serving.engine.jobs import Job
from serving.engine.sampling import Sampling
from serving.metrics import ABORTS
from serving.prompts import Tokenized, encode_chat, encode_prompts
from serving.service import Service

T = TypeVar('T')
# Log-probabilities of one piece of an answer: more would fill the memory and
# take the event loop's time.
MAX_LOGPROBS = 200_000
# How long a reader that was given up has to read the end of its stream.
LAST_SECONDS = 2.0
# Characters or ids of prompts that are tokenized in less time than it takes to
# hand them to another thread.
SHORT = 1000
READER_CHECKS = 0.5  # seconds between two looks at whether a reader reads


@dataclasses.dataclass(frozen=True)
class Client:
  """The sender of a request, as the transport knows it.

  Attributes:
    began: arrival of the request, time.perf_counter().
    gone: returns once the client has disconnected.
    abort: closes the connection, whatever is still to be written.
    unsent: bytes that still have to be written.
  """

  began: float
  gone: Callable[[], Awaitable[None]]
  abort: Callable[[], None]
  unsent: Callable[[], int]


def complete(
  service: Service,
  client: Client,
  given: Sequence[Any],
  sampling: Sampling,
  *,
  ends: tuple[int, ...] = (),
  streamed: bool = False,
  structure: Source | None = None,
) -> 'Generation':
  """A Generation that continues the given prompts (str or ids).

  Args:
    ends: ids that end a choice, sampleable here; () for the model's EOS alone.
  """

  def tokenize() -> Tokenized:
    window = service.cfg.block_size
    return encode_prompts(service.tokenizer, given, window, sampling)

  return Generation(
    service,
    client,
    tokenize,
    sampling,
    stop_ids=ends or (service.tokenizer.eos_id,),
    allowed=ends,
    streamed=streamed,
    structure=structure,
    param='prompt',
    short=structure is None and sum(map(len, given)) <= SHORT,
  )


def embed(
  service: Service, client: Client, given: Sequence[Any], sampling: Sampling
) -> 'Generation':
  """A Generation of the vectors of texts (str or ids), without any text."""

  def tokenize() -> Tokenized:
    window = service.cfg.block_size
    return encode_prompts(service.tokenizer, given, window, sampling, 'input')

  return Generation(
    service,
    client,
    tokenize,
    sampling,
    stop_ids=(),
    allowed=(),
    streamed=False,
    structure=None,
    param='input',
  )


def chat(
  service: Service,
  client: Client,
  messages: list[dict[str, Any]],
  sampling: Sampling,
  *,
  streamed: bool = False,
  prefill: bool = False,
  structure: Source | None = None,
  tools: Sequence[Any] = (),
) -> 'Generation':
  """A Generation of the next turn; messages have 'role' and 'content'.

  Args:
    prefill: a last message of the assistant is the beginning of its reply.
    tools: functions that the model is told of.
  """

  def tokenize() -> Tokenized:
    window = service.cfg.block_size
    return encode_chat(
      service.tokenizer, messages, window, sampling, prefill, tools
    )

  ends = service.chat_ends
  return Generation(
    service,
    client,
    tokenize,
    sampling,
    stop_ids=ends,
    allowed=ends,
    streamed=streamed,
    structure=structure,
    param='messages',
  )


def check_count(field: str, tokens: int, alternatives: int) -> None:
  """Raises InvalidRequest for too many log-probabilities at once."""
  values = tokens * (alternatives + 1)
  if values > MAX_LOGPROBS:
    raise InvalidRequest(
      f'{field} would be up to {values} values for {tokens} tokens; at most '
      f'{MAX_LOGPROBS} are allowed: lower max_tokens, n or {field}.',
      field,
    )


class Generation:
  """An async context manager around one job.

  Entering it reserves a place in the queue, tokenizes the prompts on a worker
  and submits the job. `events` yields the job's events until all choices have
  ended. Leaving it cancels whatever still runs.

  Args:
    tokenize: called on a worker thread, unless `short`.
    stop_ids: ids that end a choice.
    allowed: banned ids that may be sampled all the same.
    streamed: events are passed on as they come.
    structure: what each choice must look like, or None.
    param: the request field the prompts come from, for errors.
    short: tokenizing takes so little time that it needs no worker.

  Attributes:
    sent: bytes of a stream given to the connection so far; set by the caller.

  Raises:
    RequestFailed: (entering, or from `events`) any of its subclasses.
  """

  def __init__(
    self,
    service: Service,
    client: Client,
    tokenize: Callable[[], Tokenized],
    sampling: Sampling,
    *,
    stop_ids: tuple[int, ...],
    allowed: tuple[int, ...],
    streamed: bool,
    structure: Source | None,
    param: str,
    short: bool = False,
  ) -> None:
    self._service = service
    self._client = client
    self._tokenize = tokenize
    self._stop_ids = stop_ids
    self._allowed = allowed
    self._streamed = streamed
    self._structure = structure
    self._param = param
    self._short = short
    self._timers: list[asyncio.TimerHandle] = []
    self._watches: list[asyncio.Task] = []
    self._submitted = False
    self.sent = 0
    limit = service.options.max_tokens_limit
    if limit:  # A default; what a request names has been checked.
      most = min(sampling.max_tokens, limit)
      sampling = dataclasses.replace(sampling, max_tokens=most)
    self.job = Job(sampling, client.began)

  async def __aenter__(self) -> 'Generation':
    service, job = self._service, self.job
    service.engine.check_open()
    service.engine.scheduler.reserve()
    service.generations[job] = self
    try:
      self._start_timers()
      self._watches.append(asyncio.create_task(self._watch_client()))
      if self._streamed:
        self._watches.append(asyncio.create_task(self._watch_reader()))
      if self._short:
        self._fill()
      else:
        await self.in_thread(self._fill)
      self._check_size()
      if service.engine.state == FAILED:  # It would never answer.
        raise Unavailable(FAILED)
      self._submitted = True
      service.engine.submit(job)
    except BaseException:
      if job.cancelled in ABORTS:
        service.metrics.aborted.labels(job.cancelled).inc()
      self._leave()
      raise
    return self

  async def __aexit__(self, *_: Any) -> None:
    self._leave()

  def _leave(self) -> None:
    service = self._service
    if not self._submitted:
      service.engine.scheduler.unreserve()
    elif self.job.ended is None:
      service.engine.cancel(self.job, 'disconnect')
    for timer in self._timers:
      timer.cancel()
    for watch in self._watches:
      watch.cancel()
    service.generations.pop(self.job, None)

  async def events(self) -> AsyncIterator[list[Event]]:
    """Batches of Started, Scored, Delta and Finished, until all has ended."""
    while True:
      batch: list[Event] = []
      for event in await self.job.mailbox.take():
        if isinstance(event, Failed):
          raise event.error
        if isinstance(event, Closed):
          if batch:
            yield batch
          if self.job.cancelled:
            raise NotRead
          return
        batch.append(event)
      if batch:
        yield batch  # Returns once it has been sent.
        self.job.taken += sum(map(size_of, batch))
        self._service.engine.wake()

  async def in_thread(self, fn: Callable[[], T]) -> T:
    """fn() on a worker; raises at once if the request fails meanwhile."""
    done = asyncio.ensure_future(self._service.in_thread(fn))
    # Retrieves its error even if nobody waits for it any more.
    done.add_done_callback(lambda f: f.cancelled() or f.exception())
    failed = asyncio.create_task(self.job.mailbox.wait())
    try:
      await asyncio.wait({done, failed}, return_when=asyncio.FIRST_COMPLETED)
      if self.job.cancelled:
        raise self._failure()
      return await done
    finally:
      done.cancel()
      failed.cancel()

  def _failure(self) -> RequestFailed:
    for event in self.job.mailbox:
      if isinstance(event, Failed):
        return event.error
    return StepFailed()

  def _fill(self) -> None:
    """Completes the job, on a worker thread."""
    service, sampling = self._service, self.job.sampling
    bias_V = service.bans_V.copy()
    bias_V[list(self._allowed)] = 0.0
    for id, value in sampling.logit_bias.items():
      bias_V[id] += value
    if sampling.allowed_token_ids:
      banned_V = np.ones(len(bias_V), bool)
      banned_V[list(sampling.allowed_token_ids)] = False
      bias_V[banned_V] = -np.inf
    if sampling.ignore_eos:
      bias_V[list(self._stop_ids)] = -np.inf
    found = self._tokenize()
    stop_ids = {*self._stop_ids, *sampling.stop_token_ids}
    grammar = service.grammars.of(self._structure)
    about = found.dropped, found.notices, grammar
    self.job.fill(found.prompts, bias_V, stop_ids, service.tokenizer, *about)

  def _check_size(self) -> None:
    """Raises RequestFailed if the window or the memory is too small."""
    job, s = self.job, self.job.sampling
    window, longest = self._service.cfg.block_size, max(map(len, job.prompts))
    if s.overflow == 'error' and longest + s.max_tokens > window:
      raise ContextTooLong(
        window,
        f'you asked for {longest + s.max_tokens} ({longest} in the prompt, '
        f'{s.max_tokens} to generate)',
        self._param,
      )
    if s.logprobs is not None:
      most = min(s.max_tokens, window) if s.overflow == 'stop' else s.max_tokens
      # A stream is written piece by piece, but an echo is one piece.
      tokens = 0 if self._streamed else most * len(job.sequences)
      if s.echo:
        tokens += job.prompt_tokens * s.n
      check_count('logprobs', tokens, s.logprobs)
    if s.prompt_logprobs is not None:
      tokens = job.prompt_tokens * s.n
      check_count('prompt_logprobs', tokens, s.prompt_logprobs)

  def _start_timers(self) -> None:
    options, loop = self._service.options, asyncio.get_running_loop()

    def queue_timeout() -> None:
      if self.job.started is None:
        wait = self._service.engine.scheduler.wait_seconds()
        self.fail(QueueTimeout(options.queue_timeout, wait), 'queue_timeout')

    def request_timeout() -> None:
      self.fail(RequestTimeout(options.request_timeout), 'timeout')

    self._timers = [
      loop.call_later(options.queue_timeout, queue_timeout),
      loop.call_later(self.time_left(), request_timeout),
    ]

  def time_left(self) -> float:
    """Seconds until the request times out."""
    spent = time.perf_counter() - self.job.created
    return self._service.options.request_timeout - spent

  async def _watch_client(self) -> None:
    await self._client.gone()
    self.fail(ClientGone(), 'disconnect')

  async def _watch_reader(self) -> None:
    """Ends the request of a reader that takes nothing for some time."""
    most, idle = 0, 0.0
    while idle < self._service.options.read_timeout:
      await asyncio.sleep(READER_CHECKS)
      unsent = self._client.unsent()
      taken = self.sent - unsent
      idle = 0.0 if not unsent or taken > most else idle + READER_CHECKS
      most = max(most, taken)
    self._give_up()

  def fail(self, error: RequestFailed, cause: str) -> None:
    """Ends it from outside: the coroutine gets `error`, slots are freed."""
    self._service.engine.cancel(self.job, cause)
    self.job.mailbox.put(Failed(error))

  def _give_up(self) -> None:
    """Ends it because its events are not read."""
    self._service.engine.cancel(self.job, 'slow_reader')
    loop = asyncio.get_running_loop()
    self._timers.append(loop.call_later(LAST_SECONDS, self.abort))

  def abort(self) -> None:
    """Closes the connection, whatever is still to be written."""
    self._client.abort()
