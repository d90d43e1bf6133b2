"""The prompts of a request as ids, cut to what the context or the client keeps.

Called on a worker: long texts take time.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt.decoding import blocks
from gpt.errors import UserError
from gpt.tokenizers import Tokenizer, chat_format
from serving.engine.errors import ContextTooLong, InvalidRequest
from serving.engine.jobs import stride
from serving.engine.notices import Notice, cut_prompt, unknown_characters
from serving.engine.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class Tokenized:
  """Prompts as ids.

  Attributes:
    prompts: int32[n], one for each prompt.
    dropped: how many tokens do not fit into the context.
    notices: what else was lost.
  """

  prompts: list[np.ndarray]
  dropped: int
  notices: list[Notice]


def encode_prompts(
  tokenizer: Tokenizer,
  given: Sequence[Any],
  window: int,
  sampling: Sampling,
  param: str = 'prompt',
) -> Tokenized:
  """Prompts, each a str or ids; `param` is the field they come from."""
  whole = [encode(tokenizer, prompt) for prompt in given]
  kept = [ids[-room(sampling, window, len(ids)) :] for ids in whole]
  cut = sum(map(len, whole)) - sum(map(len, kept))
  dropped = outside(kept, window, sampling)
  texts = (prompt for prompt in given if isinstance(prompt, str))
  notices = unknown_characters(tokenizer, texts, param)
  notices += cut_prompt(dropped, window, param)
  return Tokenized(kept, cut + dropped, notices)


def encode_chat(
  tokenizer: Tokenizer,
  messages: list[dict[str, Any]],
  window: int,
  sampling: Sampling,
  prefill: bool = False,
  tools: Sequence[Any] = (),
) -> Tokenized:
  """The prompt of the assistant's next turn.

  Args:
    prefill: a last message of the assistant is the beginning of its reply.
    tools: functions that the model is told of.

  Raises:
    InvalidRequest: the conversation cannot be encoded.
    ContextTooLong: it is too long, and the client wants it whole.
  """
  most = chat_format.prompt_room(window, sampling.max_tokens)
  ids, dropped = chat_prompt(
    tokenizer, messages, room(sampling, window, most), prefill, tools
  )
  if dropped and sampling.overflow == 'error':
    given = f'your messages have {len(ids) + dropped}'
    raise ContextTooLong(window, given, 'messages')
  texts = (message['content'] for message in messages)
  notices = unknown_characters(tokenizer, texts, 'messages')
  return Tokenized([ids], dropped, notices)


def encode(tokenizer: Tokenizer, prompt: Any) -> np.ndarray:
  """int32[n] of a prompt (str or ids); BOS stands in for an empty one."""
  ids = prompt
  if isinstance(prompt, str):
    ids = [*tokenizer.prefix_ids, *tokenizer.encode(prompt).tolist()]
  return np.array(ids if len(ids) else [tokenizer.bos_id], np.int32)


def chat_prompt(
  tokenizer: Tokenizer,
  messages: list[dict[str, Any]],
  most: int,
  prefill: bool = False,
  tools: Sequence[Any] = (),
) -> tuple[np.ndarray, int]:
  """(int32[n], tokens dropped) of a conversation, in at most `most` tokens.

  Raises:
    InvalidRequest: it cannot be encoded.
  """
  try:
    ids, dropped = chat_format.build_prompt(
      messages, tokenizer, most, prefill, tools
    )
  except UserError as e:
    raise InvalidRequest(f'messages: {e}', 'messages') from e
  return np.array(ids, np.int32), dropped


def room(sampling: Sampling, window: int, length: int) -> int:
  """How many of a prompt's `length` tokens the client wants to keep."""
  asked = sampling.truncate_prompt
  if asked is None:
    return length
  return min(length, window if asked < 0 else asked)


def outside(
  prompts: Sequence[np.ndarray], window: int, sampling: Sampling
) -> int:
  """Tokens of prompts that the first sampled token does not depend on."""
  if not sampling.max_tokens or sampling.overflow in ('stop', 'error'):
    return 0
  step = stride(sampling.overflow, window)
  return sum(blocks.window_start(len(ids), window, step) for ids in prompts)
