"""Conversations as tokens: which tokenizers can chat, and chat prompts.

A conversation is, as in microgpt,

    <|bos|> (<|user|> text <|end_turn|> <|assistant|> text <|end_turn|>)*
    <|bos|>

with nothing between the parts and each text encoded on its own, so that text
can never imitate a control token. Where a <|system|> token exists, a system
turn stands first; otherwise its text opens the first user turn.
"""

from gpt.errors import UserError

USER = '<|user|>'
ASSISTANT = '<|assistant|>'
END_TURN = '<|end_turn|>'
SYSTEM = '<|system|>'
CHAT_TOKENS = (USER, ASSISTANT, END_TURN)
ROLES = ('system', 'user', 'assistant')
AFTER_SYSTEM = '\n\n'  # Between a system text and the user's, in one turn.
# The share of the window that a chat prompt leaves to the answer, at least.
REPLY_SHARE = 4


def is_chat_tokenizer(tokenizer) -> bool:
  """Whether the tokenizer has the control tokens that turns need."""
  return all(name in tokenizer.special_tokens for name in CHAT_TOKENS)


def stop_ids(tokenizer) -> tuple[int, ...]:
  """What ends an assistant's turn: <|end_turn|>, or the end of the text."""
  return tokenizer.special_tokens[END_TURN], tokenizer.eos_id


def turn_tokens(tokenizer, role: str, *texts: str) -> list[int]:
  """Ids of one whole turn; each of its texts is encoded on its own."""
  opening = {'user': USER, 'assistant': ASSISTANT, 'system': SYSTEM}[role]
  ids = tokenizer.special_tokens
  inside = [id for text in texts for id in tokenizer.encode(text).tolist()]
  return [ids[opening], *inside, ids[END_TURN]]


def as_turns(messages, tokenizer=None) -> list[tuple[str, list[str]]]:
  """The turns of a conversation whose system text, if any, stands first.

  Args:
    messages: dicts with 'role' (system, user, assistant) and 'content' (str).
    tokenizer: one that may have a <|system|> token; None: it has not.

  Returns:
    [(role, texts)]; a system text without a token of its own is the first
    text of the first user turn, an empty one is none.
  """
  found = [(m['role'], [m['content']]) for m in messages]
  if not found or found[0][0] != 'system':
    return found
  (_, (system,)), *rest = found
  if not system:
    return rest
  if tokenizer is not None and SYSTEM in tokenizer.special_tokens:
    return found
  opening = [system + AFTER_SYSTEM]
  if rest and rest[0][0] == 'user':
    return [('user', [*opening, *rest[0][1]]), *rest[1:]]
  return [('user', opening), *rest]


def conversation_tokens(tokenizer, messages) -> list[int]:
  """Ids of a whole conversation, as models are trained on it."""
  inside = [
    id
    for role, texts in as_turns(messages, tokenizer)
    for id in turn_tokens(tokenizer, role, *texts)
  ]
  return [tokenizer.bos_id, *inside, tokenizer.bos_id]


def prompt_room(block_size: int, max_tokens: int) -> int:
  """How much of the window a prompt may take when a reply is to follow."""
  return block_size - min(max_tokens, block_size // REPLY_SHARE)


def build_prompt(
  messages, tokenizer, max_tokens_context: int
) -> tuple[list[int], int]:
  """The prompt that asks for the assistant's next turn.

  What does not fit is dropped: the oldest turns, each of them whole; of a last
  turn that is too long on its own, the beginning. The system text stays, at
  most half of the context.

  Args:
    messages: dicts with 'role' (system, user, assistant) and 'content' (str).
    tokenizer: one with chat tokens.
    max_tokens_context: most ids to return.

  Returns:
    (ids, number of tokens dropped); ids begin with BOS and end with
    <|assistant|>.

  Raises:
    UserError: no chat tokens, no message, an unknown role, no room.
  """
  if not is_chat_tokenizer(tokenizer):
    raise UserError(
      'this model was not trained to chat: its tokenizer lacks '
      + ', '.join(n for n in CHAT_TOKENS if n not in tokenizer.special_tokens)
    )
  special = tokenizer.special_tokens
  system, turns = [], []
  for message in messages:
    role, content = message['role'], message['content']
    if role not in ROLES:
      raise UserError(f'unknown role {role!r}: allowed are {", ".join(ROLES)}')
    if role == 'system':
      system.append(content)
    else:
      turns.append(turn_tokens(tokenizer, role, content))
  if not system and not turns:
    raise UserError('a conversation needs at least one message')

  room = max_tokens_context - 2  # BOS and <|assistant|>
  head, dropped = _system_turn(tokenizer, system, room // 2)
  room -= len(head)
  kept = []
  while turns and len(turns[-1]) <= room:
    room -= len(turns[-1])
    kept.insert(0, turns.pop())
  if turns and not kept:
    last = turns.pop()
    if room < 2 + 1:
      raise UserError(
        f'a context of {max_tokens_context} tokens has no room for a turn'
      )
    cut = len(last) - room
    dropped += cut
    kept = [[last[0], *last[1 + cut :]]]
  if turns and len(kept) > 1 and kept[0][0] == special[ASSISTANT]:
    turns.append(kept.pop(0))  # An answer whose question is gone.
  dropped += sum(len(turn) for turn in turns)

  if head and SYSTEM not in special and kept and kept[0][0] == special[USER]:
    # A system text that is no turn of its own: inside the first user turn.
    kept[0] = [*head[:-1], *kept[0][1:]]
    head = []
  ids = [tokenizer.bos_id, *head, *(i for turn in kept for i in turn)]
  return [*ids, special[ASSISTANT]], dropped


def _system_turn(tokenizer, texts, limit: int) -> tuple[list[int], int]:
  """(ids of the system turn or user turn, tokens dropped from its end)."""
  if not any(texts):
    return [], 0
  text = '\n'.join(texts)
  if SYSTEM in tokenizer.special_tokens:
    turn = turn_tokens(tokenizer, 'system', text)
  else:
    turn = turn_tokens(tokenizer, 'user', text + AFTER_SYSTEM)
  dropped = max(0, len(turn) - max(limit, 2))
  if dropped:
    turn = [*turn[: -1 - dropped], turn[-1]]
  return turn, dropped
