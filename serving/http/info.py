"""The routes about the model and the server, and those that only tokenize."""

import asyncio
import importlib.metadata
from collections.abc import Callable
from typing import Any

import jax
from starlette.requests import Request
from starlette.responses import Response

from gpt.model import num_params
from gpt.runs.info import finite
from gpt.runs.load import LoadedModel
from serving import metrics
from serving.engine.errors import RequestTimeout
from serving.engine.notices import unknown_characters
from serving.http import errors
from serving.http.encoding import (
  dumps,
  encoded_response,
  json_response,
  parse_object,
)
from serving.http.generate import no_such_model
from serving.http.page import read_page
from serving.http.replies import warnings_of
from serving.http.responses import Model
from serving.http.schemas import DetokenizeRequest, TokenizeRequest
from serving.http.validation import read
from serving.service import ReloadFailed, Service


class InfoRoutes:
  """The endpoints, as methods that share the service."""

  def __init__(self, service: Service) -> None:
    self._service = service
    self._page, self._policy = read_page()
    self._n_params = num_params(service.cfg)

  async def tokenize(self, request: Request) -> Response:
    """Text -> token ids."""
    vocab_size = self._service.cfg.vocab_size
    asked = read(
      TokenizeRequest, parse_object(await request.body()), vocab_size
    )
    tokenizer = self._service.tokenizer

    def make() -> dict[str, Any]:
      lost = unknown_characters(tokenizer, [asked.content], 'content')
      return {
        'tokens': tokenizer.encode(asked.content).tolist(),
        **warnings_of(lost),
      }

    return await self._write(make)

  async def detokenize(self, request: Request) -> Response:
    """Token ids -> text."""
    vocab_size = self._service.cfg.vocab_size
    asked = read(
      DetokenizeRequest, parse_object(await request.body()), vocab_size
    )
    decode = self._service.tokenizer.decode
    return await self._write(lambda: {'content': decode(asked.tokens)})

  async def _write(self, make: Callable[[], Any]) -> Response:
    """make() as JSON, computed on a worker within the request's timeout."""
    seconds = self._service.options.request_timeout
    try:
      async with asyncio.timeout(seconds):
        data = await self._service.in_thread(lambda: dumps(make()))
    except TimeoutError as e:
      raise RequestTimeout(seconds) from e
    return encoded_response(data)

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
