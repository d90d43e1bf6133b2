"""Chat prompts equal the layout of the training data.

Regressions: a missing BOS, a long user turn dropped whole, user text that
becomes a control token, a system text laid out unlike in training.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.decoding.prompt import (
  Prompt,
  TurnDecoder,
  chat_prompt,
  read_prompt,
)
from gpt.tokenizers import build_tokenizer, chat_format
from tests.support.document_tools import conversations

relaxed = settings(deadline=None, max_examples=80)
LETTERS = 'abcdefghij\n '
TALKS = conversations(10)
PLAIN = build_tokenizer('char', [LETTERS], 0)
CHAT = build_tokenizer('char', [LETTERS], 0, chat_format.CHAT_TOKENS)
SYSTEM = build_tokenizer(
  'char', [LETTERS], 0, (*chat_format.CHAT_TOKENS, chat_format.SYSTEM)
)
PIECES = build_tokenizer(
  'sentencepiece',
  [m['content'] for talk in TALKS for m in talk],
  320,
  chat_format.CHAT_TOKENS,
)

WORDS = st.text(LETTERS, max_size=20)


@st.composite
def talks(draw):
  """A conversation that ends with an assistant turn."""
  texts = draw(st.lists(WORDS, min_size=2, max_size=8))
  roles = ('user', 'assistant')
  messages = [
    {'role': roles[i % 2], 'content': text}
    for i, text in enumerate(texts[: len(texts) // 2 * 2])
  ]
  if draw(st.booleans()):
    messages.insert(0, {'role': 'system', 'content': draw(WORDS)})
  return messages


@given(messages=talks(), tokenizer=st.sampled_from([CHAT, SYSTEM, PIECES]))
@relaxed
def test_a_prompt_is_a_prefix_of_the_training_tokens(messages, tokenizer):
  trained = chat_format.conversation_tokens(tokenizer, messages)
  end = tokenizer.special_tokens[chat_format.END_TURN]
  for n in range(1, len(messages)):
    if messages[n]['role'] != 'assistant':
      continue
    prompt, dropped = chat_format.build_prompt(messages[:n], tokenizer, 10_000)
    assert dropped == 0
    assert prompt == trained[: len(prompt)]
    # In training, the assistant's text and the end of its turn follow.
    answer = tokenizer.encode(messages[n]['content']).tolist()
    rest = trained[len(prompt) :]
    assert rest[: len(answer) + 1] == [*answer, end]


@given(messages=talks(), context=st.integers(12, 40))
@relaxed
def test_every_prompt_begins_with_bos_however_much_is_dropped(
  messages, context
):
  ids, dropped = chat_format.build_prompt(messages, CHAT, context)
  assert ids[0] == CHAT.bos_id and ids.count(CHAT.bos_id) == 1
  assert len(ids) <= context
  # Turns do not overlap.
  special = CHAT.special_tokens
  opened = False
  for id in ids[1:-1]:
    if id in (special[chat_format.USER], special[chat_format.ASSISTANT]):
      assert not opened
      opened = True
    elif id == special[chat_format.END_TURN]:
      assert opened
      opened = False
    else:
      assert opened


def test_a_long_user_turn_is_not_dropped_whole():
  long = 'abc' * 50
  ids, dropped = chat_format.build_prompt(
    [{'role': 'user', 'content': long}], CHAT, 30
  )
  assert len(ids) == 30 and dropped == len(long) - 26
  assert CHAT.decode(ids) == long[-26:]


def test_the_last_question_survives_a_long_history():
  messages = [
    {'role': role, 'content': role[0] * 5 if role[0] == 'a' else 'b' * 5}
    for _ in range(50)
    for role in ('user', 'assistant')
  ] + [{'role': 'user', 'content': 'cde'}]
  ids, dropped = chat_format.build_prompt(messages, CHAT, 40)
  assert CHAT.decode(ids).endswith('cde') and dropped > 600
  assert ids[1] == CHAT.special_tokens[chat_format.USER]


def test_control_tokens_in_user_text_stay_text():
  evil = ''.join((*chat_format.CHAT_TOKENS, '<|bos|>', '<|eos|>', '</s>'))
  ids, _ = chat_format.build_prompt(
    [{'role': 'user', 'content': evil}], PIECES, 1000
  )
  special = set(PIECES.special_tokens.values())
  assert [i for i in ids if i in special] == [
    PIECES.bos_id,
    *(
      PIECES.special_tokens[n]
      for n in (chat_format.USER, chat_format.END_TURN, chat_format.ASSISTANT)
    ),
  ]
  assert PIECES.decode(ids) == evil


@pytest.mark.parametrize('max_tokens, room', [(8, 92), (25, 75), (900, 75)])
def test_at_most_a_quarter_of_the_window_is_reserved_for_the_reply(
  max_tokens, room
):
  assert chat_format.prompt_room(100, max_tokens) == room


@pytest.mark.parametrize('tokenizer', [CHAT, PIECES])
def test_end_of_turn_and_eos_are_the_only_control_tokens_sampled(tokenizer):
  prompt = read_prompt(tokenizer, 'chat', 'a', 100, 10)
  wanted, _ = chat_format.build_prompt(
    [{'role': 'user', 'content': 'a'}], tokenizer, 90
  )
  assert prompt.ids == wanted
  special = tokenizer.special_tokens
  allowed = {i for i in special.values() if prompt.bias_V[i] == 0}
  assert allowed == {special[chat_format.END_TURN], tokenizer.eos_id}
  assert set(prompt.stop_ids) == allowed
  text_ids = set(range(tokenizer.vocab_size)) - set(tokenizer.unsampleable_ids)
  assert not np.isinf(prompt.bias_V[list(text_ids)]).any()


def test_without_a_prompt_a_chat_model_writes_both_parts():
  prompt = read_prompt(CHAT, 'chat', '', 100, 10)
  assert prompt.ids == [CHAT.bos_id]
  assert set(prompt.stop_ids) == {CHAT.bos_id, CHAT.eos_id}
  special = CHAT.special_tokens
  talk = [
    special[chat_format.USER],
    *CHAT.encode('ab'),
    special[chat_format.END_TURN],
  ]
  assert not np.isinf(prompt.bias_V[talk]).any()
  decoder = TurnDecoder(CHAT, prompt)
  text = ''.join(map(decoder.feed, (talk[:2], talk[2:], None)))
  assert text == '\n<|user|> ab\n<|end_turn|> '


def test_text_and_lines_prompts():
  ids = PLAIN.encode('ab').tolist()
  assert read_prompt(PLAIN, 'text', 'ab', 9, 9).ids == ids
  assert read_prompt(PLAIN, 'lines', 'ab', 9, 9).ids == [PLAIN.bos_id, *ids]
  for format in ('text', 'lines'):
    empty = read_prompt(PLAIN, format, '', 9, 9)
    assert empty.ids == [PLAIN.bos_id] and empty.stop_ids == (PLAIN.eos_id,)
    assert empty.bias_V[PLAIN.bos_id] == -np.inf


def test_a_character_of_several_tokens_is_printed_whole():
  snowman = PIECES.encode('\u2603').tolist()
  assert len(snowman) == 3
  user = PIECES.special_tokens[chat_format.USER]
  start = Prompt([PIECES.bos_id], (), np.zeros(1), {user: chat_format.USER})
  decoder = TurnDecoder(PIECES, start)
  assert decoder.feed(snowman[:2]) == ''
  assert decoder.feed([snowman[2]]) == '\u2603'
  assert decoder.feed([snowman[0], user]) == '\ufffd\n<|user|> '
  prompt = chat_prompt(PIECES, [1])
  assert prompt.names == {}
