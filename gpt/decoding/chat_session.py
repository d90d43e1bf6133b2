"""A conversation with a model: what has been said, and the next reply.

It exists so that the terminal, scripts and notebooks hold the same
conversation. Everything said is kept as text; each prompt is built anew from
it, so that what no longer fits is dropped by chat.build_prompt and said.
"""

import dataclasses

import jax

from gpt.decoding import generation, sampling
from gpt.decoding.prompt import chat_prompt
from gpt.errors import UserError
from gpt.tokenizers import StreamDecoder, chat_format


@dataclasses.dataclass
class Reply:
  """How a reply came about.

  text: all of it. tokens: sampled, the one that ended it not counted.
  dropped: tokens of the conversation that the model did not see.
  ended: 'turn' (the model ended it), 'max_tokens', 'context' (the window is
    full) or 'stopped' (by the person).
  """

  text: str = ''
  tokens: int = 0
  dropped: int = 0
  ended: str = 'stopped'


class ChatSession:
  """One conversation; the same seed and the same words give the same replies.

  Args:
    loaded: LoadedModel of a chat model.
    seed: the reply number i (from 0, also after clear) uses seed + i.
    max_tokens: most tokens of a reply. A quarter of the window is kept free
      for it, or fewer tokens if it needs fewer; a reply that fills the window
      ends there, because a window that slides would lose BOS and who is
      speaking.
    sampling_options: keywords of sampling.params.

  Raises:
    UserError: not a chat model.
  """

  def __init__(
    self,
    loaded,
    *,
    seed: int = 42,
    max_tokens: int = 256,
    system: str = '',
    **sampling_options,
  ):
    if not chat_format.is_chat_tokenizer(loaded.tokenizer):
      raise UserError('this model was not trained to chat')
    if max_tokens < 1:
      raise UserError(f'max_tokens {max_tokens} must be at least 1')
    self.seed, self.max_tokens, self.system = seed, max_tokens, system
    self.messages: list[dict] = []
    self._options = {}
    self.set_sampling(**sampling_options)
    self._loaded = loaded
    self._params = jax.device_put(loaded.params)

  @property
  def tokenizer(self):
    """The model's."""
    return self._loaded.tokenizer

  @property
  def block_size(self) -> int:
    """The model's window, in tokens."""
    return self._loaded.cfg.block_size

  def set_sampling(self, **options) -> None:
    """Changes keywords of sampling.params; UserError if one is impossible."""
    sampling.params(1, **{**self._options, **options})
    self._options |= options

  def clear(self) -> None:
    """Forgets what was said; the system text stays."""
    self.messages = []

  def conversation(self) -> list[dict]:
    """The system text, if any, and everything said: a line of chat data."""
    system = [{'role': 'system', 'content': self.system}] if self.system else []
    return [*system, *self.messages]

  def say(self, text: str, should_stop=lambda: False):
    """Yields the pieces of the reply to a user's turn as they come.

    The turn and the reply, however it ended, become part of the conversation;
    `reply` tells about it.

    Args:
      text: what the user says.
      should_stop: asked after every piece.
    """
    loaded, self.reply = self._loaded, Reply()
    reply, tokenizer, window = self.reply, self.tokenizer, self.block_size
    asked = [*self.conversation(), {'role': 'user', 'content': text}]
    room = chat_format.prompt_room(window, self.max_tokens)
    ids, reply.dropped = chat_format.build_prompt(asked, tokenizer, room)
    turn = len(self.messages) // 2
    start = chat_prompt(tokenizer, ids)
    decoder = StreamDecoder(tokenizer)
    try:
      for _, new in generation.generate(
        loaded.model,
        self._params,
        [ids],
        sampling.params(1, seed=self.seed + turn, **self._options),
        self.max_tokens,
        bias_V=start.bias_V,
        stop_ids=start.stop_ids,
        window='stop',
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
