"""Invalid bodies get a clear 400, never a 500, and never hang."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.http import unsupported
from serving.http.plain_schemas import MicroRequest, RandyRequest
from serving.http.schemas import OpenAIRequest

COMPLETIONS, CHAT = '/v1/completions', '/v1/chat/completions'
EMBEDDINGS, RESPONSES = '/v1/embeddings', '/v1/responses'
MESSAGES = [{'role': 'user', 'content': 'a'}]
GOOD = {
  COMPLETIONS: {'prompt': 'a', 'max_tokens': 2},
  CHAT: {'messages': MESSAGES, 'max_tokens': 2},
  '/': {'prompt': 'a', 'max_tokens': 2},
  '/microgpt/v1/generate': {'max_tokens': 2},
  '/microgpt/v1/chat': {'messages': MESSAGES, 'max_tokens': 2},
  RESPONSES: {'input': 'a', 'max_output_tokens': 2},
  EMBEDDINGS: {'input': 'a'},
  '/tokenize': {'content': 'a'},
  '/apply-template': {'messages': MESSAGES},
  '/detokenize': {'tokens': [2]},
}
# One or more bad values of every field both OpenAI routes have.
SHARED = {
  'max_tokens': ['5', -2, 1.5, 10**7, True, [1]],
  'max_completion_tokens': ['5', -2],
  'temperature': ['hot', -0.1, 2.1, True, [1], {}],
  'top_p': [0, 1.1, '1', -1],
  'top_k': [-2, 1.5, '3', 2**40],
  'min_p': [-0.1, 1.1, 'a'],
  'repetition_penalty': [0, -1, 11, 'a'],
  'frequency_penalty': [-2.1, 2.1, 'a'],
  'presence_penalty': [-2.1, 2.1, 'a'],
  'logit_bias': [
    3,
    [],
    {'a': 1},
    {'-1': 1},
    {'9999': 1},
    {'2': 101},
    {'2': 'x'},
    {'2': None},
    {'2': True},
    {'²': 1},
  ],
  'stop': [3, [''], '', ['a'] * 17, [3], {}, 'a' * 1001, ['b', 'a' * 1001]],
  'stop_token_ids': [3, ['a'], [-1], [10**6], [True], [1.5]],
  'ignore_eos': ['yes', 1],
  'n': [0, 9, '2', 1.5],
  'seed': ['a', 1.5, 2**63, -(2**63) - 1],
  'stream': ['yes', 1],
  'stream_options': [{'include_usage': True}, 3],
  'context_overflow': ['wrap', 3],
  'model': [3, {}],
  'response_format': [{'type': 'xml'}, {'type': 'json_schema'}, 'json', {}],
  'structured_outputs': [3, {'structural_tag': 'x'}, {'regex': 3}],
  'guided_json': [3, {'type': 'odd'}],
  'guided_json_object': [3, 'x'],
  'guided_choice': [['a', 3], 'a'],
  'guided_regex': [3, '(a'],
  'guided_grammar': [3, 'start: b'],
  'json_schema': [3, 'x'],
  'grammar': [3],
  'regex': [3],
  'best_of': [2, 'a'],
  'min_tokens': [-1, 3, 'a', True],
  'allowed_token_ids': [3, ['a'], [10**6]],
  'include_stop_str_in_output': ['yes', 1],
  'truncate_prompt_tokens': [-2, 0, 'a'],
  'prompt_logprobs': [-1, 21, 'a'],
  'return_progress': [1],
  'timings_per_token': ['a'],
  'suffix': ['x'],
}
OWN = {
  COMPLETIONS: {
    **SHARED,
    'prompt': [
      None,
      3,
      {},
      [],
      [[]] * 513,
      ['a', 3],
      [['a']],
      [1.5],
      [-1],
      [10**6],
      [True],
      [['a'], 'b'],
      [None],
    ],
    'logprobs': [-1, 21, 'a', True],
    'echo': ['a', 1],
  },
  CHAT: {
    **SHARED,
    'messages': [
      None,
      [],
      {},
      'a',
      [3],
      [{}],
      [{'role': 'user'}],
      [{'role': 'function', 'content': 'a'}],
      [{'role': 'user', 'content': 3}],
      [{'role': 'user', 'content': None}],
      [{'role': 'user', 'content': [{'type': 'image_url'}]}],
      [{'role': 'user', 'content': [{'type': 'text'}]}],
      [{'role': ['user'], 'content': 'a'}],
    ],
    'logprobs': ['a', 1],
    'top_logprobs': [3, 21, 'a'],
    'max_tokens': [0],
  },
  '/': {
    'prompt': [None, 3, ['a']],
    'max_tokens': [0, 'a', -2],
    'temperature': [3, 'a', -1],
  },
  '/microgpt/v1/generate': {
    'num_samples': [0, 51, 'a'],
    'temperature': [3, 'a'],
    'seed': ['a'],
    'max_tokens': [0, 'a'],
  },
  '/microgpt/v1/chat': {'messages': [None, 3, []], 'temperature': ['a']},
  RESPONSES: {
    'input': [None, 3, {}, [], [3], [{'role': 'user'}]],
    'instructions': [3],
    'max_output_tokens': [0, -2, 'a', 10**7],
    'temperature': ['hot', 2.1],
    'truncation': ['never', 3],
    'top_logprobs': [-1, 21],
    'include': ['a', [3]],
    'text': [3, {'format': 3}],
    'metadata': ['a'],
    'store': [True],
    'tools': [[{'type': 'function'}]],
  },
  EMBEDDINGS: {
    'input': [None, 3, {}, [], ['a', 3], [['a']], [1.5], [-1], [10**6]],
    'encoding_format': ['int8', 3],
    'truncate_prompt_tokens': [-2, 'a'],
    'dimensions': [8],
  },
  '/tokenize': {
    'content': [None, 3, ['a']],
    'add_special': [1],
    'with_pieces': ['a'],
    'parse_special': [True],
  },
  '/apply-template': {'messages': [None, 3, []], 'tools': [[{}]]},
  '/detokenize': {'tokens': [None, 'a', ['a'], [-1], [1.5], [10**9]]},
}


@pytest.fixture(scope='module')
def http(server):
  with server.client() as client:
    yield client


def check_error(response, path):
  """Checks the shape of an error and returns it."""
  assert response.headers['content-type'] == 'application/json'
  error = response.json()['error']
  if path == '/' or path.startswith('/microgpt'):
    assert isinstance(error, str) and error
    return error
  assert error.keys() == {'message', 'type', 'param', 'code'}
  assert isinstance(error['message'], str) and error['message']
  assert isinstance(error['type'], str)
  return error


@pytest.mark.parametrize(
  'path, field', [(path, f) for path, fields in OWN.items() for f in fields]
)
def test_every_field_is_checked(http, path, field):
  for value in OWN[path][field]:
    body = {**GOOD[path], field: value}
    response = http.post(path, json=body)
    assert response.status_code == 400, (value, response.text)
    error = check_error(response, path)
    message = error if isinstance(error, str) else error['message']
    assert field in message, (value, message)
    if isinstance(error, dict):
      assert error['param'].partition('[')[0] == field, error


GENERATING = [COMPLETIONS, CHAT, '/', '/microgpt/v1/generate']
# Values that ask for something, of some fields of other servers' APIs.
ASKING = {
  'bad_words': ['a'],
  'continue_final_message': True,
  'grammar': 'root ::= "a"',
  'guided_choice': ['a', 'b'],
  'guided_json': {},
  'length_penalty': 1.5,
  'mirostat': 2,
  'modalities': ['text', 'audio'],
  'n_predict': 5,
  'repeat_penalty': 1.1,
  'skip_special_tokens': False,
  'tool_choice': 'required',
  'typical_p': 0.9,
  'use_beam_search': True,
}


@pytest.mark.parametrize('path', GENERATING)
def test_fields_of_other_apis_are_refused_by_name_if_they_matter(http, path):
  tools = {'tools', 'tool_choice'} if path == CHAT else set()
  for name in unsupported.NEUTRAL.keys() - tools:
    values = [ASKING[name]] if name in ASKING else []
    for value in [*values, {'an': 'odd value'}]:
      response = http.post(path, json={**GOOD[path], name: value})
      assert response.status_code == 400, (name, value)
      error = check_error(response, path)
      message = error if isinstance(error, str) else error['message']
      assert message.startswith(f'{name} is not supported'), message
      if isinstance(error, dict):
        assert (error['param'], error['code']) == (
          name,
          'unsupported_parameter',
        )
  quiet = {n: v for n, values in unsupported.NEUTRAL.items() for v in values}
  quiet |= dict.fromkeys(set(unsupported.NEUTRAL) - quiet.keys())
  assert http.post(path, json={**GOOD[path], **quiet}).status_code == 200


def test_a_field_under_another_name_is_refused_with_ours(http):
  body = {**GOOD[COMPLETIONS], 'repeat_penalty': 1.1}
  assert http.post(COMPLETIONS, json=body).json()['error']['message'] == (
    'repeat_penalty is not supported; use repetition_penalty.'
  )


def test_randygpts_and_microgpts_routes_refuse_what_only_openais_know(http):
  known = {*OpenAIRequest.model_fields, 'echo', 'top_logprobs'}
  for path, model in (('/', RandyRequest), (GENERATING[-1], MicroRequest)):
    beyond = known - {*model.model_fields, 'model', 'stream_options'}
    assert beyond <= {*model.foreign}
    for name in beyond:
      body = {**GOOD[path], name: [3, 'odd']}
      response = http.post(path, json=body)
      assert response.status_code == 400, name
      assert f'{name} is not supported' in response.json()['error']


def test_characters_without_a_token_are_warned_about(http):
  text, warning = 'aéb漢é', 'dropped 3 characters that are not in the'
  turns = [{'role': 'user', 'content': text}]
  for path, body, param in (
    (COMPLETIONS, {'prompt': ['x', text]}, 'prompt'),
    (COMPLETIONS, {'prompt': text, 'echo': True}, 'prompt'),
    (CHAT, {'messages': turns}, 'messages'),
    ('/', {'prompt': text}, 'prompt'),
    ('/microgpt/v1/chat', {'messages': turns}, 'messages'),
    ('/tokenize', {'content': text}, 'content'),
  ):
    body = body if path == '/tokenize' else {**body, 'max_tokens': 2}
    (found,) = http.post(path, json=body).json()['warnings']
    assert found['message'].startswith(warning), path
    assert "'é' x2, '漢' x1" in found['message']
    assert (found['code'], found['param']) == ('characters_dropped', param)
    if path in (COMPLETIONS, CHAT):
      stream = http.post(path, json={**body, 'stream': True, 'n': 2}).text
      first, *others = stream.split('\n\n')
      assert json.loads(first[6:])['warnings'] == [found]
      assert 'warnings' not in ''.join(others)
  for path, body in GOOD.items():
    assert 'warnings' not in http.post(path, json=body).json()


def test_counting_many_unknown_characters_takes_one_pass(http):
  """Once for each of them, a megabyte held a worker for minutes."""
  text = ''.join(map(chr, range(0x100, 0xD800))) * 6
  response = http.post('/tokenize', json={'content': text})
  assert f'dropped {len(text):,} characters' in response.text


def test_a_prompt_that_is_cut_to_the_window_says_so(http):
  body = {'prompt': 'a' * 40, 'max_tokens': 1}  # The context holds 32.
  for path in (COMPLETIONS, '/'):
    answer = http.post(path, json=body).json()
    assert answer['tokens_dropped'] == 16
    (warning,) = answer['warnings']
    assert warning == {
      'code': 'prompt_truncated',
      'message': 'dropped the first 16 tokens: the context holds 32',
      'param': 'prompt',
    }
  many = {**body, 'prompt': ['a' * 33, 'a' * 32, 'a' * 70]}
  for fields, dropped in (
    ({}, 16 + 48),
    ({'context_overflow': 'exact'}, 1 + 38),
  ):
    answer = http.post(COMPLETIONS, json={**many, **fields}).json()
    assert answer['tokens_dropped'] == dropped
  # Nothing is sampled, or nothing is cut.
  for fields in (
    {'max_tokens': 0, 'echo': True},
    {'context_overflow': 'stop'},
    {'prompt': 'a' * 32},
  ):
    answer = http.post(COMPLETIONS, json={**body, **fields}).json()
    assert 'tokens_dropped' not in answer


@pytest.mark.parametrize('path', GOOD)
@pytest.mark.parametrize(
  'body',
  [
    b'',
    b'{',
    b'[]',
    b'3',
    b'null',
    b'"a"',
    b'\xff\xfe',
    b'{"a": NaN}',
    b'{"a": Infinity}',
    b'[' * 100_000,
    b'{"a":' * 5000,
    b'1' * 5000,
    b'{"a": 1' + b'0' * 5000 + b'}',
  ],
)
def test_a_body_must_be_a_json_object(http, path, body):
  response = http.post(path, content=body)
  assert response.status_code == 400
  check_error(response, path)


@pytest.mark.parametrize('path', GOOD)
def test_good_bodies_with_unknown_fields_and_nulls(http, path):
  names = set(OWN[path]) - set(GOOD[path])
  body = {**GOOD[path], **dict.fromkeys(names), 'unknown': [{}], 'user': 'me'}
  response = http.post(path, json=body)
  assert response.status_code == 200, response.text


NEUTRAL = {
  'tools': [],
  'response_format': {'type': 'text'},
  'best_of': 1,
  'n': 1.0,
  'top_k': -1,
  'min_p': 1,
  'max_tokens': 2.0,
  'suffix': '',
  'stop': [],
  'logit_bias': {},
  'seed': -1,
  'top_p': 1e-45,
  'repetition_penalty': 1e-45,
}


@pytest.mark.parametrize('field', NEUTRAL)
def test_neutral_values_are_accepted(http, field):
  body = {**GOOD[COMPLETIONS], field: NEUTRAL[field]}
  assert http.post(COMPLETIONS, json=body).status_code == 200


def test_too_many_log_probabilities_are_refused_not_computed(http):
  for count in ({'max_tokens': 10**6}, {'max_tokens': 1200, 'n': 8}):
    body = {'prompt': 'a', 'logprobs': 20, **count}
    response = http.post(COMPLETIONS, json=body)
    assert response.status_code == 400
    error = response.json()['error']
    assert error['param'] == 'logprobs' and '200000' in error['message']
  # A stream is written piece by piece; an echo is one of them.
  body = {
    'prompt': 'a',
    'logprobs': 20,
    'max_tokens': 10**6,
    'stream': True,
    'logit_bias': {'1': 100},
  }
  assert http.post(COMPLETIONS, json=body).status_code == 200
  body |= {'prompt': 'a' * 10_000, 'echo': True}
  assert http.post(COMPLETIONS, json=body).status_code == 400


def test_lone_surrogates_and_odd_characters_are_valid_text(http):
  for text in ('\ud800', '\udfffa', '\0', '\x7f', '￿', '🏳️‍🌈'):
    data = json.dumps(
      {'prompt': text, 'stop': [text], 'max_tokens': 2, 'echo': True}
    ).encode()
    assert http.post(COMPLETIONS, content=data).status_code == 200
    assert http.post('/tokenize', content=json.dumps({'content': text}))


JSON = st.recursive(
  st.none()
  | st.booleans()
  | st.integers(-(2**70), 2**70)
  | st.floats(allow_nan=False, allow_infinity=False)
  | st.text(max_size=8),
  lambda children: (
    st.lists(children, max_size=3)
    | st.dictionaries(st.text(max_size=5), children, max_size=3)
  ),
  max_leaves=6,
)


def bodies(path):
  """Good bodies in which some fields hold arbitrary JSON."""
  anything = st.dictionaries(
    st.sampled_from(sorted(OWN[path])), JSON, max_size=3
  )
  return anything.map(lambda odd: {**GOOD[path], **odd})


def small(body):
  """Limits the tokens, so that valid requests are quick."""
  for name in ('max_tokens', 'max_completion_tokens'):
    value = body.get(name)
    if isinstance(value, (int, float)) and value > 50:
      body[name] = 50
  return body


UNHURRIED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.mark.parametrize('path', GOOD)
@settings(max_examples=60, deadline=None, suppress_health_check=UNHURRIED)
@given(data=st.data())
def test_any_json_gets_an_answer_or_a_clear_error(http, path, data):
  body = small(data.draw(bodies(path)))
  response = http.post(path, content=json.dumps(body))
  assert response.status_code in (200, 400), response.text
  if response.status_code == 400:
    check_error(response, path)
  elif response.headers['content-type'] == 'application/json':
    assert not response.json().get('error')  # null in a response
  else:
    assert response.text.endswith('data: [DONE]\n\n')


@settings(max_examples=60, deadline=None, suppress_health_check=UNHURRIED)
@given(content=st.binary(max_size=60), path=st.sampled_from(sorted(GOOD)))
def test_any_bytes_get_a_clear_error(http, content, path):
  response = http.post(path, content=content)
  assert response.status_code == 400
  check_error(response, path)
