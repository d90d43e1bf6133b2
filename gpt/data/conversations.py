"""JSON Lines of conversations (`data.format='chat'`): reading and cleaning.

Each line is an array of {"role": "user" | "assistant", "content": "..."}, with
a {"role": "system"} turn in front if there is one. What comes after the last
assistant turn teaches nothing and is trimmed; a conversation without one is
skipped. How a conversation becomes tokens stands in chat.py.
"""

import json

import numpy as np

from gpt.data.text_reader import TextStats, iter_whole_lines
from gpt.data.token_cache import add_unknown
from gpt.errors import UserError
from gpt.tokenizers import chat_format

NAME = 'format=chat'  # In the token cache's fingerprint.
EXPECTED = 'expected "user" or "assistant"'


def parse(line: str, number: int) -> list[dict]:
  """The messages of one line; `number` (from 1) is for the errors.

  Raises:
    UserError: not JSON, not an array of messages, an unknown role.
  """
  try:
    messages = json.loads(line)
  except json.JSONDecodeError as e:
    raise UserError(
      f'invalid JSON on line {number}: {e.msg} at column {e.colno}'
    ) from e
  except (ValueError, RecursionError) as e:
    raise UserError(f'invalid JSON on line {number}: {e}') from e
  if not isinstance(messages, list):
    raise UserError(
      f'line {number}: a conversation is an array of messages, this is '
      f'{type(messages).__name__}; e.g. [{{"role": "user", "content": '
      '"hello"}, {"role": "assistant", "content": "hi"}]'
    )
  for i, message in enumerate(messages):
    if not isinstance(message, dict) or not isinstance(
      message.get('content'), str
    ):
      raise UserError(
        f'line {number}: message {i + 1} is not '
        '{"role": "...", "content": "..."} with a text'
      )
    role = message.get('role')
    if role == 'system' and i:
      raise UserError(
        f'line {number}: a system turn may only come first, here it is message '
        f'{i + 1}'
      )
    if role not in chat_format.ROLES:
      shown = role if isinstance(role, str) else json.dumps(role)
      raise UserError(f'line {number}: unknown role "{shown}" ({EXPECTED})')
  return messages


def clean(messages: list[dict], stats: TextStats) -> list[dict]:
  """Without what follows the last assistant turn; [] if there is none."""
  last = max(
    (i for i, m in enumerate(messages) if m['role'] == 'assistant'), default=-1
  )
  if last < 0:
    stats.skipped += 1
  elif last + 1 < len(messages):
    stats.trimmed += 1
  return messages[: last + 1]


def iter_conversations(sources, stats: TextStats):
  """Yields the cleaned conversations of all sources, in order.

  Raises:
    UserError: a file that cannot be read; a line that is no conversation.
  """
  for source in sources.items:
    for number, line in iter_whole_lines(source, stats):
      if not line.strip():
        continue
      try:
        messages = parse(line, number)
      except UserError as e:
        raise UserError(f'{e} [{source.name}]') from e
      if messages := clean(messages, stats):
        yield messages


def cleanup_line(stats: TextStats) -> str:
  """What cleaning did, in microgpt's words."""
  return (
    f'data cleanup: {stats.trimmed} conversations trimmed (trailing user turn '
    f'removed), {stats.skipped} skipped (no assistant turn)'
  )


def iter_texts(sources, stats: TextStats):
  """Yields every text of the conversations, for training a tokenizer."""
  for messages in iter_conversations(sources, stats):
    for _, texts in chat_format.as_turns(messages):
      yield from texts


def encode(sources, tokenizer, stats: TextStats, unknown: dict[str, int]):
  """What token_cache.load_or_encode wants.

  The BOS in front and the one at the end are not stored; an EOS ends each
  conversation, as it ends every document.
  """
  eos = np.array([tokenizer.eos_id], np.int32)
  for messages in iter_conversations(sources, stats):
    ids = []
    for role, texts in chat_format.as_turns(messages, tokenizer):
      for text in texts:
        add_unknown(tokenizer, text, unknown)
      ids += chat_format.turn_tokens(tokenizer, role, *texts)
    yield np.array(ids, np.int32), sum(len(m['content']) for m in messages)
    yield eos, 0


class AssistantTokens:
  """Which tokens of a conversation the assistant has to produce."""

  def __init__(self, tokenizer):
    self._assistant = tokenizer.special_tokens[chat_format.ASSISTANT]
    self._is_control_V = np.zeros(tokenizer.vocab_size, bool)
    self._is_control_V[list(tokenizer.special_tokens.values())] = True

  def __call__(self, tokens_BL: np.ndarray) -> np.ndarray:
    """bool[B, L]: the text of assistant turns and the <|end_turn|> after it.

    A token is the assistant's if the last control token before it is
    <|assistant|>, which text can never imitate.
    """
    length = tokens_BL.shape[1]
    column_1L = np.arange(length)[None]
    control_BL = np.where(self._is_control_V[tokens_BL], column_1L, -1)
    last_BL = np.maximum.accumulate(control_BL, axis=1)
    before_BL = np.pad(last_BL[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    role_BL = np.take_along_axis(tokens_BL, np.maximum(before_BL, 0), axis=1)
    return (before_BL >= 0) & (role_BL == self._assistant)
