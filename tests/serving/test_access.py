"""Access: keys, hosts, origins and names of models."""

import openai
import pytest

from tests.support.serving_tools import (
  KEY,
  OTHER_KEY,
  ServerProcess,
  keyed_client,
)
from tests.support.workdirs import launch

PUBLIC = [
  ('GET', '/health'),
  ('GET', '/livez'),
  ('GET', '/version'),
  ('GET', '/'),
]
PRIVATE = [
  ('POST', '/'),
  ('POST', '/v1/completions'),
  ('POST', '/v1/chat/completions'),
  ('GET', '/v1/models'),
  ('GET', '/v1/models/tiny'),
  ('POST', '/completions'),
  ('POST', '/chat/completions'),
  ('GET', '/models'),
  ('GET', '/models/tiny'),
  ('POST', '/microgpt/v1/generate'),
  ('POST', '/microgpt/v1/chat'),
  ('POST', '/v1/embeddings'),
  ('POST', '/v1/responses'),
  ('POST', '/tokenize'),
  ('POST', '/detokenize'),
  ('POST', '/apply-template'),
  ('GET', '/props'),
  ('GET', '/slots'),
  ('GET', '/metrics'),
  ('GET', '/openapi.json'),
  ('POST', '/reload'),
  ('GET', '/nothing'),
  ('DELETE', '/v1/models'),
]


@pytest.fixture(scope='module')
def server(guarded_server):
  return guarded_server


http = pytest.fixture(keyed_client, scope='module')


@pytest.mark.parametrize('method, path', PUBLIC)
def test_monitors_and_the_page_need_no_key(server, method, path):
  with server.client() as client:
    assert client.request(method, path).status_code == 200


@pytest.mark.parametrize('method, path', PRIVATE)
def test_every_other_route_needs_a_key(server, method, path):
  with server.client() as client:
    for headers in (
      {},
      {'authorization': 'Bearer wrong'},
      {'x-api-key': 'wrong'},
      {'authorization': f'Basic {KEY}'},
      {'authorization': 'Bearer'},
      {'authorization': 'Bearer \xff'.encode('latin-1')},
    ):
      response = client.request(method, path, headers=headers)
      assert response.status_code == 401, headers
      assert response.headers['www-authenticate'] == 'Bearer'
      error = response.json()['error']
      if path == '/' or path.startswith('/microgpt'):
        assert isinstance(error, str)
      else:
        assert error['type'] == 'authentication_error'


def test_all_keys_and_both_headers_work(server):
  for key in (KEY, OTHER_KEY, 'schlüssel'):
    for name, value in (
      ('authorization', f'Bearer {key}'),
      ('authorization', f'bearer {key}'),
      ('x-api-key', key),
    ):
      with server.client(headers={name: value.encode()}) as client:
        assert client.get('/v1/models').status_code == 200, (name, value)


def test_keys_are_compared_by_hash_and_in_constant_time(monkeypatch):
  """Nothing in the time it takes says how much of a key was right."""
  import hmac

  from serving.http import access

  seen = []
  compare = hmac.compare_digest
  monkeypatch.setattr(
    hmac, 'compare_digest', lambda a, b: seen.append((a, b)) or compare(a, b)
  )
  keys = access.Keys(('first', 'second', 'third'))
  assert keys.accept('first') and keys.accept('third')
  assert not keys.accept('firs') and not keys.accept('')
  assert len(seen) == 12 and all(len(x) == 32 for pair in seen for x in pair)


def test_openai_sees_its_own_exceptions(server):
  with (
    openai.OpenAI(
      base_url=f'{server.url}/v1', api_key='wrong', max_retries=0
    ) as client,
    pytest.raises(openai.AuthenticationError),
  ):
    client.models.list()
  with (
    openai.OpenAI(
      base_url=f'{server.url}/v1', api_key=KEY, max_retries=0
    ) as client,
    pytest.raises(openai.NotFoundError) as e,
  ):
    client.completions.create(model='gpt-5', prompt='a')
  assert e.value.code == 'model_not_found'


def test_a_strict_server_still_answers_for_no_name_and_both_its_names(http):
  for model in (None, 'tiny', 'randygpt-1L-4H-32D'):
    body = {'prompt': 'a', 'max_tokens': 2, 'model': model}
    answer = http.post('/v1/completions', json=body)
    assert answer.json()['model'] == 'tiny'


def test_only_allowed_hosts_and_origins_are_accepted(http):
  for host in ('api.example', 'API.example:443', 'localhost'):
    assert http.get('/v1/models', headers={'host': host}).status_code == 200
  assert (
    http.get('/v1/models', headers={'host': 'other.example'}).status_code == 400
  )
  for path in ('/health', '/livez', '/version'):
    assert http.get(path, headers={'host': '10.0.0.7'}).status_code == 200
  assert http.get('/', headers={'host': '10.0.0.7'}).status_code == 400
  good = {'origin': 'https://good.example'}
  response = http.get('/v1/models', headers=good)
  assert response.headers['access-control-allow-origin'] == good['origin']
  evil = http.get('/v1/models', headers={'origin': 'https://evil.example'})
  assert 'access-control-allow-origin' not in evil.headers


def test_pages_of_other_sites_may_not_send_requests(server, http):
  own = f'http://127.0.0.1:{server.port}'

  def send(**headers):
    headers = {k.replace('_', '-'): v for k, v in headers.items()}
    return http.post('/tokenize', json={'content': 'a'}, headers=headers)

  # Browsers name the kind of site to https and loopback addresses alone.
  for headers in (
    {},
    {'origin': own},
    {'origin': 'https://good.example'},
    {'origin': 'https://api.example', 'sec_fetch_site': 'same-origin'},
    {'origin': own.upper()},
  ):
    assert send(**headers).status_code == 200, headers
  for headers in (
    {'origin': 'https://evil.example'},
    {'origin': 'null'},
    {'origin': own + '0'},
    {'origin': own, 'sec_fetch_site': 'cross-site'},
  ):
    response = send(**headers)
    assert response.status_code == 403, headers
    assert response.json()['error']['code'] == 'cross_site'


@pytest.mark.parametrize(
  'names, loopback, hosts',
  [
    ((), True, ('localhost',)),
    ((), False, ()),
    (('*',), True, ()),
    (('a', '*'), False, ()),
    (('API.example',), True, ('api.example', 'localhost')),
    (('api.example',), False, ('api.example', 'localhost')),
  ],
)
def test_localhost_is_always_an_allowed_host(names, loopback, hosts):
  from serving.http import access

  assert access.allowed_hosts(names, loopback) == hosts


def test_preflights_of_allowed_pages_need_no_key(server):
  ask = {
    'access-control-request-method': 'POST',
    'origin': 'https://good.example',
  }
  with server.client() as client:
    response = client.options('/v1/completions', headers=ask)
    assert response.status_code == 204
    assert 'authorization' in response.headers['access-control-allow-headers']
    # OpenAI's client for JavaScript sends headers of its own.
    asked = 'authorization,x-stainless-os, X-Stainless-Retry-Count'
    for given in (asked, asked.replace('os', 'o"s<>;:\t')):
      response = client.options(
        '/v1/completions',
        headers={**ask, 'access-control-request-headers': given},
      )
      assert response.headers['access-control-allow-headers'] == asked
    ask['origin'] = 'https://evil.example'
    assert client.options('/v1/completions', headers=ask).status_code == 401


def test_keys_on_the_command_line_and_open_addresses_cause_warnings(tmp_path):
  for flags, words in (
    (['--api_key=abc'], 'visible'),
    (['--host=0.0.0.0'], 'other machines'),
  ):
    with ServerProcess(tmp_path / 'none', *flags) as server:
      server.wait_for(words)
      assert server.wait() == 2


def test_an_empty_source_of_keys_is_an_error(monkeypatch, tmp_path):
  (tmp_path / 'keys').write_text('\n \n')
  for name, problem in (
    (tmp_path / 'keys', 'holds no key'),
    ('nowhere', 'cannot read'),
  ):
    _, err = launch('serve', '--workdir=x', f'--api_key_file={name}', code=2)
    assert problem in err
  _, err = launch('serve', '--workdir=x', '--api_key= ', code=2)
  assert '--api_key holds no key' in err
  monkeypatch.setenv('RGPT_API_KEY', ' ,')
  _, err = launch('serve', '--workdir=x', code=2)
  assert 'RGPT_API_KEY holds no key' in err


def test_an_invalid_host_is_an_error(monkeypatch):
  _, err = launch('serve', '--workdir=x', '--host=a..b', code=2)
  assert '--host=a..b' in err and 'Traceback' not in err
