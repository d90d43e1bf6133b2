"""Tokenizing in llama.cpp's and vLLM's forms; /props and /slots."""

import socket

import pytest

from tests.support.serving_tools import request_bytes, wait_until

TURNS = [
  {'role': 'system', 'content': 'Be kind'},
  {'role': 'user', 'content': 'Hi'},
]


@pytest.fixture(scope='module')
def http(server):
  with server.client() as client:
    yield client


def post(http, path, status=200, **body):
  response = http.post(path, json=body)
  assert response.status_code == status, response.text
  return response.json()


def test_pieces_are_the_text_of_the_tokens(http):
  ids = post(http, '/tokenize', content='Hi!')['tokens']
  pieces = post(http, '/tokenize', content='Hi!', with_pieces=True)['tokens']
  assert [p['id'] for p in pieces] == ids
  assert [p['piece'] for p in pieces] == ['H', 'i', '!']


def test_vllms_form_counts_the_tokens_of_a_prompt(http):
  ids = post(http, '/tokenize', content='Hi!', add_special=True)['tokens']
  answer = post(http, '/tokenize', prompt='Hi!', model='any')
  assert answer == {
    'tokens': ids,
    'count': 3,
    'max_model_len': 32,
    'token_strs': None,
  }
  strings = post(http, '/tokenize', prompt='Hi!', return_token_strs=True)
  assert strings['token_strs'] == ['H', 'i', '!']


def test_a_conversation_as_tokens_and_as_text(http):
  chat = post(http, '/tokenize', messages=TURNS, return_token_strs=True)
  answer = post(http, '/v1/chat/completions', messages=TURNS, max_tokens=1)[
    'usage'
  ]
  assert chat['count'] == answer['prompt_tokens']
  prompt = post(http, '/apply-template', messages=TURNS)['prompt']
  assert prompt == '<|bos|><|user|>Be kind\n\nHi<|end_turn|><|assistant|>'
  assert ''.join(chat['token_strs']) == prompt
  begun = [*TURNS, {'role': 'assistant', 'content': 'He'}]
  continued = post(http, '/apply-template', messages=begun)['prompt']
  assert continued == prompt + 'He'
  # A conversation of any length, whatever the context.
  long = post(http, '/tokenize', messages=TURNS * 50)
  assert long['count'] > 32


@pytest.mark.parametrize(
  'body, param',
  [
    ({}, 'content'),
    ({'content': 'a', 'prompt': 'b'}, 'prompt'),
    ({'prompt': 3}, 'prompt'),
    ({'content': 'a', 'parse_special': True}, 'parse_special'),
    (
      {'messages': TURNS, 'add_generation_prompt': False},
      'add_generation_prompt',
    ),
    ({'messages': TURNS, 'chat_template': 'x'}, 'chat_template'),
  ],
)
def test_what_tokenize_cannot_read_is_named(http, body, param):
  error = post(http, '/tokenize', 400, **body)['error']
  assert error['param'] == param and param in error['message']


def test_props_describe_the_server(http):
  props = http.get('/props').json()
  assert props['total_slots'] == 4 and props['model_alias'] == 'random'
  assert props['default_generation_settings']['n_ctx'] == 32
  params = props['default_generation_settings']['params']
  assert (params['temperature'], params['max_tokens']) == (0.8, 256)
  assert (props['bos_token'], props['eos_token']) == ('<|bos|>', '<|eos|>')


def test_slots_report_their_work_without_its_text(http, server):
  wait_until(server.is_idle)
  slots = http.get('/slots').json()
  assert [slot['id'] for slot in slots] == [0, 1, 2, 3]
  assert not any(slot['is_processing'] for slot in slots)
  body = {'prompt': 'SECRET', 'max_tokens': 10**6, 'ignore_eos': True}
  with socket.create_connection(('127.0.0.1', server.port), 30) as sock:
    sock.sendall(request_bytes(body))
    wait_until(lambda: '"n_decoded":' in http.get('/slots').text)
    response = http.get('/slots')
  (slot,) = [slot for slot in response.json() if slot['is_processing']]
  assert slot['n_prompt_tokens'] == 6 and slot['n_limit'] == 10**6
  assert slot['model'] == 'random' and slot['seconds'] > 0
  assert 'SECRET' not in response.text
