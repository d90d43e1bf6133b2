"""A loaded model and its engine: events out, reload, shutdown."""

import asyncio
import concurrent.futures
import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from gpt.decoding.generation import ban_bias
from gpt.errors import UserError
from gpt.runs import base, load
from gpt.runs.format_version import NewerFormat
from gpt.runs.load import LoadedModel
from gpt.tokenizers import chat_format
from serving.engine.compilations import compile_count
from serving.engine.engine import Engine
from serving.engine.errors import Interrupted, RequestFailed
from serving.engine.events import Event
from serving.engine.grammars import Grammars
from serving.engine.jobs import Job
from serving.engine.weights import Weights, prepared, to_device
from serving.metrics import Metrics
from serving.options import Options

log = logging.getLogger('rgpt.serve')

T = TypeVar('T')
LAST_WORDS = 0.5  # seconds a stream has to read why it ends at shutdown


class ReloadFailed(Exception):
  """The new weights cannot be used; the old ones stay."""


class Running(Protocol):
  """A request in progress, as the service sees it; see Generation."""

  def fail(self, error: RequestFailed, cause: str) -> None: ...

  def abort(self) -> None: ...


class Service:
  """A model that answers requests; its methods run on the event loop.

  Args:
    workdir, which: where `loaded` came from, for reloads.
    on_death: called with the error of an engine that has given up.

  Attributes:
    loaded: the model, without its params.
    adapters: by name, the models of --adapter, likewise.
    bans_V: float32[V], -inf for tokens that must never be sampled.
    is_chat: whether the model can chat.
    chat_ends: ids that end the assistant's turn.
    chat_problem: why its chat template cannot be used, or ''.
    generations: the requests in progress, by their jobs.
    grammars: compiled ones, for requests that ask for structured text.
  """

  def __init__(
    self,
    loaded: LoadedModel,
    workdir: Any,
    which: str,
    options: Options,
    on_death: Callable[[BaseException], None],
  ) -> None:
    self.loaded = dataclasses.replace(loaded, params=None)
    self.options = options
    self.tokenizer = loaded.tokenizer
    self.cfg = loaded.cfg
    self.created = int(time.time())
    self.is_chat = chat_format.is_chat_tokenizer(self.tokenizer)
    self.chat_ends: tuple[int, ...] = ()
    self.chat_problem = ''
    if self.is_chat:
      try:
        self.chat_ends = chat_format.stop_ids(self.tokenizer)
      except UserError as e:  # Completions work all the same.
        self.chat_problem = str(e)
        log.warning('chat is off: %s', e)
    self.bans_V = ban_bias(self.tokenizer)
    self.generations: dict[Job, Running] = {}
    self.grammars = Grammars(self.tokenizer)
    compilations = compile_count()
    self.metrics = Metrics(lambda: compilations.value)
    self.metrics.slots_total.set(options.slots)
    self._workdir, self._which = workdir, which
    self._on_death = on_death
    self._loop: asyncio.AbstractEventLoop | None = None
    self._workers = concurrent.futures.ThreadPoolExecutor(
      2, thread_name_prefix='rgpt-text'
    )
    self._reloading = asyncio.Lock()
    weights = to_device(loaded)
    self.adapters, adapted = self._load_adapters(loaded, weights)
    self.engine = Engine(
      loaded.model,
      weights,
      options.slots,
      options.max_queue,
      self.metrics,
      lambda outbox: self._from_engine(self._deliver, outbox),
      lambda error: self._from_engine(self._on_death, error),
      adapters=adapted,
      prefix_bytes=options.prefix_cache,
    )

  def start(self) -> None:
    """Starts the engine; called on the event loop."""
    self._loop = asyncio.get_running_loop()
    self.engine.start()

  @property
  def state(self) -> str:
    return self.engine.state

  async def in_thread(self, fn: Callable[..., T], *args: Any) -> T:
    """fn(*args) on a worker: long texts must not block the event loop."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(self._workers, fn, *args)

  def read_gauges(self) -> None:
    """Updates the gauges for a scrape."""
    running, waiting, busy = self.engine.scheduler.counts()
    self.metrics.running.set(running)
    self.metrics.waiting.set(waiting)
    self.metrics.slots_busy.set(busy)

  def _from_engine(self, fn: Callable[[Any], None], value: Any) -> None:
    """Runs fn(value) on the event loop; called by the engine's thread."""
    assert self._loop is not None
    try:
      self._loop.call_soon_threadsafe(fn, value)
    except RuntimeError:  # The loop is closed: no client is left.
      pass

  def _deliver(self, outbox: list[tuple[Job, Event]]) -> None:
    for job, event in outbox:
      job.mailbox.put(event)

  async def reload(self) -> tuple[bool, str]:
    """Loads the newest weights of the workdir; running requests keep theirs.

    Returns:
      (whether newer weights are in use now, an explanation).

    Raises:
      ReloadFailed: they cannot be read or do not fit this server.
    """
    async with self._reloading:
      old, new = self.loaded, await self.in_thread(self._load)
      weights = await self.in_thread(to_device, new)
      adapters, adapted = await self.in_thread(self._reread, new, weights)
      changed = [
        name
        for name, found in adapted.items()
        if found.fingerprint != self.engine.adapters[name].fingerprint
      ]
      same = weights.fingerprint == self.engine.weights.fingerprint
      if same and not changed:
        return False, f'step {new.step} is already in use'
      self.loaded = dataclasses.replace(new, params=None)
      self.adapters = adapters
      programs = self.engine.programs
      self.engine.swap(
        *await self.in_thread(prepared, programs, weights, adapted)
      )
      steps = f'step {old.step} -> {new.step} ({new.which})'
      return True, '; '.join(
        ([] if same else [steps])
        + [f'{name}: step {adapters[name].step}' for name in changed]
      )

  def _load_adapters(
    self, loaded: LoadedModel, weights: Weights
  ) -> tuple[dict[str, LoadedModel], dict[str, Weights]]:
    """The models of --adapter, and their weights on the device."""
    models, placed = {}, {}
    if not self.options.adapters:
      return models, placed
    fingerprint = base.fingerprint(loaded.cfg, loaded.params)
    for name, workdir in self.options.adapters:
      found = load.load_adapter(workdir, loaded, fingerprint, self._which)
      placed[name] = to_device(found, loaded.params, weights)
      models[name] = dataclasses.replace(found, params=None)
    return models, placed

  def _reread(
    self, loaded: LoadedModel, weights: Weights
  ) -> tuple[dict[str, LoadedModel], dict[str, Weights]]:
    """As _load_adapters, for a reload."""
    try:
      return self._load_adapters(loaded, weights)
    except Exception as e:  # Its message may name paths.
      log.warning('reload failed: %s', e)
      raise ReloadFailed('the adapters do not fit the new weights') from e

  def _load(self) -> LoadedModel:
    """The workdir's model, if this server can swap it in."""
    try:
      new = load.load_model(self._workdir, self._which)
    except NewerFormat as e:  # Other messages may name paths.
      log.warning('reload failed: %s', e)
      raise ReloadFailed(str(e)) from e
    except Exception as e:
      log.warning('reload failed: %s', e)
      raise ReloadFailed(
        f'{type(e).__name__}: cannot read the new weights'
      ) from e
    if new.cfg != self.cfg:
      raise ReloadFailed("the model's shape has changed: restart the server")
    if new.tokenizer.fingerprint != self.tokenizer.fingerprint:
      raise ReloadFailed('the tokenizer has changed: restart the server')
    if new.tokenizer.chat_template != self.tokenizer.chat_template:
      raise ReloadFailed('the chat template has changed: restart the server')
    return new

  async def drain(self) -> None:
    """Refuses new requests and waits for running ones, then ends them."""
    self.engine.close()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + self.options.drain_timeout
    while self.generations and loop.time() < deadline:
      await asyncio.sleep(0.02)
    for generation in list(self.generations.values()):
      generation.fail(Interrupted(), 'shutdown')
    while self.generations and loop.time() < deadline + LAST_WORDS:
      await asyncio.sleep(0.02)
    for generation in list(self.generations.values()):
      generation.abort()  # It does not read its error.
