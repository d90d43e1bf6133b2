"""GET /openapi.json describes what the server accepts and what it answers."""

import json
import re

import jsonschema
import pytest

from tests.serving.test_bodies import (
  CHAT,
  COMPLETIONS,
  EMBEDDINGS,
  GOOD,
  MESSAGES,
  OWN,
  RESPONSES,
)
from tests.support.serving_tools import sse

# What only the server can know: its vocabulary, and rules over two fields.
UNDOCUMENTED = {
  'logit_bias': [{'9999': 1}],
  'guided_json': [{'type': 'odd'}],
  'guided_regex': ['(a'],
  'guided_grammar': ['start: b'],
  'json_schema': ['x'],
  'stop_token_ids': [[10**6]],
  'allowed_token_ids': [[10**6]],
  'best_of': [2],
  'min_tokens': [3],
  'truncate_prompt_tokens': [0],
  'tokens': [[10**9]],
  'prompt': [[10**6]],
  'input': [[10**6]],
  'stream_options': [{'include_usage': True}],
  'top_logprobs': [3],
  'messages': [[{'role': 'user'}], [{'role': 'user', 'content': None}]],
}
STREAMED = {'stream': True, 'stream_options': {'include_usage': True}}
# (method, path, body) of answers to compare with their descriptions.
ANSWERS = [
  *(('POST', path, body) for path, body in GOOD.items()),
  ('POST', COMPLETIONS, {'prompt': 'a', 'echo': True, 'logprobs': 2, 'n': 2}),
  ('POST', COMPLETIONS, {'prompt': 'a', 'logprobs': 1, **STREAMED}),
  ('POST', CHAT, {'messages': MESSAGES, 'logprobs': True, 'top_logprobs': 2}),
  ('POST', COMPLETIONS, {'prompt': ['aé' * 40, 'b'], 'prompt_logprobs': 1}),
  ('POST', CHAT, {'messages': MESSAGES, 'prompt_logprobs': 1}),
  ('POST', COMPLETIONS, {'prompt': 'a', 'return_progress': True, **STREAMED}),
  ('POST', CHAT, {'messages': MESSAGES * 20, 'logprobs': True, **STREAMED}),
  ('POST', RESPONSES, {'input': 'aé' * 40, 'top_logprobs': 2}),
  ('POST', RESPONSES, {'input': 'a', 'stream': True}),
  ('POST', EMBEDDINGS, {'input': ['aé'], 'encoding_format': 'base64'}),
  ('POST', COMPLETIONS, {'prompt': 3}),
  ('POST', '/', {'prompt': 3}),
  ('POST', '/reload', {}),
  ('POST', '/tokenize', {'prompt': 'aé', 'return_token_strs': True}),
  ('POST', '/tokenize', {'content': 'a', 'with_pieces': True}),
  ('GET', '/props', None),
  ('GET', '/slots', None),
  ('GET', '/v1/models', None),
  ('GET', '/v1/models/random', None),
  ('GET', '/v1/models/none', None),
  ('GET', '/health', None),
  ('GET', '/livez', None),
  ('GET', '/version', None),
]


@pytest.fixture(scope='module')
def http(server):
  with server.client() as client:
    yield client


@pytest.fixture(scope='module')
def document(http):
  return http.get('/openapi.json').json()


def validator(document, schema):
  """Of a schema whose references point into the document."""
  return jsonschema.Draft202012Validator(
    {**schema, 'components': document['components']}
  )


def closed(schema):
  """A copy in which objects have no other fields than those described."""
  if isinstance(schema, list):
    return [closed(x) for x in schema]
  if not isinstance(schema, dict):
    return schema
  out = {name: closed(value) for name, value in schema.items()}
  if out.get('type') == 'object' and isinstance(out.get('properties'), dict):
    out['additionalProperties'] = False
  return out


def body_schema(document, path):
  content = document['paths'][path]['post']['requestBody']['content']
  return content['application/json']['schema']


def test_it_is_complete_and_valid(document, http):
  assert document['openapi'].startswith('3.1')
  ids = set()
  for path, methods in document['paths'].items():
    for method, operation in methods.items():
      # The server knows the route, and every schema there is valid.
      response = http.request(method, path.replace('{id}', 'random'))
      assert response.status_code not in (404, 405), path
      assert operation['summary'] and '200' in operation['responses']
      ids.add(operation['operationId'])
  assert len(ids) == sum(len(m) for m in document['paths'].values())
  for schema in document['components']['schemas'].values():
    jsonschema.Draft202012Validator.check_schema(schema)
  text = json.dumps(document)
  for part in text.split('"$ref": "#/components/schemas/')[1:]:
    assert part.partition('"')[0] in document['components']['schemas']


def test_no_route_is_left_out(document, http):
  documented = {
    (path, method.upper())
    for path, methods in document['paths'].items()
    for method in methods
  }
  # Every route has a counter from the start.
  counted = re.findall(
    r'method="(\w+)",route="(\S+)",status="200"', http.get('/metrics').text
  )
  served = {(path, method) for method, path in counted if method != 'HEAD'}
  assert served == documented


@pytest.mark.parametrize('path', GOOD)
def test_it_rejects_the_values_that_the_server_rejects(document, path):
  check = validator(document, body_schema(document, path))
  check.validate(GOOD[path])
  for field, values in OWN[path].items():
    for value in values:
      if value not in UNDOCUMENTED.get(field, ()) and value is not None:
        body = {**GOOD[path], field: value}
        assert not check.is_valid(body), (field, value)


@pytest.mark.parametrize('method, path, body', ANSWERS)
def test_answers_are_as_described(document, http, method, path, body):
  response = http.request(method, path, json=body)
  route = '/v1/models/{id}' if '/models/' in path else path
  operation = document['paths'][route][method.lower()]
  content = operation['responses'][str(response.status_code)]['content']
  kind = response.headers['content-type'].partition(';')[0]
  schema = closed(content[kind]['schema'])
  if kind != 'application/json':
    schema = schema['properties']['data']['anyOf'][0]['contentSchema']
  check = validator(closed(document), schema)
  if kind == 'application/json':
    check.validate(response.json())
    return
  if path == RESPONSES:  # Its events have names, and no mark ends them.
    lines = response.text.splitlines()
    chunks = [x[6:] for x in lines if x.startswith('data: ')]
  else:
    *chunks, done = sse(response)
    assert done == '[DONE]'
  assert len(chunks) > 2
  for chunk in chunks:
    check.validate(json.loads(chunk))
