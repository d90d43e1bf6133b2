"""Conversations as token ids: chat tokens, turns and prompts.

A tokenizer with a chat template follows it (chat_template.py). Without one, a
conversation is as in microgpt:

    <|bos|> (<|user|> text <|end_turn|> <|assistant|> text <|end_turn|>)*
    <|bos|>

with nothing between the parts. Each text is encoded separately, so text can
never imitate a control token. If a <|system|> token exists, a system turn comes
first; otherwise the system text opens the first user turn.
"""

from collections.abc import Iterable, Sequence

from gpt.errors import UserError
from gpt.tokenizers import Tokenizer, chat_window, tool_format
from gpt.tokenizers.chat_template import Message, template_of
from gpt.tokenizers.tool_format import Tool

USER = '<|user|>'
ASSISTANT = '<|assistant|>'
END_TURN = '<|end_turn|>'
SYSTEM = '<|system|>'
CHAT_TOKENS = (USER, ASSISTANT, END_TURN)
ROLES = ('system', 'user', 'assistant', 'tool')
AFTER_SYSTEM = '\n\n'  # Between a system text and the user's, in one turn.
REPLY_SHARE = 4  # 1 / the part of the window that prompts leave for a reply.


def has_chat_tokens(tokenizer: Tokenizer) -> bool:
  """Whether the tokenizer has the control tokens of our own format."""
  return all(name in tokenizer.special_tokens for name in CHAT_TOKENS)


def is_chat_tokenizer(tokenizer: Tokenizer) -> bool:
  """Whether conversations can be encoded: by a template or our own tokens."""
  return bool(tokenizer.chat_template) or has_chat_tokens(tokenizer)


def describe(tokenizer: Tokenizer) -> str:
  """A few words on how conversations are encoded; '' if they cannot be."""
  if tokenizer.chat_template:
    return f'Jinja template of {len(tokenizer.chat_template):,} characters'
  return 'own format (<|user|>)' if has_chat_tokens(tokenizer) else ''


def stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
  """Ids that end an assistant's turn, the turn's own and EOS.

  Raises:
    UserError: the chat template is wrong.
  """
  if tokenizer.chat_template:
    return template_of(tokenizer).stop_ids
  return tokenizer.special_tokens[END_TURN], tokenizer.eos_id


def turn_tokens(tokenizer: Tokenizer, role: str, *texts: str) -> list[int]:
  """Ids of one whole turn; each of its texts is encoded separately."""
  opening = {'user': USER, 'assistant': ASSISTANT, 'system': SYSTEM}[role]
  ids = tokenizer.special_tokens
  inside = [id for text in texts for id in tokenizer.encode(text).tolist()]
  return [ids[opening], *inside, ids[END_TURN]]


def as_turns(
  messages: Iterable[Message], tokenizer: Tokenizer | None = None
) -> list[tuple[str, list[str]]]:
  """Groups messages into turns.

  Args:
    messages: a conversation; a system message can only be the first.
    tokenizer: None: one without a <|system|> token.

  Returns:
    [(role, texts)]. Without a <|system|> token the system text is the first
    text of the first user turn; an empty one is left out.
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


def conversation_tokens(
  tokenizer: Tokenizer, messages: Iterable[Message]
) -> list[int]:
  """Ids of a whole conversation in our own format, as in training."""
  inside = [
    id
    for role, texts in as_turns(messages, tokenizer)
    for id in turn_tokens(tokenizer, role, *texts)
  ]
  return [tokenizer.bos_id, *inside, tokenizer.bos_id]


def prompt_room(block_size: int, max_tokens: int) -> int:
  """Most tokens of a prompt that leaves room for a reply in the window."""
  return block_size - min(max_tokens, block_size // REPLY_SHARE)


def build_prompt(
  messages: Sequence[Message],
  tokenizer: Tokenizer,
  max_tokens_context: int,
  prefill: bool = False,
  tools: Sequence[Tool] = (),
) -> tuple[list[int], int]:
  """Builds the prompt for the assistant's next turn.

  If it is too long, the oldest turns are dropped whole; a last turn that is too
  long alone loses its beginning. The system text is kept, up to half of the
  context.

  Args:
    messages: the conversation so far.
    tokenizer: has a chat template or chat tokens.
    max_tokens_context: most ids to return.
    prefill: whether a last message of the assistant is the beginning of its
      reply, instead of a reply that another one follows.
    tools: functions that the assistant may call.

  Returns:
    (ids, number of tokens dropped). In our own format ids begin with BOS and
    end with <|assistant|> and the beginning of the reply.

  Raises:
    UserError: no chat tokens, no message, an unknown role, no room, or the
      chat template refuses the messages.
  """
  if not is_chat_tokenizer(tokenizer):
    raise UserError(
      'this model was not trained to chat: its tokenizer has no chat template '
      'and lacks '
      + ', '.join(n for n in CHAT_TOKENS if n not in tokenizer.special_tokens)
    )
  for role in (message['role'] for message in messages):
    if role not in ROLES:
      raise UserError(f'unknown role {role!r}: allowed are {", ".join(ROLES)}')
  prefill = prefill and bool(messages) and messages[-1]['role'] == 'assistant'
  if not tool_format.format_of(tokenizer).by_template:
    messages, tools = tool_format.as_plain_turns(messages, tools), ()
  if tokenizer.chat_template and messages:
    return chat_window.fit(
      template_of(tokenizer),
      tokenizer,
      messages,
      max_tokens_context,
      prefill,
      tools,
    )
  begun: list[int] = []
  if prefill:
    begun = tokenizer.encode(messages[-1]['content']).tolist()
    messages = messages[:-1]
  special = tokenizer.special_tokens
  system, turns = [], []
  for message in messages:
    role, content = message['role'], message['content']
    if role == 'system':
      system.append(content)
    else:
      turns.append(turn_tokens(tokenizer, role, content))
  if not (system or turns or prefill):
    raise UserError('a conversation needs at least one message')

  room = max_tokens_context - 2 - len(begun)  # Also BOS and <|assistant|>.
  if begun and room < 0:
    raise UserError(
      f'a context of {max_tokens_context} tokens has no room for the '
      f'{len(begun)} of the reply to be continued'
    )
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
    turns.append(kept.pop(0))  # A reply whose question was dropped.
  dropped += sum(len(turn) for turn in turns)

  if head and SYSTEM not in special and kept and kept[0][0] == special[USER]:
    # Without a <|system|> token the text opens the first user turn.
    kept[0] = [*head[:-1], *kept[0][1:]]
    head = []
  ids = [tokenizer.bos_id, *head, *(i for turn in kept for i in turn)]
  return [*ids, special[ASSISTANT], *begun], dropped


def _system_turn(
  tokenizer: Tokenizer, texts: Sequence[str], limit: int
) -> tuple[list[int], int]:
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
