"""Limits and a full queue, on a server with narrow ones."""

import contextlib
import json
import socket
import threading

import openai
import pytest

from tests.support.serving_tools import (
  KEY,
  OTHER_KEY,
  PATIENCE,
  is_idle,
  keyed_client,
  parse_metrics,
  request_bytes,
  wait_until,
)

FOREVER = {
  'prompt': 'a',
  'max_tokens': 10**6,
  'ignore_eos': True,
  'context_overflow': 'slide',
}


@pytest.fixture(scope='module')
def server(guarded_server):
  return guarded_server


http = pytest.fixture(keyed_client, scope='module')


@pytest.fixture(scope='module')
def other(server):
  """A client with another key."""
  with server.client(headers={'x-api-key': OTHER_KEY}) as client:
    yield client


@pytest.fixture(autouse=True)
def idle_before(http):
  wait_until(lambda: is_idle(http))


@contextlib.contextmanager
def running(server, http):
  """Runs a request that holds the only slot until the block ends."""
  with socket.create_connection(('127.0.0.1', server.port), PATIENCE) as sock:
    sock.sendall(request_bytes(FOREVER))
    wait_until(lambda: 'rgpt_slots_busy 1.0' in http.get('/metrics').text)
    yield


def refused_so_far(http) -> float:
  """Requests refused because the queue was full."""
  text = http.get('/metrics').text
  return parse_metrics(text)['rgpt_rejected_total{reason="queue_full"}']


def test_the_operators_choice_of_overflow_is_the_default(http):
  body = {'prompt': 'a' * 20, 'max_tokens': 20}
  response = http.post('/v1/completions', json=body)
  assert response.status_code == 400
  assert response.json()['error']['code'] == 'context_length_exceeded'
  assert (
    http.post(
      '/v1/completions', json={**body, 'context_overflow': 'slide'}
    ).status_code
    == 200
  )


def test_overflow_error_refuses_a_long_chat_instead_of_cutting_it(http):
  ask = {'messages': [{'role': 'user', 'content': 'a' * 100}], 'max_tokens': 2}
  for body in (
    ask,
    {**ask, 'messages': [{'role': 'user', 'content': 'a'}], 'max_tokens': 30},
  ):
    response = http.post('/v1/chat/completions', json=body)
    assert response.status_code == 400
    error = response.json()['error']
    assert error['code'] == 'context_length_exceeded'
    assert error['param'] == 'messages'
  response = http.post(
    '/v1/chat/completions', json={**ask, 'context_overflow': 'slide'}
  )
  assert response.json()['tokens_dropped'] > 0


def test_bodies_beyond_the_limit(server, http):
  big = {'prompt': 'a' * 5000}
  for path in ('/v1/completions', '/', '/tokenize'):
    response = http.post(path, json=big)
    assert response.status_code == 413
    assert 'error' in response.json()

  def chunks():
    yield b'{"prompt": "'
    for _ in range(1000):
      yield b'a' * 1000
    yield b'"}'

  response = http.post('/v1/completions', content=chunks())
  assert response.status_code == 413
  # The connection is not used for what is left of the body.
  assert response.headers['connection'] == 'close'
  # A body that is announced only is not asked for.
  head = (
    request_bytes({})
    .split(b'\r\n\r\n')[0]
    .replace(
      b'Content-Length: 2', b'Content-Length: 5000\r\nExpect: 100-continue'
    )
  )
  with socket.create_connection(('127.0.0.1', server.port), PATIENCE) as sock:
    sock.sendall(head + b'\r\n\r\n')
    with sock.makefile('rb') as file:
      assert b' 413 ' in file.readline()
  fits = json.dumps({'content': 'a' * 4000}).encode()
  assert http.post('/tokenize', content=fits).status_code == 200


def test_a_lying_content_length_is_refused_at_once(server):
  with socket.create_connection(('127.0.0.1', server.port), PATIENCE) as sock:
    sock.sendall(
      f'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n'
      f'X-Api-Key: {KEY}\r\nContent-Length: 99999999999\r\n\r\n'.encode()
    )
    assert b' 413 ' in sock.recv(1000).split(b'\r\n')[0]


def test_a_full_queue_is_a_503_with_retry_after(server, http, other):
  before = refused_so_far(http)
  with running(server, http):
    for path, body in (
      ('/v1/completions', {'prompt': 'a', 'stream': True}),
      ('/', {'prompt': 'a'}),
      ('/microgpt/v1/generate', {}),
    ):
      response = other.post(path, json=body)
      assert response.status_code == 503
      assert int(response.headers['retry-after']) >= 1
      assert response.headers['content-type'] == 'application/json'
    assert other.get('/health').status_code == 200
    assert other.post('/tokenize', json={'content': 'a'}).status_code == 200
  assert refused_so_far(http) == before + 3


def test_the_openai_package_retries_after_a_503(server, http):
  before = refused_so_far(http)
  with openai.OpenAI(
    base_url=f'{server.url}/v1', api_key=OTHER_KEY, max_retries=20
  ) as client:
    with running(server, http):
      with pytest.raises(openai.InternalServerError) as e:
        client.with_options(max_retries=0).completions.create(
          model='tiny', prompt='a'
        )
      assert e.value.status_code == 503 and e.value.code == 'overloaded'
      answers = []
      thread = threading.Thread(
        target=lambda: answers.append(
          client.completions.create(model='tiny', prompt='a', max_tokens=2)
        )
      )
      thread.start()
      wait_until(lambda: refused_so_far(http) >= before + 2)
    thread.join()
  assert answers[0].object == 'text_completion'


def test_the_limit_per_client_leaves_room_for_others(http, other, server):
  sockets = []
  for _ in range(4):  # Bodies that do not come.
    sock = socket.create_connection(('127.0.0.1', server.port), PATIENCE)
    sock.sendall(
      f'POST /tokenize HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {KEY}\r\n'
      'Content-Length: 9\r\n\r\n'.encode()
    )
    sockets.append(sock)
  wait_until(lambda: http.get('/v1/models').status_code == 429)
  response = http.get('/v1/models')
  assert response.headers['retry-after'] == '1'
  assert response.json()['error']['type'] == 'rate_limit_error'
  assert other.get('/v1/models').status_code == 200
  assert http.get('/health').status_code == 200
  for sock in sockets:
    sock.close()
  wait_until(lambda: http.get('/v1/models').status_code == 200)
