"""The `openai` package and a model with a Jinja chat template."""

import types

import openai
import pytest

from gpt.tokenizers import build_tokenizer, chat_format
from serving.http.errors import ApiError
from serving.http.generate import check_chat
from tests.support.serving_tools import LETTERS, make_random, serving

# ChatML that refuses a system text in the middle.
TEMPLATE = (
  "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
  "{{ raise_exception('the system text must come first') }}{% endif %}"
  "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
  '{% endfor %}'
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOKENIZER = build_tokenizer(
  'char', [LETTERS], 0, ('<|im_start|>', '<|im_end|>')
)
TOKENIZER.chat_template = TEMPLATE
NO_END = {str(id): -100 for id in chat_format.stop_ids(TOKENIZER)}


@pytest.fixture(scope='module')
def client(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('templated') / 'run'
  make_random(workdir, TOKENIZER, spread=0.6, block_size=128)
  with serving(workdir) as server:
    with openai.OpenAI(
      base_url=f'{server.url}/v1', api_key='none', max_retries=0
    ) as client:
      yield client


def says(role, content):
  return {'role': role, 'content': content}


def answer_to(client, *messages, **fields):
  return client.chat.completions.create(
    model='any',
    messages=list(messages),
    **{'max_tokens': 12, 'temperature': 0, **fields},
  )


@pytest.mark.parametrize(
  'messages',
  [
    [says('user', 'Hello there')],
    [says('system', 'Be brief'), says('user', 'Hello there')],
    [says('developer', 'Be brief'), says('user', 'a<|im_end|>')],
    [says('user', 'Hi'), says('assistant', 'Yes'), says('user', 'Why')],
  ],
)
def test_a_conversation_is_prompted_by_the_template(client, messages):
  roles = {'developer': 'system'}
  turns = [{**m, 'role': roles.get(m['role'], m['role'])} for m in messages]
  ids, _ = chat_format.build_prompt(turns, TOKENIZER, 116)
  answer = answer_to(client, *messages, logit_bias=NO_END)
  assert answer.usage.prompt_tokens == len(ids)
  wanted = client.completions.create(
    model='any', prompt=ids, max_tokens=12, temperature=0, logit_bias=NO_END
  )
  (mine,), (theirs,) = answer.choices, wanted.choices
  assert mine.message.content == theirs.text
  assert len(theirs.text) == 12


def test_a_last_message_of_the_assistant_is_continued(client):
  messages = [says('user', 'Hello'), says('assistant', 'Well, I')]
  ids, _ = chat_format.build_prompt(messages, TOKENIZER, 116, prefill=True)
  assert TOKENIZER.decode(ids).endswith('assistant\nWell, I')
  answer = answer_to(client, *messages)
  assert answer.usage.prompt_tokens == len(ids)
  text = answer.choices[0].message.content
  assert not text.startswith('Well')  # What was given is not repeated.


def test_the_end_of_the_turn_ends_a_reply(client):
  """A logit bias makes it the likeliest token."""
  end = TOKENIZER.special_tokens['<|im_end|>']
  answer = answer_to(client, says('user', 'Hello'), logit_bias={str(end): 100})
  (choice,) = answer.choices
  assert choice.finish_reason == 'stop' and choice.message.content == ''


def test_the_oldest_turns_are_dropped_by_the_template(client):
  turns = [says('system', 'Be brief')]
  for _ in range(10):
    turns += [says('user', 'abcdefgh'), says('assistant', 'ijklmnop')]
  answer = answer_to(client, *turns, says('user', 'last'))
  assert 40 < answer.usage.prompt_tokens <= 116
  with pytest.raises(openai.BadRequestError, match='your messages have'):
    answer_to(
      client,
      *turns,
      says('user', 'last'),
      extra_body={'context_overflow': 'error'},
    )


def test_what_the_template_refuses_is_a_bad_request_in_its_words(client):
  with pytest.raises(openai.BadRequestError) as raised:
    answer_to(client, says('user', 'Hello'), says('system', 'Be brief'))
  assert 'the system text must come first' in str(raised.value)
  assert raised.value.body['param'] == 'messages'


def test_a_wrong_template_is_a_bad_request():
  service = types.SimpleNamespace(
    options=None, is_chat=True, chat_problem='the template is wrong in line 1'
  )
  with pytest.raises(ApiError, match='wrong in line 1'):
    check_chat(service)
