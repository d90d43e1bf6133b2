"""Text prompts: encoding by data format, and the completion as text.

How a prompt is laid out depends on the data the model was trained on: plain
text is continued as it stands, a document starts with BOS, and a chat message
becomes a user turn that awaits the assistant's reply.
"""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from gpt.decoding import generation
from gpt.decoding.sampling import SamplingSettings
from gpt.model import GPT
from gpt.model.params import Params
from gpt.tokenizers import StreamDecoder, Tokenizer, chat_format


@dataclasses.dataclass(frozen=True)
class Prompt:
  """An encoded prompt and the rules of its completion.

  Attributes:
    ids: prompt tokens, never empty.
    stop_ids: the completion ends before the first of these.
    bias_V: float32[V], added to the logits; -inf bans a token.
    names: special tokens to print by name, by id; others print nothing.
  """

  ids: list[int]
  stop_ids: tuple[int, ...]
  bias_V: np.ndarray
  names: dict[int, str]


def read_prompt(
  tokenizer: Tokenizer,
  format: str,
  text: str,
  block_size: int,
  max_tokens: int,
) -> Prompt:
  """Encodes a prompt for a model trained on this `data.format`.

  Args:
    format: 'text': the text, or BOS if it is empty. 'lines': BOS and the text,
      the beginning of a document. 'chat': the text as a user turn, to be
      answered; if it is empty, BOS: the model writes both parts of a
      conversation, with the names of the turns.
    block_size: a chat prompt longer than this, less the room reserved for an
      answer of `max_tokens`, loses its beginning.
  """
  if format == 'chat' and chat_format.is_chat_tokenizer(tokenizer):
    if text:
      messages = [{'role': 'user', 'content': text}]
      room = chat_format.prompt_room(block_size, max_tokens)
      ids, _ = chat_format.build_prompt(messages, tokenizer, room)
      return chat_prompt(tokenizer, ids)
    names = {
      id: name
      for name, id in tokenizer.special_tokens.items()
      if id not in (tokenizer.bos_id, tokenizer.eos_id)
    }
    stop_ids = tuple({tokenizer.bos_id, tokenizer.eos_id})
    bias_V = allowing(tokenizer, (*stop_ids, *names))
    return Prompt([tokenizer.bos_id], stop_ids, bias_V, names)
  if format == 'lines':
    ids = [tokenizer.bos_id, *tokenizer.encode(text).tolist()]
    bias_V = generation.ban_bias(tokenizer)
    return Prompt(ids, (tokenizer.eos_id,), bias_V, {})
  return text_prompt(tokenizer, text)


def text_prompt(tokenizer: Tokenizer, text: str) -> Prompt:
  """A plain-text prompt; an empty one starts from BOS."""
  ids = [*tokenizer.prefix_ids, *tokenizer.encode(text).tolist()]
  ids = ids or [tokenizer.bos_id]
  bias_V = generation.ban_bias(tokenizer)
  return Prompt(ids, (tokenizer.eos_id,), bias_V, {})


def chat_prompt(tokenizer: Tokenizer, ids: list[int]) -> Prompt:
  """A prompt from ids of chat_format.build_prompt; ends with the turn."""
  stop_ids = chat_format.stop_ids(tokenizer)
  return Prompt(ids, stop_ids, allowing(tokenizer, stop_ids), {})


def allowing(tokenizer: Tokenizer, ids: Iterable[int]) -> np.ndarray:
  """float32[V]: generation.ban_bias with these ids allowed."""
  bias_V = generation.ban_bias(tokenizer)
  bias_V[list(ids)] = 0
  return bias_V


def window_mode(prompt: Prompt, format: str, block_size: int) -> str:
  """'slide' for plain text; documents and chats stop at the window's end."""
  stops = format != 'text' and len(prompt.ids) <= block_size
  return 'stop' if stops else 'slide'


class TurnDecoder:
  """Streams tokens to text: whole characters only, special tokens by name.

  Args:
    prompt: what the tokens complete.
  """

  def __init__(self, tokenizer: Tokenizer, prompt: Prompt) -> None:
    self._text = StreamDecoder(tokenizer, after=prompt.ids[-1])
    self._names = prompt.names

  def feed(self, tokens: list[int] | None) -> str:
    """The text of the next tokens; None flushes an incomplete character."""
    if tokens is None:
      return self._text.flush()
    return ''.join(map(self._feed_one, tokens))

  def _feed_one(self, id: int) -> str:
    if id not in self._names:
      return self._text.feed(id)
    return f'{self._text.flush()}\n{self._names[id]} '


def complete(
  model: GPT,
  params: Params,
  tokenizer: Tokenizer,
  prompt: Prompt | str,
  settings: SamplingSettings,
  max_tokens: int,
  window: str = 'slide',
) -> Iterator[str]:
  """Yields the completion of one prompt in pieces of whole characters.

  Args:
    prompt: a str is plain text (`text_prompt`).
    settings: sampling.settings of one row.
    max_tokens, window: see generation.generate.
  """
  if isinstance(prompt, str):
    prompt = text_prompt(tokenizer, prompt)
  decoder = TurnDecoder(tokenizer, prompt)
  for _, tokens in generation.generate(
    model,
    params,
    [prompt.ids],
    settings,
    max_tokens,
    bias_V=prompt.bias_V,
    stop_ids=prompt.stop_ids,
    window=window,
  ):
    if piece := decoder.feed(tokens):
      yield piece
