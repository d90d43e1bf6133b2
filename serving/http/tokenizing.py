"""The routes that only tokenize, in llama.cpp's form and in vLLM's."""

import asyncio
import itertools
from collections.abc import Callable, Iterable
from typing import Annotated, Any, ClassVar, NotRequired, Self, TypeVar

from pydantic import Field, model_validator
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from gpt.tokenizers import Tokenizer
from serving import prompts
from serving.engine.errors import RequestTimeout
from serving.engine.notices import unknown_characters
from serving.http.encoding import dumps, encoded_response, parse_object
from serving.http.fields import MAX_INT32, Text, TokenIds
from serving.http.generate import check_chat
from serving.http.replies import token_text, warnings_of
from serving.http.responses import Notice
from serving.http.schemas import Body, Generating, Message, Messages
from serving.http.unsupported import OFF
from serving.http.validation import missing, read, refused
from serving.service import Service

M = TypeVar('M', bound=Body)
SPECIAL = 'Begin with the ids that the model expects before a text.'


class TemplateRequest(Generating):
  """POST /apply-template, as llama.cpp has it."""

  foreign: ClassVar = {
    'add_generation_prompt': (True,),
    'chat_template': OFF,
    'chat_template_kwargs': OFF,
    'continue_final_message': (),
    'tools': OFF,
  }

  messages: Messages


class TokenizeRequest(Generating):
  """POST /tokenize: llama.cpp's `content`, or vLLM's `prompt` or `messages`."""

  foreign: ClassVar = {**TemplateRequest.foreign, 'parse_special': (False,)}

  content: Text | None = None
  prompt: Text | None = None
  messages: Messages | None = None
  add_special: Annotated[bool, Field(description=f'Of content. {SPECIAL}')] = (
    False
  )
  add_special_tokens: Annotated[
    bool, Field(description=f'Of a prompt. {SPECIAL}')
  ] = True
  with_pieces: Annotated[
    bool, Field(description='Of content: {id, piece} instead of ids.')
  ] = False
  return_token_strs: Annotated[
    bool, Field(description='Of a prompt or messages: their tokens as text.')
  ] = False

  @model_validator(mode='after')
  def one_text(self) -> Self:
    names = ('content', 'prompt', 'messages')
    given = [name for name in names if getattr(self, name) is not None]
    if not given:
      raise missing('is required, or prompt, or messages.', 'content')
    if len(given) > 1:
      raise refused(f'cannot be combined with {given[0]}.', given[1])
    return self


class DetokenizeRequest(Body):
  """POST /detokenize."""

  tokens: TokenIds


class Piece(TypedDict):
  """A token and its text, or its bytes where they are no whole characters."""

  id: int
  piece: str | list[int]


class Tokens(TypedDict):
  """Of a prompt or messages: also what vLLM answers."""

  tokens: list[int] | list[Piece]
  count: NotRequired[int]
  max_model_len: NotRequired[int]
  token_strs: NotRequired[list[str] | None]
  warnings: NotRequired[list[Notice]]


class Content(TypedDict):
  content: str


class TemplatedPrompt(TypedDict):
  prompt: str


class TokenRoutes:
  """The endpoints, as methods that share the service."""

  def __init__(self, service: Service) -> None:
    self._service = service
    self._tokenizer = service.tokenizer

  async def tokenize(self, request: Request) -> Response:
    """Text -> token ids."""
    asked = await self._read(TokenizeRequest, request)
    if asked.messages is not None:
      check_chat(self._service)
    return await self._write(lambda: self._tokens(asked))

  async def detokenize(self, request: Request) -> Response:
    """Token ids -> text."""
    asked = await self._read(DetokenizeRequest, request)
    decode = self._tokenizer.decode
    return await self._write(lambda: {'content': decode(asked.tokens)})

  async def apply_template(self, request: Request) -> Response:
    """A conversation -> the text of its prompt, with control tokens' names."""
    asked = await self._read(TemplateRequest, request)
    check_chat(self._service)

    def make() -> TemplatedPrompt:
      return {'prompt': spelled(self._tokenizer, self._chat(asked.messages))}

    return await self._write(make)

  def _tokens(self, asked: TokenizeRequest) -> dict[str, Any]:
    tokenizer = self._tokenizer
    text, special = asked.content, asked.add_special
    if asked.prompt is not None:
      text, special = asked.prompt, asked.add_special_tokens
    if text is None:
      turns = asked.messages or []
      ids, param = self._chat(turns), 'messages'
      texts = [message.content for message in turns]
    else:
      ids, param = tokenizer.encode(text).tolist(), 'content'
      ids = [*tokenizer.prefix_ids, *ids] if special else ids
      texts = [text]
    lost = warnings_of(unknown_characters(tokenizer, texts, param))
    if asked.content is not None:
      pieces = [piece(tokenizer, id) for id in ids]
      return {'tokens': pieces if asked.with_pieces else ids, **lost}
    strings = [token_text(tokenizer, id) for id in ids]
    return {
      'tokens': ids,
      'count': len(ids),
      'max_model_len': self._service.cfg.block_size,
      'token_strs': strings if asked.return_token_strs else None,
      **lost,
    }

  def _chat(self, messages: Iterable[Message]) -> list[int]:
    """The ids of a whole conversation's prompt, whatever the context."""
    turns = [message.as_turn() for message in messages]
    ids, _ = prompts.chat_prompt(self._tokenizer, turns, MAX_INT32, True)
    return ids.tolist()

  async def _read(self, model: type[M], request: Request) -> M:
    body = parse_object(await request.body())
    return read(model, body, self._service.cfg.vocab_size)

  async def _write(self, make: Callable[[], Any]) -> Response:
    """make() as JSON, computed on a worker within the request's timeout."""
    seconds = self._service.options.request_timeout
    try:
      async with asyncio.timeout(seconds):
        data = await self._service.in_thread(lambda: dumps(make()))
    except TimeoutError as e:
      raise RequestTimeout(seconds) from e
    return encoded_response(data)


def piece(tokenizer: Tokenizer, id: int) -> Piece:
  """A token as llama.cpp writes it."""
  data = tokenizer.token_bytes(id)
  try:
    text = data.decode('utf-8')
  except UnicodeDecodeError:
    return {'id': id, 'piece': list(data)}
  return {'id': id, 'piece': text or token_text(tokenizer, id)}


def spelled(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
  """Text of ids in which control tokens have their names."""
  names = {id: name for name, id in tokenizer.special_tokens.items()}
  parts = []
  for is_name, run in itertools.groupby(ids, key=names.__contains__):
    found = list(run)
    parts += (
      [names[id] for id in found] if is_name else [tokenizer.decode(found)]
    )
  return ''.join(parts)
