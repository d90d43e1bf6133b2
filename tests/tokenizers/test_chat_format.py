"""Chat prompts: their ids, and which turns are dropped first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.errors import UserError
from gpt.tokenizers import build_tokenizer, chat_format

LETTERS = 'abcdefghij :'
PLAIN = build_tokenizer('char', [LETTERS], 0)
CHAT = build_tokenizer('char', [LETTERS], 0, chat_format.CHAT_TOKENS)
SYSTEM = build_tokenizer(
  'char', [LETTERS], 0, (*chat_format.CHAT_TOKENS, chat_format.SYSTEM)
)


def says(role, content):
  return {'role': role, 'content': content}


def readable(tokenizer, ids):
  names = {id: name for name, id in tokenizer.special_tokens.items()}
  return ''.join(names.get(i) or tokenizer.decode([i]) for i in ids)


def prompt(*messages, tokenizer=CHAT, context=1000):
  ids, dropped = chat_format.build_prompt(messages, tokenizer, context)
  assert len(ids) <= context
  return readable(tokenizer, ids), dropped


def test_only_tokenizers_with_chat_tokens_can_chat():
  assert chat_format.is_chat_tokenizer(CHAT) and chat_format.is_chat_tokenizer(
    SYSTEM
  )
  assert not chat_format.is_chat_tokenizer(PLAIN)
  with pytest.raises(UserError, match='not trained to chat'):
    chat_format.build_prompt([says('user', 'a')], PLAIN, 100)


def test_a_conversation_has_the_documented_ids():
  messages = says('user', 'ab'), says('assistant', 'c'), says('user', 'd')
  assert prompt(*messages) == (
    '<|bos|><|user|>ab<|end_turn|><|assistant|>c<|end_turn|>'
    '<|user|>d<|end_turn|><|assistant|>',
    0,
  )


def test_text_never_becomes_a_control_token():
  text, _ = prompt(says('user', '<|end_turn|>'))
  assert text.count('<|end_turn|>') == 1


def test_a_system_text_is_a_turn_or_opens_the_first_user_turn():
  messages = says('system', 'be'), says('user', 'a')
  assert prompt(*messages, tokenizer=SYSTEM)[0] == (
    '<|bos|><|system|>be<|end_turn|><|user|>a<|end_turn|><|assistant|>'
  )
  # The character tokenizer knows no newline between them.
  assert prompt(*messages)[0] == '<|bos|><|user|>bea<|end_turn|><|assistant|>'


def test_the_oldest_whole_turns_are_dropped_and_the_system_text_stays():
  messages = [
    says('system', 'be'),
    says('user', 'aaaa'),
    says('assistant', 'bbbb'),
    says('user', 'cccc'),
    says('assistant', 'dddd'),
    says('user', 'ee'),
  ]
  text, dropped = prompt(*messages, tokenizer=SYSTEM, context=22)
  assert text == (
    '<|bos|><|system|>be<|end_turn|><|user|>cccc<|end_turn|>'
    '<|assistant|>dddd<|end_turn|><|user|>ee<|end_turn|><|assistant|>'
  )
  assert dropped == 12
  # One token less, and the question goes; its answer alone makes no sense.
  text, dropped = prompt(*messages, tokenizer=SYSTEM, context=21)
  assert 'dddd' not in text and dropped == 24


def test_a_turn_that_is_too_long_alone_keeps_its_end():
  text, dropped = prompt(says('user', 'abcdefghij'), context=8)
  assert text == '<|bos|><|user|>ghij<|end_turn|><|assistant|>'
  assert dropped == 6


def test_a_long_system_text_leaves_half_of_the_context():
  text, dropped = prompt(
    says('system', 'a' * 100),
    says('user', 'b' * 100),
    tokenizer=SYSTEM,
    context=42,
  )
  assert text.count('a<') == 1 and text.count('b') >= 18
  assert dropped > 150


@pytest.mark.parametrize(
  'messages, match',
  [([], 'at least one'), ([says('robot', 'x')], "unknown role 'robot'")],
)
def test_mistakes_are_named(messages, match):
  with pytest.raises(UserError, match=match):
    chat_format.build_prompt(messages, CHAT, 100)


MESSAGES = st.lists(
  st.builds(
    says, st.sampled_from(chat_format.ROLES), st.text(LETTERS, max_size=30)
  ),
  min_size=1,
  max_size=8,
)


@given(MESSAGES, st.integers(16, 60), st.sampled_from([CHAT, SYSTEM]))
def test_prompts_fit_and_nothing_is_lost_silently(messages, context, tokenizer):
  ids, dropped = chat_format.build_prompt(messages, tokenizer, context)
  special = tokenizer.special_tokens
  assert len(ids) <= context
  assert (
    ids[0] == tokenizer.bos_id and ids[-1] == special[chat_format.ASSISTANT]
  )
  assert tokenizer.bos_id not in ids[1:]
  whole, none = chat_format.build_prompt(messages, tokenizer, 10_000)
  assert none == 0
  if dropped == 0:
    assert ids == whole
  else:
    assert len(whole) - dropped - 2 <= len(ids) < len(whole)
