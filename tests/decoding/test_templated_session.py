"""The terminal's conversations with a model that has a chat template."""

import pytest

from gpt.decoding.chat_session import ChatSession
from gpt.errors import UserError
from gpt.runs.load import load_model
from gpt.tokenizers import build_tokenizer, chat_format
from gpt.tokenizers.template_files import CHATML
from launch.chat import notices
from tests.support.workdirs import make_parrot

LETTERS = 'abcdefghijklmnopqrstuvwxyz \n'


def templated(template=CHATML):
  names = ('<|im_start|>', '<|im_end|>')
  tokenizer = build_tokenizer('char', [LETTERS], 0, names)
  tokenizer.chat_template = template
  return tokenizer


def test_replies_end_with_the_templates_turn(tmp_path):
  """The model writes 'yes' and the end of the turn after the first prompt."""
  tokenizer = templated()
  question = [{'role': 'user', 'content': 'hi'}]
  first, _ = chat_format.build_prompt(question, tokenizer, 100)
  end = tokenizer.special_tokens['<|im_end|>']
  says = [*tokenizer.encode('yes').tolist(), end]
  filler = tokenizer.encode('a').tolist()
  ids = (filler * (len(first) - 1) + says + filler * 100)[:100]
  make_parrot(tmp_path / 'run', tokenizer, ids, data={'format': 'chat'})
  session = ChatSession(load_model(tmp_path / 'run'), max_tokens=10)
  assert ''.join(session.say('hi')) == 'yes'
  assert session.reply.ended == 'turn' and not notices(session)
  # The next prompt begins with the tokens of the first one and its reply.
  talk = [*session.conversation(), {'role': 'user', 'content': 'and'}]
  second, _ = chat_format.build_prompt(talk, tokenizer, 100)
  assert second[: len(first) + 4] == [*first, *says]
  session.system = 'be brief'
  assert ''.join(session.say('and')).startswith('a')
  assert session.conversation()[0]['content'] == 'be brief'


def test_a_wrong_template_is_one_clear_error_at_the_start(tmp_path):
  tokenizer = templated('{% for %}')
  make_parrot(tmp_path / 'run', tokenizer, [5] * 8, data={'format': 'chat'})
  loaded = load_model(tmp_path / 'run')
  with pytest.raises(UserError, match='chat template is wrong in line 1'):
    ChatSession(loaded)


def test_a_message_that_the_template_refuses_is_not_kept(tmp_path):
  tokenizer = templated(
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system "
    "text, please') }}{% endif %}" + CHATML
  )
  make_parrot(tmp_path / 'run', tokenizer, [5] * 40, data={'format': 'chat'})
  session = ChatSession(load_model(tmp_path / 'run'), system='be brief')
  with pytest.raises(UserError, match='no system text, please'):
    list(session.say('hi'))
  assert session.messages == []
