"""Conversations that a chat template renders, fitted into a context."""

import bisect
import functools
from collections.abc import Callable, Sequence

from gpt.errors import UserError
from gpt.tokenizers import Tokenizer
from gpt.tokenizers.chat_template import ChatTemplate, Message
from gpt.tokenizers.tool_format import Tool


def fit(
  template: ChatTemplate,
  tokenizer: Tokenizer,
  messages: Sequence[Message],
  room: int,
  continued: bool = False,
  tools: Sequence[Tool] = (),
) -> tuple[list[int], int]:
  """The prompt for the assistant's next turn, in at most `room` tokens.

  If it is too long, the oldest exchanges are dropped: whole turns, up to a
  user's, since templates want turns to alternate. A last exchange that is too
  long alone loses the beginning of the user's text. System texts stay, cut to
  half of the room if that is needed.

  Args:
    continued: whether the last message is the beginning of the reply.
    tools: functions that the template shows.

  Returns:
    (ids, number of tokens dropped).

  Raises:
    UserError: the template refuses the messages, or there is no room.
  """
  ids_of = template.continued_ids if continued else template.ids
  render = functools.partial(ids_of, tools=tools) if tools else ids_of
  whole = render(messages)
  if len(whole) <= room:
    return whole, 0
  starts = [i for i, m in enumerate(messages) if m['role'] == 'user']
  found: dict[int, list[int]] = {}

  def fits(number: int) -> bool:
    """Whether the last `number` exchanges fit."""
    found[number] = render(_since(messages, starts[-number]))
    return len(found[number]) <= room

  if kept := _most(len(starts), fits, 1):
    ids = found[kept]
  else:
    last = _since(messages, starts[-1] if starts else 0)
    ids = _shortened(render, tokenizer, last, room)
  return ids, len(whole) - len(ids)


def _since(messages: Sequence[Message], start: int) -> list[Message]:
  """The messages from `start` on, and all system texts."""
  return [
    m for i, m in enumerate(messages) if i >= start or m['role'] == 'system'
  ]


def _shortened(
  render: Callable[[Sequence[Message]], list[int]],
  tokenizer: Tokenizer,
  messages: list[Message],
  room: int,
) -> list[int]:
  """The ids of one exchange, its system and user texts cut until it fits."""
  for i, message in enumerate(messages):
    if message['role'] == 'system':
      text = _beginning(tokenizer, message['content'], room // 2)
      messages[i] = {**message, 'content': text}
  user = next((i for i, m in enumerate(messages) if m['role'] == 'user'), -1)
  if user < 0:
    ids = render(messages)
    if len(ids) > room:
      raise _no_room(room)
    return ids
  text = messages[user]['content']

  def ids_of(n: int) -> list[int]:
    tail = {**messages[user], 'content': text[len(text) - n :]}
    return render([*messages[:user], tail, *messages[user + 1 :]])

  kept = _most(len(text), lambda n: len(ids_of(n)) <= room, room)
  ids = ids_of(kept)
  if len(ids) > room or text and not kept:
    raise _no_room(room)
  return ids


def _beginning(tokenizer: Tokenizer, text: str, limit: int) -> str:
  """The beginning of a text, of at most `limit` tokens."""
  kept = _most(
    len(text), lambda n: len(tokenizer.encode(text[:n])) <= limit, limit
  )
  return text[:kept]


def _most(limit: int, fits: Callable[[int], bool], first: int) -> int:
  """The largest n up to `limit` that fits; 0 if none does.

  Numbers are tried from `first` on, doubled each time, so that little more than
  what fits is ever encoded.
  """
  low, step = 0, max(1, first)
  while low < limit:
    high = min(low + step, limit)
    if not fits(high):
      inside = range(low + 1, high)
      return low + bisect.bisect_left(inside, True, key=lambda n: not fits(n))
    low, step = high, 2 * step
  return low


def _no_room(room: int) -> UserError:
  return UserError(f'a context of {room} tokens has no room for a turn')
