"""Conversations that a chat template renders, fitted into a context."""

import bisect
from collections.abc import Callable, Mapping, Sequence

from gpt.errors import UserError
from gpt.tokenizers import Tokenizer
from gpt.tokenizers.chat_template import ChatTemplate

Message = Mapping[str, str]


def fit(
  template: ChatTemplate,
  tokenizer: Tokenizer,
  messages: Sequence[Message],
  room: int,
  continued: bool = False,
) -> tuple[list[int], int]:
  """The prompt for the assistant's next turn, in at most `room` tokens.

  If it is too long, the oldest exchanges are dropped: whole turns, up to a
  user's, since templates want turns to alternate. A last exchange that is too
  long alone loses the beginning of the user's text. System texts stay, cut to
  half of the room if that is needed.

  Args:
    continued: whether the last message is the beginning of the reply.

  Returns:
    (ids, number of tokens dropped).

  Raises:
    UserError: the template refuses the messages, or there is no room.
  """
  render = template.continued_ids if continued else template.ids
  whole = render(messages)
  if len(whole) <= room:
    return whole, 0
  starts = [i for i, m in enumerate(messages) if m['role'] == 'user']
  best: list[int] | None = None

  def fits(number: int) -> bool:
    """Whether the last exchanges from the number-th user turn on fit."""
    nonlocal best
    ids = render(_since(messages, starts[number]))
    if len(ids) > room:
      return False
    if best is None or len(ids) > len(best):
      best = ids
    return True

  bisect.bisect_left(range(len(starts)), True, key=fits)
  if best is None:
    best = _shortened(
      render, tokenizer, _since(messages, starts[-1] if starts else 0), room
    )
  return best, len(whole) - len(best)


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

  kept = _most(len(text), lambda n: len(ids_of(n)) <= room)
  ids = ids_of(kept)
  if len(ids) > room or text and not kept:
    raise _no_room(room)
  return ids


def _beginning(tokenizer: Tokenizer, text: str, limit: int) -> str:
  """The beginning of a text, of at most `limit` tokens."""
  kept = _most(len(text), lambda n: len(tokenizer.encode(text[:n])) <= limit)
  return text[:kept]


def _most(limit: int, fits: Callable[[int], bool]) -> int:
  """The largest n up to `limit` that fits; 0 if none does."""
  numbers = range(1, limit + 1)
  return bisect.bisect_left(numbers, True, key=lambda n: not fits(n))


def _no_room(room: int) -> UserError:
  return UserError(f'a context of {room} tokens has no room for a turn')
