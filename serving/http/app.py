"""The routes: which path does what, and nothing else."""

import asyncio
import importlib.metadata

import jax
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route, Router

from gpt.errors import UserError
from gpt.model import num_params
from gpt.tokenizers import chat_format
from serving import metrics
from serving.http import errors, schemas
from serving.http.errors import ApiError, bad_request, not_found
from serving.http.fields import parse_json
from serving.http.gate import Gate
from serving.http.page import read_page
from serving.http.replies import ChatReply, CompletionReply
from serving.http.stream import EventStream, dumps


def create_app(service) -> Gate:
  """The ASGI app around a Service."""
  routes = Routes(service)
  table = routes.table()
  templates = {path: path for path in table}

  def template(path: str) -> str | None:
    model_paths = ('/v1/models/', '/models/')
    if path not in templates and path.startswith(model_paths):
      return path[: path.index('models/')] + 'models/{id}'
    return templates.get(path)

  router = Router(
    [
      Route(path, dispatch(methods), methods=list(methods))
      for path, methods in table.items()
    ],
    redirect_slashes=False,
  )

  async def app(scope, receive, send):
    # With an app in its scope, the router raises what it cannot answer.
    scope['app'] = app
    try:
      await router(scope, receive, send)
    except HTTPException as e:
      raise unroutable(scope, e) from e

  service.metrics.baseline_routes(
    (path.replace(':path', ''), method)
    for path, methods in table.items()
    for method in methods
  )
  return Gate(app, service.options, service.metrics, template)


def dispatch(methods: dict):
  """One endpoint for a path, so that 405 lists all its methods."""

  async def endpoint(request):
    method = 'GET' if request.method == 'HEAD' else request.method
    return await methods[method](request)

  return endpoint


def unroutable(scope, error: HTTPException) -> ApiError:
  """The router's 404 and 405 in our shape."""
  path, method = scope['path'][:80], scope['method']
  if error.status_code == 405:
    allow = (error.headers or {}).get('Allow')
    return ApiError(405, f'{method} is not allowed for {path}.', allow=allow)
  return not_found(f'There is nothing at {path}.')


def answer(value: dict, status: int = 200, headers=None) -> Response:
  return encoded(dumps(value), status, headers)


def encoded(data: bytes, status: int = 200, headers=None) -> Response:
  return Response(data, status, headers, 'application/json')


class Routes:
  """The endpoints, as methods that share the service."""

  def __init__(self, service):
    self.service = service
    self._page, self._policy = read_page()
    self._n_params = num_params(service.cfg)

  def table(self) -> dict:
    """{path: {method: endpoint}}."""
    openai = {
      '/completions': {'POST': self.completions},
      '/chat/completions': {'POST': self.chat},
      '/models': {'GET': self.models},
      '/models/{id:path}': {'GET': self.model},
    }
    return {
      '/': {'GET': self.page, 'POST': self.randy},
      **{f'/v1{path}': methods for path, methods in openai.items()},
      **openai,
      '/microgpt/v1/generate': {'POST': self.micro_generate},
      '/microgpt/v1/chat': {'POST': self.micro_chat},
      '/tokenize': {'POST': self.tokenize},
      '/detokenize': {'POST': self.detokenize},
      '/health': {'GET': self.health},
      '/livez': {'GET': self.livez},
      '/version': {'GET': self.version},
      '/metrics': {'GET': self.metrics},
      '/reload': {'POST': self.reload},
    }

  # Generation.

  async def body(self, request) -> dict:
    """The JSON object of a request; 503 first, if nothing can be done."""
    self.service.engine.check_open()
    return parse_json(await request.body())

  def check_model(self, name: str | None) -> None:
    options = self.service.options
    known = (options.model_name, self.service.loaded.name)
    if options.strict_model and name is not None and name not in known:
      raise no_such_model(name)

  def open(self, request, spec, prompts, stop_ids=None, **kwargs):
    if stop_ids is None:
      stop_ids = (self.service.tokenizer.eos_id,)
    return self.service.generate(
      request,
      spec.sampling,
      prompts,
      stop_ids=stop_ids,
      stream=spec.stream,
      **kwargs,
    )

  def open_completion(self, request, spec, **kwargs):
    """A Generation for the prompts of a schemas.Completion."""
    encode = self.service.encode
    return self.open(
      request, spec, lambda: [encode(p) for p in spec.prompts], **kwargs
    )

  def open_chat(self, request, spec):
    """(Generation, dict that will hold tokens_dropped) for a schemas.Chat."""
    service, extra = self.service, {}
    if not service.is_chat:
      raise bad_request(
        'This model was not trained to chat: its tokenizer has no chat tokens.',
        'model',
        'not_a_chat_model',
      )

    def prompts():
      try:
        ids, dropped = service.chat_prompt(
          spec.messages, spec.sampling.max_tokens
        )
      except UserError as e:
        raise bad_request(f'messages: {e}', 'messages') from e
      if dropped and spec.sampling.overflow == 'error':
        raise errors.context_length(
          service.cfg.block_size,
          f'your messages have {len(ids) + dropped}',
          'messages',
        )
      extra['tokens_dropped'] = dropped
      return [ids]

    ends = chat_format.stop_ids(service.tokenizer)
    generation = self.open(
      request, spec, prompts, stop_ids=ends, allowed=ends, param='messages'
    )
    return generation, extra

  async def respond(self, spec, generation, make_reply) -> Response:
    """Runs a generation and answers in OpenAI's way, streaming or not."""
    await generation.__aenter__()
    left = False
    try:
      reply = make_reply()
      events = generation.events()
      if spec.stream:
        # Until a slot is held, errors are statuses.
        first = await anext(events)
        left = True
        return EventStream(generation, reply, events, first)
      batches = [batch async for batch in events]
      collected = [event for batch in batches for event in batch]
      return encoded(
        await generation.in_thread(lambda: dumps(reply.whole(collected)))
      )
    finally:
      if not left:
        await generation.__aexit__(None, None, None)

  async def completions(self, request):
    service = self.service
    spec = schemas.read_completion(
      await self.body(request),
      service.cfg.vocab_size,
      service.options.context_overflow,
    )
    self.check_model(spec.model)
    generation = self.open_completion(request, spec)
    return await self.respond(
      spec,
      generation,
      lambda: CompletionReply(
        generation.job,
        service.options.model_name,
        service.tokenizer,
        spec.include_usage,
      ),
    )

  async def chat(self, request):
    service = self.service
    spec = schemas.read_chat(
      await self.body(request),
      service.cfg.vocab_size,
      service.options.context_overflow,
    )
    self.check_model(spec.model)
    generation, extra = self.open_chat(request, spec)
    return await self.respond(
      spec,
      generation,
      lambda: ChatReply(
        generation.job,
        service.options.model_name,
        service.tokenizer,
        spec.include_usage,
        extra if extra['tokens_dropped'] else None,
      ),
    )

  async def texts(self, generation) -> list[str]:
    """Runs a generation; the text of each choice."""
    async with generation:
      parts = [[] for _ in generation.job.sequences]
      async for batch in generation.events():
        for event in batch:
          if hasattr(event, 'text'):
            parts[event.index].append(event.text)
      return [''.join(p) for p in parts]

  async def randy(self, request):
    body = await self.body(request)
    spec = schemas.read_randy(body, self.service.options.context_overflow)
    generation = self.open_completion(request, spec)
    (text,) = await self.texts(generation)
    job = generation.job
    return answer(
      {
        'text': text,
        'model': self.service.loaded.name,
        'usage': {
          'prompt_tokens': job.prompt_tokens,
          'completion_tokens': job.completion_tokens,
        },
      }
    )

  async def micro_generate(self, request):
    spec = schemas.read_micro_generate(await self.body(request))
    tokenizer = self.service.tokenizer
    ends = (tokenizer.bos_id, tokenizer.eos_id)
    generation = self.open_completion(
      request, spec, stop_ids=ends, allowed=ends
    )
    return answer({'samples': await self.texts(generation)})

  async def micro_chat(self, request):
    spec = schemas.read_micro_chat(await self.body(request))
    generation, extra = self.open_chat(request, spec)
    (text,) = await self.texts(generation)
    return answer({'role': 'assistant', 'content': text, **extra})

  # Tokens.

  async def tokenize(self, request):
    content = schemas.read_tokenize(parse_json(await request.body()))
    encode = self.service.tokenizer.encode
    return await self.write(lambda: {'tokens': encode(content).tolist()})

  async def detokenize(self, request):
    tokens = schemas.read_detokenize(
      parse_json(await request.body()), self.service.cfg.vocab_size
    )
    decode = self.service.tokenizer.decode
    return await self.write(lambda: {'content': decode(tokens)})

  async def write(self, make) -> Response:
    """The answer make() gives, from a worker and in time."""
    seconds = self.service.options.request_timeout
    try:
      async with asyncio.timeout(seconds):
        return encoded(await self.service.in_thread(lambda: dumps(make())))
    except TimeoutError as e:
      raise errors.timed_out(seconds) from e

  # The model and the server.

  def card(self) -> dict:
    service = self.service
    loaded, cfg = service.loaded, service.cfg
    return {
      'id': service.options.model_name,
      'object': 'model',
      'created': service.created,
      'owned_by': 'rgpt',
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
        'val_loss': loaded.meta.get('best_loss'),
        'backend': jax.default_backend(),
        'slots': service.options.slots,
      },
    }

  async def models(self, request):
    return answer({'object': 'list', 'data': [self.card()]})

  async def model(self, request):
    name, card = request.path_params['id'], self.card()
    if name not in (card['id'], card['meta']['name']):
      raise no_such_model(name)
    return answer(card)

  async def reload(self, request):
    self.service.engine.check_open()
    status, reloaded, reason = await self.service.reload()
    return answer(
      {
        'status': status,
        'model': self.service.options.model_name,
        'reloaded': reloaded,
        'reason': reason,
      }
    )

  async def health(self, request):
    state = self.service.state
    if state == 'ready':
      return answer({'status': 'ok'})
    error = errors.unavailable(state)
    return answer({'status': state}, 503, error.headers())

  async def livez(self, request):
    return answer({'status': 'ok'})

  async def version(self, request):
    return answer({'name': 'rgpt', 'version': package_version()})

  async def metrics(self, request):
    self.service.read_gauges()
    body = await asyncio.to_thread(self.service.metrics.render)
    return Response(body, headers={'content-type': metrics.CONTENT_TYPE})

  async def page(self, request):
    return Response(
      self._page,
      headers={
        'content-type': 'text/html; charset=utf-8',
        'content-security-policy': self._policy,
        'referrer-policy': 'no-referrer',
        'cache-control': 'no-cache',
      },
    )


def no_such_model(name: str) -> ApiError:
  return not_found(
    f'The model {name[:80]!r} does not exist; GET /v1/models lists what does.',
    'model',
    'model_not_found',
  )


def package_version() -> str:
  try:
    return importlib.metadata.version('rgpt')
  except importlib.metadata.PackageNotFoundError:
    return 'unknown'
