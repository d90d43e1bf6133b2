"""Between the routes and the engine: prompts in, events out, nothing left.

A Generation reserves a place in the queue, turns the prompt into tokens on a
worker thread, and gives the engine's events to one coroutine. However that
coroutine ends, the slots are free again within one block.
"""

import asyncio
import concurrent.futures
import dataclasses
import logging
import threading
import time

import jax
import numpy as np

from gpt.decoding.generation import ban_bias
from gpt.runs import load
from gpt.tokenizers import chat_format
from serving.engine import engine as engines
from serving.engine import jobs
from serving.engine.programs import compile_count
from serving.http import errors
from serving.http.errors import ApiError, ClientGone, bad_request
from serving.metrics import ABORTS, Metrics

log = logging.getLogger('rgpt.serve')

# Log-probabilities written at once: more take memory, and the loop's time.
MAX_LOGPROBS = 200_000
# Unread events of a stream beyond which its reader is given up, and seconds it
# then has to read how that ends.
MAX_UNREAD, LAST_SECONDS = 4096, 5.0


class Service:
  """A loaded model that answers requests; lives on the event loop.

  Args:
    loaded: LoadedModel. workdir, which: where it came from, for reloads.
    options: Options.
    on_death: called with an error once the engine is beyond repair.
  """

  def __init__(self, loaded, workdir, which, options, on_death):
    self.loaded = dataclasses.replace(loaded, params=None)
    self.options = options
    self.tokenizer = loaded.tokenizer
    self.cfg = loaded.cfg
    self.created = int(time.time())
    self.is_chat = chat_format.is_chat_tokenizer(self.tokenizer)
    compilations = compile_count()
    self.metrics = Metrics(lambda: compilations.value)
    self.metrics.slots_total.set(options.slots)
    self._workdir, self._which = workdir, which
    self._on_death = on_death
    self._bans_V = ban_bias(self.tokenizer)
    self._generations = {}  # by their jobs
    self._loop = None
    self._workers = concurrent.futures.ThreadPoolExecutor(
      2, thread_name_prefix='rgpt-text'
    )
    self._reloading = asyncio.Lock()
    self.engine = engines.Engine(
      loaded.model,
      weights_of(loaded),
      options.slots,
      options.max_queue,
      self.metrics,
      self._post,
      self._engine_died,
    )

  def start(self) -> None:
    """Starts the engine; called on the event loop."""
    self._loop = asyncio.get_running_loop()
    self.engine.start()

  @property
  def state(self) -> str:
    return self.engine.state

  async def in_thread(self, fn, *args):
    """fn(*args) on a worker: long texts must not stop the event loop."""
    return await self._loop.run_in_executor(self._workers, fn, *args)

  def read_gauges(self) -> None:
    """Brings the gauges up to date, for a scrape."""
    running, waiting, busy = self.engine.scheduler.counts()
    self.metrics.running.set(running)
    self.metrics.waiting.set(waiting)
    self.metrics.slots_busy.set(busy)

  def _post(self, outbox) -> None:
    """Called by the engine's thread."""
    try:
      self._loop.call_soon_threadsafe(self._deliver, outbox)
    except RuntimeError:  # The loop has closed: nobody is left to tell.
      pass

  def _deliver(self, outbox) -> None:
    for job, event in outbox:
      job.mailbox.put(event)
      generation = self._generations.get(job)
      if len(job.mailbox) > MAX_UNREAD and generation and not job.cancelled:
        generation.give_up()

  def _engine_died(self, error) -> None:
    """Called by the engine's thread."""
    try:
      self._loop.call_soon_threadsafe(self._on_death, error)
    except RuntimeError:
      pass

  def encode(self, prompt):
    """A prompt (str or ids) as int32[n], never empty: BOS stands for it."""
    ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    return np.array(ids if len(ids) else [self.tokenizer.bos_id], np.int32)

  def chat_prompt(self, messages, max_tokens: int):
    """(int32[n] ids, tokens dropped) of a conversation."""
    room = chat_format.prompt_room(self.cfg.block_size, max_tokens)
    ids, dropped = chat_format.build_prompt(messages, self.tokenizer, room)
    return np.array(ids, np.int32), dropped

  def biases(self, sampling, allowed=()):
    """float32[V] to add to the logits; `allowed` ids may be sampled."""
    bias_V = self._bans_V.copy()
    bias_V[list(allowed)] = 0.0
    for id, value in sampling.logit_bias.items():
      bias_V[id] += value
    return bias_V

  def check_size(self, job, stream: bool, param: str) -> None:
    """Raises ApiError for what the window or memory cannot take.

    Args:
      param: the field that holds what the prompts are made of.
    """
    s, window = job.sampling, self.cfg.block_size
    longest = max(map(len, job.prompts))
    if s.overflow == 'error' and longest + s.max_tokens > window:
      raise errors.context_length(
        window,
        f'you asked for {longest + s.max_tokens} ({longest} in the prompt, '
        f'{s.max_tokens} to generate)',
        param,
      )
    if s.logprobs is not None:
      # Of a stream nothing is kept, but an echo is one piece.
      tokens = 0 if stream else s.max_tokens * len(job.sequences)
      if s.echo:
        tokens += job.prompt_tokens * s.n
      values = tokens * (s.logprobs + 1)
      if values > MAX_LOGPROBS:
        raise bad_request(
          f'logprobs would be up to {values} values, for {tokens} tokens; at '
          f'most {MAX_LOGPROBS} are allowed: lower max_tokens, n or logprobs.',
          'logprobs',
        )

  def generate(self, request, sampling, prompts, **kwargs) -> 'Generation':
    """See Generation."""
    return Generation(self, request, sampling, prompts, **kwargs)

  async def reload(self) -> tuple[str, bool, str]:
    """('ok' or 'error', whether newer weights are in use, why or why not)."""
    async with self._reloading:
      try:
        loaded = await self.in_thread(
          load.load_model, self._workdir, self._which
        )
      except Exception as e:
        log.warning('reload failed: %s', e)
        reason = f'{type(e).__name__}: cannot read the new weights'
        return 'error', False, reason
      old = self.loaded
      if loaded.cfg != old.cfg:
        reason = 'the model has another shape: restart the server'
        return 'error', False, reason
      if loaded.tokenizer.fingerprint != old.tokenizer.fingerprint:
        reason = 'the tokenizer has changed: restart the server'
        return 'error', False, reason
      weights = await self.in_thread(weights_of, loaded)
      if weights.fingerprint == self.engine.weights.fingerprint:
        return 'ok', False, f'step {loaded.step} is in use already'
      self.loaded = dataclasses.replace(loaded, params=None)
      self.engine.swap(weights)
      reason = f'step {old.step} -> {loaded.step} ({loaded.which})'
      return 'ok', True, reason

  def close(self, timeout: float) -> bool:
    """Ends the workers; False if one is still busy."""
    ending = threading.Thread(
      target=self._workers.shutdown,
      kwargs={'cancel_futures': True},
      daemon=True,
    )
    ending.start()
    ending.join(timeout)
    return not ending.is_alive()

  async def drain(self) -> None:
    """Takes no more requests; waits for the running ones, then ends them."""
    self.engine.close()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + self.options.drain_timeout
    while self._generations and loop.time() < deadline:
      await asyncio.sleep(0.02)
    for generation in list(self._generations.values()):
      error = errors.unavailable('draining')
      error.reason = None  # It was let in: aborted, not turned away.
      generation.fail(error, 'shutdown')
    while self._generations and loop.time() < deadline + 1:
      await asyncio.sleep(0.02)


class Generation:
  """One request's way through the engine: an async context manager.

  Args:
    request: Starlette's, for its disconnect.
    sampling: Sampling.
    prompts: called on a worker thread, gives a list of int32[n] arrays.
    stop_ids: ids that end a choice. allowed: banned ids that may be sampled.
    stream: what comes of it is passed on at once.
    param: the field that the prompts come from, for errors.

  Entering reserves space in the queue and submits the job. `events` yields
  what comes of it, until all choices have ended.

  Raises (entering, or from `events`):
    ApiError: full, too long, timed out, failed. ClientGone: the client left.
  """

  def __init__(
    self,
    service,
    request,
    sampling,
    prompts,
    *,
    stop_ids,
    allowed=(),
    stream=False,
    param='prompt',
  ):
    self._service = service
    self._request = request
    self._prompts = prompts
    self._stop_ids = stop_ids
    self._allowed = allowed
    self._stream = stream
    self._param = param
    self._timers = []
    self._watch = None
    self._submitted = False
    self.job = jobs.Job(sampling)
    self.record = request.scope['rgpt']
    self.job.created = self.record.began

  async def __aenter__(self):
    service, job = self._service, self.job
    service.engine.check_open()
    service.engine.scheduler.reserve()
    service._generations[job] = self
    self.record.job = job
    try:
      self._start_timers()
      self._watch = asyncio.create_task(self._watch_disconnect())
      await self.in_thread(self._fill)
      service.check_size(job, self._stream, self._param)
      if service.engine.state == engines.FAILED:  # It would wait for ever.
        raise errors.unavailable(engines.FAILED)
      self._submitted = True
      service.engine.submit(job)
    except BaseException:
      if job.cancelled in ABORTS:
        service.metrics.aborted.labels(job.cancelled).inc()
      self._leave()
      raise
    return self

  async def __aexit__(self, kind, error, traceback):
    self._leave()

  async def in_thread(self, fn):
    """fn() on a worker; what ends the request need not wait for that."""
    done = asyncio.ensure_future(self._service.in_thread(fn))
    # Whether or not somebody is left to take its error.
    done.add_done_callback(lambda f: f.cancelled() or f.exception())
    failed = asyncio.create_task(self.job.mailbox.wait())
    try:
      await asyncio.wait({done, failed}, return_when=asyncio.FIRST_COMPLETED)
      if self.job.cancelled:
        self.record.finish = self.job.cancelled
        raise self._failure()
      return await done
    finally:
      done.cancel()
      failed.cancel()

  def _leave(self) -> None:
    service = self._service
    if not self._submitted:
      service.engine.scheduler.unreserve()
    elif self.job.ended is None:
      service.engine.cancel(self.job, 'disconnect')
    for timer in self._timers:
      timer.cancel()
    if self._watch is not None:
      self._watch.cancel()
    service._generations.pop(self.job, None)

  def _fill(self) -> None:
    """On a worker thread: whatever takes time."""
    service, sampling = self._service, self.job.sampling
    bias_V = service.biases(sampling, self._allowed)
    stops = {*self._stop_ids, *sampling.stop_token_ids}
    if sampling.ignore_eos:
      bias_V[list(self._stop_ids)] = -np.inf
    self.job.fill(self._prompts(), bias_V, stops, service.tokenizer)

  def _start_timers(self) -> None:
    options, loop = self._service.options, asyncio.get_running_loop()
    left = self.time_left()

    def queue_timeout():
      if self.job.started is None:
        self.fail(
          errors.overloaded(
            f'No slot was free within {options.queue_timeout:g} s.',
            'queue_timeout',
          ),
          'queue_timeout',
        )

    def request_timeout():
      self.fail(errors.timed_out(options.request_timeout), 'timeout')

    self._timers = [
      loop.call_later(options.queue_timeout, queue_timeout),
      loop.call_later(left, request_timeout),
    ]

  def time_left(self) -> float:
    """Seconds until the request times out."""
    spent = time.perf_counter() - self.job.created
    return self._service.options.request_timeout - spent

  async def _watch_disconnect(self) -> None:
    while (await self._request.receive())['type'] != 'http.disconnect':
      pass
    self.fail(ClientGone(), 'disconnect')

  def fail(self, error, cause: str) -> None:
    """Ends it from outside: the coroutine gets `error`, slots are freed."""
    self._service.engine.cancel(self.job, cause)
    self.job.mailbox.put(jobs.Failed(error))

  def give_up(self) -> None:
    """Nobody reads what comes of it."""
    self._service.engine.cancel(self.job, 'slow_reader')
    abort = self._request.scope['state']['abort']
    loop = asyncio.get_running_loop()
    self._timers.append(loop.call_later(LAST_SECONDS, abort))

  def _failure(self) -> Exception:
    for event in self.job.mailbox:
      if isinstance(event, jobs.Failed):
        return event.error
    return errors.internal()

  async def events(self):
    """Lists of Started, Scored, Delta and Finished, until all has ended."""
    while True:
      batch = []
      for event in await self.job.mailbox.take():
        if isinstance(event, jobs.Failed):
          self.record.finish = self.job.cancelled
          raise event.error
        if isinstance(event, jobs.Closed):
          if batch:
            yield batch
          if self.job.cancelled:
            self.record.finish = self.job.cancelled
            raise ApiError(500, 'The stream was not read.', 'server_error')
          reasons = {s.finish for s in self.job.sequences}
          self.record.finish = ','.join(sorted(reasons))
          return
        batch.append(event)
      if batch:
        yield batch


def weights_of(loaded) -> engines.Weights:
  """A LoadedModel's weights on the device."""
  fingerprint = load.params_sha256(loaded.params)[:12]
  params = jax.device_put(loaded.params, jax.devices()[0])
  return engines.Weights(params, f'rgpt-{loaded.step}-{fingerprint}')
