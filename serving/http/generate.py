"""The routes that generate text: OpenAI's, RandyGPT's and microgpt's."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from gpt.decoding.calls import CallReader, calls_source
from gpt.tokenizers.tool_format import format_of
from serving import generation
from serving.engine.events import Delta
from serving.generation import Client, Generation
from serving.http.answers import StreamedAnswer, WholeAnswer
from serving.http.body import client_gone
from serving.http.embeddings import EmbeddingReply, EmbeddingRequest
from serving.http.encoding import json_response, parse_object
from serving.http.errors import ApiError, bad_request, not_found
from serving.http.plain_schemas import (
  MicroChatRequest,
  MicroGenerateRequest,
  RandyRequest,
)
from serving.http.replies import ChatReply, CompletionReply, Reply, warnings_of
from serving.http.response_events import ResponseReply
from serving.http.response_request import ResponseRequest
from serving.http.schemas import (
  Body,
  ChatRequest,
  CompletionRequest,
  OpenAIRequest,
)
from serving.http.tool_replies import ToolReply
from serving.http.validation import read
from serving.service import Service

M = TypeVar('M', bound=Body)


class GenerateRoutes:
  """The endpoints; each gives an ASGI app that sends the response."""

  def __init__(self, service: Service) -> None:
    self._service = service
    self._options = service.options

  async def completions(self, request: Request) -> ASGIApp:
    """Continues prompts, as OpenAI's API does."""
    asked = await self._read(CompletionRequest, request)
    adapter = self._adapter(asked.model)
    run = generation.complete(
      self._service,
      client_of(request),
      asked.prompt,
      asked.sampling(self._options.context_overflow),
      streamed=asked.stream,
      structure=asked.structure,
    )
    run.job.adapter = adapter
    return self._openai(request, asked, run, CompletionReply)

  async def chat(self, request: Request) -> ASGIApp:
    """Answers a conversation, as OpenAI's API does."""
    asked = await self._read(ChatRequest, request)
    adapter = self._adapter(asked.model)
    check_chat(self._service)
    structure, reply = asked.structure, ChatReply
    if tools := asked.callable_tools:
      if structure is not None:
        raise bad_request(
          'tools cannot be combined with other constraints of the text; '
          'with tool_choice none they can.',
          'tools',
        )
      form = format_of(self._service.tokenizer)
      names = [tool['function']['name'] for tool in tools]
      optional = asked.call_is_optional
      structure = calls_source(tools, form, optional, asked.most_calls)
      reply = functools.partial(
        ToolReply, new_reader=lambda: CallReader(names, form, optional)
      )
    run = generation.chat(
      self._service,
      client_of(request),
      [message.as_turn() for message in asked.messages],
      asked.sampling(self._options.context_overflow),
      streamed=asked.stream,
      prefill=True,
      structure=structure,
      tools=asked.shown_tools,
    )
    run.job.adapter = adapter
    return self._openai(request, asked, run, reply)

  async def responses(self, request: Request) -> ASGIApp:
    """Answers an input, as OpenAI's Responses API does, but keeps nothing."""
    asked = await self._read(ResponseRequest, request)
    adapter = self._adapter(asked.model)
    check_chat(self._service)
    run = generation.chat(
      self._service,
      client_of(request),
      asked.turns(),
      asked.sampling(self._options.context_overflow),
      streamed=asked.stream,
      prefill=True,
      structure=asked.structure,
    )
    request.scope['rgpt'].job = run.job
    run.job.adapter = adapter
    name = adapter or self._options.model_name
    reply = ResponseReply(run.job, name, self._service.tokenizer, asked)
    answer = StreamedAnswer if asked.stream else WholeAnswer
    return answer(run, reply)

  async def embeddings(self, request: Request) -> ASGIApp:
    """Texts as vectors: the mean of the last hidden states, of length 1."""
    asked = await self._read(EmbeddingRequest, request)
    adapter = self._adapter(asked.model)
    run = generation.embed(
      self._service, client_of(request), asked.input, asked.sampling()
    )
    request.scope['rgpt'].job = run.job
    run.job.adapter = adapter
    name = adapter or self._options.model_name
    return WholeAnswer(
      run, EmbeddingReply(run.job, name, asked.encoding_format)
    )

  async def randy(self, request: Request) -> Response:
    """Continues a prompt, as RandyGPT's server does."""
    asked = await self._read(RandyRequest, request)
    adapter = self._adapter(asked.model)
    run = generation.complete(
      self._service,
      client_of(request),
      [asked.prompt],
      asked.sampling(self._options.context_overflow),
    )
    run.job.adapter = adapter
    (text,) = await texts_of(run, request)
    answer: dict[str, Any] = {
      'text': text,
      'model': adapter or self._service.loaded.name,
      'usage': {
        'prompt_tokens': run.job.prompt_tokens,
        'completion_tokens': run.job.completion_tokens,
      },
    }
    if run.job.tokens_dropped:
      answer['tokens_dropped'] = run.job.tokens_dropped
    return json_response(answer | warnings_of(run.job.notices))

  async def micro_generate(self, request: Request) -> Response:
    """Samples documents, as microgpt does."""
    asked = await self._read(MicroGenerateRequest, request)
    adapter = self._adapter(asked.model)
    tokenizer = self._service.tokenizer
    run = generation.complete(
      self._service,
      client_of(request),
      [()],
      asked.sampling(asked.num_samples),
      ends=(tokenizer.bos_id, tokenizer.eos_id),
    )
    run.job.adapter = adapter
    return json_response({'samples': await texts_of(run, request)})

  async def micro_chat(self, request: Request) -> Response:
    """Answers a conversation, as microgpt does."""
    asked = await self._read(MicroChatRequest, request)
    adapter = self._adapter(asked.model)
    check_chat(self._service)
    run = generation.chat(
      self._service,
      client_of(request),
      [message.as_turn() for message in asked.messages],
      asked.sampling(),
    )
    run.job.adapter = adapter
    (text,) = await texts_of(run, request)
    return json_response(
      {
        'role': 'assistant',
        'content': text,
        'tokens_dropped': run.job.tokens_dropped,
        **warnings_of(run.job.notices),
      }
    )

  async def _read(self, model: type[M], request: Request) -> M:
    """The request's body; 503 first if the engine takes no requests."""
    self._service.engine.check_open()
    body = parse_object(await request.body())
    asked = read(model, body, self._service.cfg.vocab_size)
    limit = self._options.max_tokens_limit
    for name in {
      'max_tokens',
      'max_completion_tokens',
      'max_output_tokens',
    } & asked.model_fields_set:
      if limit and getattr(asked, name) > limit:
        raise bad_request(
          f'{name} must be at most {limit} on this server, not '
          f'{getattr(asked, name)}.',
          name,
        )
    return asked

  def _adapter(self, name: str | None) -> str:
    """The adapter that a request's `model` names, or ''. Raises ApiError (404).

    Clients send all sorts of names to a server of one model. Among adapters a
    misspelt name would get the text of another model.
    """
    adapters = self._service.adapters
    if name in adapters:
      return name
    known = (None, self._options.model_name, self._service.loaded.name)
    if name not in known and (self._options.strict_model or adapters):
      raise no_such_model(str(name))
    return ''

  def _openai(
    self,
    request: Request,
    asked: OpenAIRequest,
    run: Generation,
    kind: Callable[..., Reply],
  ) -> ASGIApp:
    request.scope['rgpt'].job = run.job
    reply = kind(
      run.job,
      run.job.adapter or self._options.model_name,
      self._service.tokenizer,
      asked.include_usage,
      progress=asked.return_progress,
      timed=asked.timings_per_token,
    )
    answer = StreamedAnswer if asked.stream else WholeAnswer
    return answer(run, reply)


def check_chat(service: Service) -> None:
  """Raises ApiError (400) unless the model can chat."""
  if not service.is_chat:
    raise bad_request(
      'This model was not trained to chat: its tokenizer has no chat tokens '
      'and no chat template.',
      'model',
      'not_a_chat_model',
    )
  if service.chat_problem:
    raise bad_request(service.chat_problem, 'model', 'bad_chat_template')


def client_of(request: Request) -> Client:
  """The sender of a request whose body has been read."""
  return Client(
    request.scope['rgpt'].began,
    lambda: client_gone(request.receive),
    request.scope['state']['abort'],
    request.scope['state']['unsent'],
  )


async def texts_of(run: Generation, request: Request) -> list[str]:
  """Runs a generation; the text of each choice."""
  request.scope['rgpt'].job = run.job
  async with run:
    parts: dict[int, list[str]] = {}
    async for batch in run.events():
      for event in batch:
        if isinstance(event, Delta):
          parts.setdefault(event.index, []).append(event.text)
  return [''.join(parts.get(i, ())) for i in range(len(run.job.sequences))]


def no_such_model(name: str) -> ApiError:
  return not_found(
    f'The model {name[:80]!r} does not exist; GET /v1/models lists what does.',
    'model',
    'model_not_found',
  )
