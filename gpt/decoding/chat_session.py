"""A conversation with a chat model, for the terminal, scripts and notebooks.

The session stores text. Every prompt is rebuilt from it, so that
chat_format.build_prompt alone decides what no longer fits the window.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax

from gpt import kernels
from gpt.decoding import generation, sampling
from gpt.decoding.prompt import chat_prompt
from gpt.errors import UserError
from gpt.tokenizers import StreamDecoder, Tokenizer, chat_format


@dataclasses.dataclass
class Reply:
  """A reply and why it ended.

  Attributes:
    text: the reply so far.
    tokens: tokens sampled, without the stop token.
    dropped: tokens of the conversation that did not fit the prompt.
    ended: 'turn' (the model ended it), 'max_tokens', 'context' (the window is
      full) or 'stopped' (by the user).
  """

  text: str = ''
  tokens: int = 0
  dropped: int = 0
  ended: str = 'stopped'


class ChatSession:
  """One conversation; equal seeds and messages give equal replies.

  Args:
    loaded: LoadedModel of a chat model.
    seed: reply i (counted from 0, again after `clear`) uses seed + i.
    max_tokens: maximum tokens of a reply. The prompt leaves min(max_tokens, a
      quarter of the window) free for it. A reply ends where the window ends:
      sliding would drop BOS and the turn's role.
    system: system text, '' for none.
    precision: of weights, keys and values; see kernels.plan_for.
    sampling_options: keywords of sampling.settings.

  Raises:
    UserError: not a chat model, or one whose chat template is wrong; an
      invalid option; a precision that is impossible here.
  """

  def __init__(
    self,
    loaded: Any,
    *,
    seed: int = 42,
    max_tokens: int = 256,
    system: str = '',
    precision: str = 'float32',
    **sampling_options: Any,
  ) -> None:
    if not chat_format.is_chat_tokenizer(loaded.tokenizer):
      raise UserError('this model was not trained to chat')
    chat_format.stop_ids(loaded.tokenizer)  # Raises if its template is wrong.
    if max_tokens < 1:
      raise UserError(f'max_tokens {max_tokens} must be at least 1')
    self.seed, self.max_tokens, self.system = seed, max_tokens, system
    self.messages: list[dict] = []
    self.reply = Reply()
    self._options: dict[str, Any] = {}
    self.set_sampling(**sampling_options)
    kernels.plan_for(loaded.cfg, precision)  # Raises if it is impossible.
    self._loaded, self._precision = loaded, precision
    self._params = jax.device_put(loaded.params)

  @property
  def tokenizer(self) -> Tokenizer:
    """The model's tokenizer."""
    return self._loaded.tokenizer

  @property
  def block_size(self) -> int:
    """The model's window, in tokens."""
    return self._loaded.cfg.block_size

  def set_sampling(self, **options: Any) -> None:
    """Changes keywords of sampling.settings; UserError if one is invalid."""
    sampling.settings(1, **{**self._options, **options})
    self._options |= options

  def clear(self) -> None:
    """Drops all messages; keeps the system text."""
    self.messages = []

  def conversation(self) -> list[dict]:
    """The system text, if any, and all messages: one line of chat data."""
    system = [{'role': 'system', 'content': self.system}] if self.system else []
    return [*system, *self.messages]

  def say(
    self, text: str, should_stop: Callable[[], bool] = lambda: False
  ) -> Iterator[str]:
    """Sends a user message and yields the reply in pieces.

    The message and the reply join the conversation however the reply ended;
    `self.reply` describes it.

    Args:
      text: the user's message.
      should_stop: polled after every piece.
    """
    loaded, self.reply = self._loaded, Reply()
    reply, tokenizer, window = self.reply, self.tokenizer, self.block_size
    messages = [*self.conversation(), {'role': 'user', 'content': text}]
    room = chat_format.prompt_room(window, self.max_tokens)
    ids, reply.dropped = chat_format.build_prompt(messages, tokenizer, room)
    turn = len(self.messages) // 2
    prompt = chat_prompt(tokenizer, ids)
    decoder = StreamDecoder(tokenizer, after=ids[-1])
    try:
      for _, new in generation.generate(
        loaded.model,
        self._params,
        [ids],
        sampling.settings(1, seed=self.seed + turn, **self._options),
        self.max_tokens,
        bias_V=prompt.bias_V,
        stop_ids=prompt.stop_ids,
        window='stop',
        weights=self._precision,
      ):
        if new is None:
          reply.ended = 'turn'
          if len(ids) + reply.tokens > window:
            reply.ended = 'context'
          elif reply.tokens >= self.max_tokens:
            reply.ended = 'max_tokens'
          break
        reply.tokens += len(new)
        if piece := ''.join(map(decoder.feed, new)):
          reply.text += piece
          yield piece
        if should_stop():
          break
      if piece := decoder.flush():
        reply.text += piece
        yield piece
    finally:
      self.messages += [
        {'role': 'user', 'content': text},
        {'role': 'assistant', 'content': reply.text},
      ]
