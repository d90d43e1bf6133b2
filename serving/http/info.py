"""The routes about the model and the server."""

import asyncio
import importlib.metadata
import time

import jax
from starlette.requests import Request
from starlette.responses import Response

from gpt.model import num_params
from gpt.runs.info import finite
from gpt.runs.load import LoadedModel
from serving import metrics
from serving.http import errors
from serving.http.encoding import json_response
from serving.http.generate import no_such_model
from serving.http.page import read_page
from serving.http.responses import Model, Slot
from serving.http.schemas import CompletionRequest
from serving.service import ReloadFailed, Service

# Sampling options whose defaults /props reports.
PARAMS = ('temperature', 'top_k', 'top_p', 'min_p', 'repetition_penalty')
PARAMS += ('presence_penalty', 'frequency_penalty', 'ignore_eos', 'n')


class InfoRoutes:
  """The endpoints, as methods that share the service."""

  def __init__(self, service: Service) -> None:
    self._service = service
    self._page, self._policy = read_page()
    self._n_params = num_params(service.cfg)

  def _cards(self) -> list[Model]:
    """The model and its adapters, in the order of the flags."""
    service = self._service
    name = service.options.model_name
    adapters = service.adapters.items()
    return [
      self._card(name, service.loaded, None),
      *(self._card(adapter, loaded, name) for adapter, loaded in adapters),
    ]

  def _card(self, name: str, loaded: LoadedModel, parent: str | None) -> Model:
    service, cfg = self._service, self._service.cfg
    return {
      'id': name,
      'object': 'model',
      'created': service.created,
      'owned_by': 'rgpt',
      'parent': parent,
      'max_model_len': cfg.block_size,
      'meta': {
        'name': loaded.name,
        'arch': cfg.arch,
        'n_params': self._n_params,
        'n_layer': cfg.n_layer,
        'n_head': cfg.n_head,
        'n_embd': cfg.n_embd,
        'n_ctx_train': cfg.block_size,
        'n_vocab': cfg.vocab_size,
        'tokenizer': service.tokenizer.kind,
        'chat': service.is_chat,
        'step': loaded.step,
        'checkpoint': loaded.which,
        'val_loss': finite(loaded.meta.get('best_loss')),
        'backend': jax.default_backend(),
        'slots': service.options.slots,
      },
    }

  async def models(self, request: Request) -> Response:
    """Lists the model that is served, and its adapters."""
    return json_response({'object': 'list', 'data': self._cards()})

  async def model(self, request: Request) -> Response:
    """The model's card."""
    name, cards = request.path_params['id'], self._cards()
    for card in cards:
      if name == card['id']:
        return json_response(card)
    if name != cards[0]['meta']['name']:
      raise no_such_model(name)
    return json_response(cards[0])

  async def props(self, request: Request) -> Response:
    """What llama.cpp's clients ask a server about itself."""
    service = self._service
    tokenizer, defaults = (
      service.tokenizer,
      CompletionRequest.model_validate({'prompt': ''}),
    )
    overflow = service.options.context_overflow
    names = {id: name for name, id in tokenizer.special_tokens.items()}
    return json_response(
      {
        'default_generation_settings': {
          'n_ctx': service.cfg.block_size,
          'params': {name: getattr(defaults, name) for name in PARAMS}
          | {'max_tokens': defaults.limit, 'context_overflow': overflow},
        },
        'total_slots': service.options.slots,
        'model_alias': service.options.model_name,
        'chat_template': tokenizer.chat_template,
        'bos_token': names.get(tokenizer.bos_id, ''),
        'eos_token': names.get(tokenizer.eos_id, ''),
        'modalities': {'vision': False, 'audio': False},
        'build_info': f'rgpt {package_version()}',
      }
    )

  async def slots(self, request: Request) -> Response:
    """What each slot is at; no texts."""
    service, engine = self._service, self._service.engine
    n_ctx, now = service.cfg.block_size, time.perf_counter()
    busy: dict[int, Slot] = {}
    for lane in engine.lanes:
      for seq in list(lane.active):  # The engine goes on meanwhile.
        id = lane.index * engine.programs.slots + seq.slot
        busy[id] = {
          'id': id,
          'n_ctx': n_ctx,
          'is_processing': True,
          'model': seq.job.adapter or service.options.model_name,
          'n_prompt_tokens': len(seq.prompt),
          'n_decoded': len(seq.sampled),
          'n_limit': seq.job.sampling.max_tokens,
          'seconds': now - seq.job.created,
        }
    slots: list[Slot] = [
      busy.get(i, {'id': i, 'n_ctx': n_ctx, 'is_processing': False})
      for i in range(service.options.slots)
    ]
    return json_response(slots)

  async def reload(self, request: Request) -> Response:
    """Loads newer weights from the workdir."""
    self._service.engine.check_open()
    status = 'ok'
    try:
      reloaded, reason = await self._service.reload()
    except ReloadFailed as e:
      status, reloaded, reason = 'error', False, str(e)
    return json_response(
      {
        'status': status,
        'model': self._service.options.model_name,
        'reloaded': reloaded,
        'reason': reason,
      }
    )

  async def health(self, request: Request) -> Response:
    """Whether the server takes requests: 200, else 503."""
    state = self._service.state
    if state == 'ready':
      return json_response({'status': 'ok'})
    headers = errors.unavailable(state).headers()
    return json_response({'status': state}, 503, headers)

  async def livez(self, request: Request) -> Response:
    """Whether the process answers at all."""
    return json_response({'status': 'ok'})

  async def version(self, request: Request) -> Response:
    """The version of rgpt."""
    return json_response({'name': 'rgpt', 'version': package_version()})

  async def metrics(self, request: Request) -> Response:
    """Prometheus metrics."""
    self._service.read_gauges()
    body = await asyncio.to_thread(self._service.metrics.render)
    return Response(body, headers={'content-type': metrics.CONTENT_TYPE})

  async def page(self, request: Request) -> Response:
    """The web page to try the model on."""
    return Response(
      self._page,
      headers={
        'content-type': 'text/html; charset=utf-8',
        'content-security-policy': self._policy,
        'referrer-policy': 'no-referrer',
        'cache-control': 'no-cache',
      },
    )


def package_version() -> str:
  try:
    return importlib.metadata.version('rgpt')
  except importlib.metadata.PackageNotFoundError:
    return 'unknown'
