"""Conversations in JSON Lines (`data.format='chat'`): reading and cleaning.

Each line, or the field data.text_field of each record, is an array of
{"role": "user" | "assistant", "content": "..."}, optionally with a
{"role": "system"} turn first. Turns after the last assistant
turn carry no targets and are trimmed; a conversation without an assistant turn
is skipped. gpt/tokenizers/chat_format.py defines the token layout.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpt.data import records
from gpt.data.sources import Sources
from gpt.data.text_reader import TextStats, iter_whole_lines
from gpt.data.token_cache import Encoded, add_unknown
from gpt.errors import MOST_QUOTED, UserError
from gpt.tokenizers import Tokenizer, chat_format

NAME = 'format=chat'  # Part of the token cache's fingerprint.
EXPECTED = 'expected "user" or "assistant"'


def parse(line: str, number: int) -> list[dict]:
  """The messages of one line; `number` (from 1) appears in errors.

  Raises:
    UserError: the line is not JSON or not an array of messages, or a role is
      unknown or out of place.
  """
  try:
    messages = json.loads(line)
  except json.JSONDecodeError as e:
    raise UserError(
      f'invalid JSON on line {number}: {e.msg} at column {e.colno}'
    ) from e
  except (ValueError, RecursionError) as e:
    raise UserError(f'invalid JSON on line {number}: {e}') from e
  return check_messages(messages, f'line {number}')


def check_messages(messages: Any, where: str) -> list[dict]:
  """`messages` if they are a conversation; `where` appears in errors.

  Raises:
    UserError: not an array of messages, or a role is unknown or out of place.
  """
  if not isinstance(messages, list):
    raise UserError(
      f'{where}: expected an array of messages, found '
      f'{type(messages).__name__}; example: [{{"role": "user", "content": '
      '"hello"}, {"role": "assistant", "content": "hi"}]'
      + (
        '. A field of an object: --config.data.text_field=NAME'
        if isinstance(messages, dict)
        else ''
      )
    )
  for i, message in enumerate(messages):
    if not isinstance(message, dict) or not isinstance(
      message.get('content'), str
    ):
      raise UserError(
        f'{where}: message {i + 1} is not '
        '{"role": "...", "content": "..."} with strings'
      )
    role = message.get('role')
    if role == 'system' and i:
      raise UserError(
        f'{where}: only the first message may be a system turn, here it '
        f'is message {i + 1}'
      )
    if role not in chat_format.ROLES:
      shown = role if isinstance(role, str) else json.dumps(role)
      raise UserError(
        f'{where}: unknown role "{shown[:MOST_QUOTED]}" ({EXPECTED})'
      )
  return messages


def clean(messages: list[dict], stats: TextStats) -> list[dict]:
  """The messages up to the last assistant turn; [] if there is none."""
  last = max(
    (i for i, m in enumerate(messages) if m['role'] == 'assistant'), default=-1
  )
  if last < 0:
    stats.skipped += 1
  elif last + 1 < len(messages):
    stats.trimmed += 1
  return messages[: last + 1]


def iter_conversations(
  sources: Sources, stats: TextStats
) -> Iterator[list[dict]]:
  """Yields the cleaned conversations of all sources, in order.

  Raises:
    UserError: a file cannot be read, or a line is not a conversation.
  """
  for _, messages in iter_located(sources, stats):
    yield messages


def iter_located(
  sources: Sources, stats: TextStats
) -> Iterator[tuple[str, list[dict]]]:
  """Yields ('line 3 [FILE]', conversation), as iter_conversations."""
  for source in sources.items:
    if source.are_records:
      for where, value in records.iter_values(source, stats):
        if messages := clean(check_messages(value, where), stats):
          yield where, messages
      continue
    for number, line in iter_whole_lines(source, stats):
      if not line.strip():
        continue
      try:
        messages = parse(line, number)
      except UserError as e:
        raise UserError(f'{e} [{source.name}]') from e
      if messages := clean(messages, stats):
        yield f'line {number} [{source.name}]', messages


def cleanup_line(stats: TextStats) -> str:
  """A log line with the counts of `clean`, worded as in microgpt."""
  return (
    f'data cleanup: {stats.trimmed} conversations trimmed (trailing user turn '
    f'removed), {stats.skipped} skipped (no assistant turn)'
  )


def iter_texts(sources: Sources, stats: TextStats) -> Iterator[str]:
  """Yields every text of the conversations, to train a tokenizer on."""
  for messages in iter_conversations(sources, stats):
    for _, texts in chat_format.as_turns(messages):
      yield from texts


def encode(
  sources: Sources,
  tokenizer: Tokenizer,
  stats: TextStats,
  unknown: dict[str, int],
) -> Encoded:
  """The Encoder of token_cache.load_or_encode for conversations.

  The BOS at either end is not stored; an EOS ends each conversation, as it
  ends every document.
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
  """Finds the tokens that the assistant has to produce."""

  def __init__(self, tokenizer: Tokenizer) -> None:
    """`tokenizer` must have the control tokens of chat_format."""
    self._assistant = tokenizer.special_tokens[chat_format.ASSISTANT]
    self._is_control_V = np.zeros(tokenizer.vocab_size, bool)
    self._is_control_V[list(tokenizer.special_tokens.values())] = True

  def __call__(self, tokens_BL: np.ndarray) -> np.ndarray:
    """Marks the text of assistant turns and the <|end_turn|> after it.

    A token belongs to the assistant if the last control token before it is
    <|assistant|>; text never encodes to a control token.

    Args:
      tokens_BL: int[B, L].

    Returns:
      bool[B, L].
    """
    length = tokens_BL.shape[1]
    column_1L = np.arange(length)[None]
    control_BL = np.where(self._is_control_V[tokens_BL], column_1L, -1)
    last_BL = np.maximum.accumulate(control_BL, axis=1)
    before_BL = np.pad(last_BL[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    role_BL = np.take_along_axis(tokens_BL, np.maximum(before_BL, 0), axis=1)
    return (before_BL >= 0) & (role_BL == self._assistant)
