"""Texts that requests constrain, through a real server."""

import concurrent.futures
import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.grammar_tools import SCHEMAS

jsonschema = pytest.importorskip('jsonschema')
pytest.importorskip('llguidance')

SCHEMA = {
  'type': 'object',
  'properties': {
    'name': {'type': 'string', 'maxLength': 6},
    'age': {'type': 'integer', 'minimum': 0, 'maximum': 99},
  },
  'required': ['name', 'age'],
  'additionalProperties': False,
}
FORMAT = {
  'type': 'json_schema',
  'json_schema': {'name': 'person', 'schema': SCHEMA, 'strict': True},
}


@pytest.fixture(scope='module')
def http(structured_server):
  with structured_server.client() as client:
    yield client


def complete(http, **fields):
  body = {'prompt': 'Hello', 'max_tokens': 100, 'seed': 1, **fields}
  response = http.post('/v1/completions', json=body)
  assert response.status_code == 200, response.text
  return response.json()['choices']


def refused(http, **fields):
  response = http.post('/v1/completions', json={'prompt': 'a', **fields})
  assert response.status_code == 400, response.text
  return response.json()['error']


@pytest.mark.parametrize(
  'fields',
  [
    {'response_format': FORMAT},
    {'response_format': {'type': 'json_object', 'schema': SCHEMA}},
    {'guided_json': SCHEMA},
    {'guided_json': json.dumps(SCHEMA)},
    {'json_schema': SCHEMA},
    {'structured_outputs': {'json': SCHEMA, 'regex': None}},
  ],
)
@pytest.mark.parametrize('temperature', [0, 1.5])
def test_every_spelling_of_a_schema_gives_json_of_it(http, fields, temperature):
  for choice in complete(http, n=4, temperature=temperature, **fields):
    jsonschema.validate(json.loads(choice['text']), SCHEMA)
    assert choice['finish_reason'] == 'stop'


@pytest.mark.parametrize(
  'fields, pattern',
  [
    ({'regex': '[a-z]{3}-[0-9]'}, '[a-z]{3}-[0-9]'),
    ({'guided_regex': '[a-z]{3}'}, '[a-z]{3}'),
    ({'structured_outputs': {'regex': 'x[0-9]+y'}}, 'x[0-9]+y'),
    ({'guided_choice': ['yes', 'no']}, 'yes|no'),
    ({'structured_outputs': {'choice': ['a b', 'a']}}, 'a b|a'),
    ({'grammar': 'root ::= "<" [a-z] ">"'}, '<[a-z]>'),
    ({'guided_grammar': 'start: "a" | "b" "c"'}, 'a|bc'),
    ({'structured_outputs': {'grammar': 'start: "a" /[0-9]/'}}, 'a[0-9]'),
  ],
)
def test_expressions_choices_and_grammars_are_followed(http, fields, pattern):
  for choice in complete(http, n=3, temperature=1.5, top_p=1, **fields):
    assert re.fullmatch(pattern, choice['text']), choice
    assert choice['finish_reason'] == 'stop'


def test_a_text_that_is_cut_short_says_so(http):
  (choice,) = complete(http, regex='[a-z]{50}', max_tokens=9)
  assert choice['finish_reason'] == 'length'
  assert re.fullmatch('[a-z]{9}', choice['text'])


@pytest.mark.parametrize(
  'fields, param, message',
  [
    ({'regex': '(a'}, 'regex', 'unclosed'),
    ({'regex': 3}, 'regex', 'non-empty'),
    ({'grammar': 'start: b'}, 'grammar', 'unknown'),
    ({'regex': 'a', 'guided_regex': 'b'}, 'guided_regex', 'combined'),
    ({'guided_choice': ['']}, 'guided_choice', 'array of 1 to'),
    ({'guided_json': 'x'}, 'guided_json', 'valid JSON'),
    ({'response_format': {'type': 'xml'}}, 'response_format', 'must have'),
    ({'response_format': 7}, 'response_format', 'must be an object'),
    (
      {'response_format': {'type': 'json_schema'}},
      'response_format',
      'must be an object',
    ),
    (
      {'structured_outputs': {'structural_tag': 'x'}},
      'structured_outputs',
      "'structural_tag'",
    ),
    (
      {'structured_outputs': {'regex': 'a', 'json_object': True}},
      'structured_outputs',
      'exactly one',
    ),
    ({'guided_json': {'type': 'object', 'uniqueItems': 1}}, 'guided_json', ''),
    ({'regex': '\u00e9+'}, 'regex', 'cannot be satisfied'),
    ({'regex': 'a*', 'min_tokens': 5}, 'min_tokens', 'beside a format'),
  ],
)
def test_what_cannot_be_used_is_a_bad_request(http, fields, param, message):
  error = refused(http, **fields)
  assert error['param'] == param and message in error['message'], error


def test_a_text_depends_on_its_request_alone(http):
  """Not on neighbours, slots or streaming."""
  asked = {
    'response_format': FORMAT,
    'temperature': 1.3,
    'top_p': 1,
    'min_p': 0.01,
    'frequency_penalty': 0.5,
  }

  def text_of(seed):
    return complete(http, seed=seed, **asked)[0]['text']

  alone = [text_of(seed) for seed in range(6)]
  with concurrent.futures.ThreadPoolExecutor(12) as pool:
    noise = [
      pool.submit(complete, http, seed=i, ignore_eos=True) for i in range(6)
    ]
    crowded = list(pool.map(text_of, range(6)))
    assert all(len(done.result()[0]['text']) for done in noise)
  assert crowded == alone and len({*alone}) > 1


@settings(
  max_examples=25,
  deadline=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(SCHEMAS, st.integers(0, 999), st.sampled_from([0, 0.7, 1.5]))
def test_random_schemas_give_valid_json_or_too_few_tokens(
  http, schema, seed, temperature
):
  (choice,) = complete(
    http, guided_json=schema, seed=seed, temperature=temperature
  )
  if choice['finish_reason'] == 'stop':
    value = json.loads(choice['text'], parse_int=float)
    jsonschema.validate(value, schema)
  else:
    assert choice['finish_reason'] == 'length'


def test_an_end_that_is_banned_does_not_keep_a_text_open(http):
  for choice in complete(http, regex='[ab]{3}', n=3, ignore_eos=True):
    assert choice['finish_reason'] == 'stop' and len(choice['text']) == 3
