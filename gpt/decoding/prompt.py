"""What a person's prompt means to a model: by the data it was trained on.

It exists because the same words stand elsewhere in each kind of document: a
stream is continued as it is, a line begins with BOS, and what is said to a
chat model is a user's turn that waits for an answer.
"""

import dataclasses

import numpy as np

from gpt.decoding import generation
from gpt.tokenizers import StreamDecoder, chat_format


@dataclasses.dataclass(frozen=True)
class Prompt:
  """What to start decoding from, and how it ends.

  ids: never empty. stop_ids: a sample ends with the first of them.
  bias_V: float32[V], -inf for what must not be sampled.
  names: control tokens that are shown, by id; the others give no text.
  """

  ids: list[int]
  stop_ids: tuple[int, ...]
  bias_V: np.ndarray
  names: dict[int, str]


def read_prompt(
  tokenizer, format: str, text: str, block_size: int, max_tokens: int
) -> Prompt:
  """A prompt for a model of this `data.format`.

  'text': the text, or BOS if there is none. 'lines': BOS and the text, a
  document that begins so. 'chat': the user says the text, the model answers;
  without a text it makes up a whole conversation, whose turns are named.

  Args:
    block_size: of the model; a chat prompt leaves room for an answer of
      `max_tokens`, or a part of it.
  """
  if format == 'chat' and chat_format.is_chat_tokenizer(tokenizer):
    if text:
      said = [{'role': 'user', 'content': text}]
      room = chat_format.prompt_room(block_size, max_tokens)
      ids, _ = chat_format.build_prompt(said, tokenizer, room)
      return chat_prompt(tokenizer, ids)
    names = {
      id: name
      for name, id in tokenizer.special_tokens.items()
      if id not in (tokenizer.bos_id, tokenizer.eos_id)
    }
    ends = tuple({tokenizer.bos_id, tokenizer.eos_id})
    bias_V = allowing(tokenizer, (*ends, *names))
    return Prompt([tokenizer.bos_id], ends, bias_V, names)
  ids = generation.prompt_tokens(tokenizer, text)
  if format == 'lines' and text:
    ids = [tokenizer.bos_id, *tokenizer.encode(text).tolist()]
  return Prompt(ids, (tokenizer.eos_id,), generation.ban_bias(tokenizer), {})


def chat_prompt(tokenizer, ids: list[int]) -> Prompt:
  """A prompt of chat.build_prompt: the answer ends with its turn."""
  ends = chat_format.stop_ids(tokenizer)
  return Prompt(ids, ends, allowing(tokenizer, ends), {})


def allowing(tokenizer, ids) -> np.ndarray:
  """float32[V]: generation.ban_bias, but 0 for these ids."""
  bias_V = generation.ban_bias(tokenizer)
  bias_V[list(ids)] = 0
  return bias_V


class Shown:
  """New tokens as text: whole characters, and the names of turns."""

  def __init__(self, tokenizer, names: dict[int, str]):
    self._text, self._names = StreamDecoder(tokenizer), names

  def feed(self, new: list[int] | None) -> str:
    """The text of more tokens; None: the end, of what was held back."""
    if new is None:
      return self._text.flush()
    return ''.join(map(self._one, new))

  def _one(self, id: int) -> str:
    if id not in self._names:
      return self._text.feed(id)
    return f'{self._text.flush()}\n{self._names[id]} '


def window_of(prompt: Prompt, format: str, block_size: int) -> str:
  """How a sample goes beyond the window: text slides, documents end there."""
  ends = format != 'text' and len(prompt.ids) <= block_size
  return 'stop' if ends else 'slide'


def complete(
  model,
  params,
  tokenizer,
  prompt: Prompt,
  s,
  max_tokens: int,
  window: str = 'slide',
):
  """Yields pieces of the text that a model gives for one prompt.

  Args:
    s: sampling.params of one row.
  """
  shown = Shown(tokenizer, prompt.names)
  for _, new in generation.generate(
    model,
    params,
    [prompt.ids],
    s,
    max_tokens,
    bias_V=prompt.bias_V,
    stop_ids=prompt.stop_ids,
    window=window,
  ):
    if piece := shown.feed(new):
      yield piece
