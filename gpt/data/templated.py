"""Conversations in the form of a chat template, in a token file.

A template says which tokens begin and end a conversation and where turns end,
and the same tokens may occur within it. So the file holds, for each token, its
id, plus the size V of the vocabulary if the assistant writes it, and 2 V after
each conversation.
"""

import hashlib

import numpy as np

from gpt.data.conversations import iter_located
from gpt.data.sources import Sources
from gpt.data.text_reader import TextStats
from gpt.data.token_cache import Encoded, add_unknown
from gpt.errors import UserError
from gpt.tokenizers import Tokenizer
from gpt.tokenizers.chat_template import template_of


def name(tokenizer: Tokenizer) -> str:
  """Part of the token cache's fingerprint."""
  template = tokenizer.chat_template.encode()
  return f'format=chat, template {hashlib.sha256(template).hexdigest()}'


def end_value(tokenizer: Tokenizer) -> int:
  """The value that ends a conversation."""
  return 2 * tokenizer.vocab_size


def encode(
  sources: Sources,
  tokenizer: Tokenizer,
  stats: TextStats,
  unknown: dict[str, int],
) -> Encoded:
  """The Encoder of token_cache.load_or_encode for a chat template.

  Raises:
    UserError: the template refuses a conversation, whose line is named.
  """
  template = template_of(tokenizer)
  end = np.array([end_value(tokenizer)], np.int64)
  for where, messages in iter_located(sources, stats):
    try:
      ids, written = template.conversation(messages)
    except UserError as e:
      raise UserError(f'{where}: {e}') from e
    for message in messages:
      add_unknown(tokenizer, message['content'], unknown)
    values = np.array(ids, np.int64)
    values += tokenizer.vocab_size * np.array(written, np.int64)
    characters = sum(len(message['content']) for message in messages)
    yield values, max(1, characters)
    yield end, 0
