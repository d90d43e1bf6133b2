"""Limits, timeouts and a full queue, on a server with little of each."""

import contextlib
import json
import socket
import threading

import openai
import pytest
from serving_tools import KEY, OTHER_KEY, keyed_serving, wait_until

LIMITS = (
  '--slots=1', '--max_queue=1', '--max_per_client=4', '--body_limit=4096',
  '--body_timeout=0.5', '--queue_timeout=3', '--request_timeout=6',
  '--model_name=tiny', '--context_overflow=error',
)


@pytest.fixture(scope='module')
def server(tmp_path_factory):
  path = tmp_path_factory.mktemp('limits')
  with keyed_serving(path, *LIMITS) as server:
    yield server


@pytest.fixture(scope='module')
def http(server):
  with server.client(headers={'authorization': f'Bearer {KEY}'}) as client:
    yield client


@pytest.fixture(scope='module')
def other(server):
  """Another client: its own key."""
  with server.client(headers={'x-api-key': OTHER_KEY}) as client:
    yield client


FOREVER = {
  'prompt': 'a', 'max_tokens': 10**6, 'ignore_eos': True, 'stream': True,
  'context_overflow': 'slide', 'model': 'tiny',
}


@contextlib.contextmanager
def running(client):
  """A request that holds the only slot until it is left."""
  with client.stream('POST', '/v1/completions', json=FOREVER) as response:
    assert response.status_code == 200
    stream = response.iter_bytes()  # Kept, or it would close the response.
    next(stream)
    yield


def idle(http):
  def is_idle():
    text = http.get('/metrics').text
    return 'rgpt_slots_busy 0.0' in text and 'waiting 0.0' in text

  wait_until(is_idle)


def queue_up(client):
  """A request that waits, on a thread; gives (thread, list of the answer)."""
  answers = []
  thread = threading.Thread(
    target=lambda: answers.append(
      client.post('/v1/completions', json={'prompt': 'a', 'max_tokens': 2})
    )
  )
  thread.start()
  wait_until(
    lambda: 'requests_waiting 1.0' in client.get('/metrics').text
  )
  return thread, answers


def test_the_operators_choice_of_overflow_is_the_default(http):
  body = {'prompt': 'a' * 20, 'max_tokens': 20}
  response = http.post('/v1/completions', json=body)
  assert response.status_code == 400
  assert response.json()['error']['code'] == 'context_length_exceeded'
  assert http.post(
    '/v1/completions', json={**body, 'context_overflow': 'slide'}
  ).status_code == 200


def test_bodies_beyond_the_limit(http):
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
  fits = json.dumps({'content': 'a' * 4000}).encode()
  assert http.post('/tokenize', content=fits).status_code == 200


def test_a_body_that_never_ends_or_never_comes(server):
  head = (
    f'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n'
    f'Authorization: Bearer {KEY}\r\n'
  )
  for rest in ('Content-Length: 50\r\n\r\n{"pro',
               'Transfer-Encoding: chunked\r\n\r\n5\r\n{"pro\r\n'):
    with socket.create_connection(('127.0.0.1', server.port), 30) as sock:
      sock.sendall((head + rest).encode())
      answer = sock.makefile('rb').read()
    assert b' 408 ' in answer.split(b'\r\n')[0]
    assert b'did not arrive' in answer


@pytest.mark.parametrize('sent', [
  b'', b'GET /livez HT', b'GET /livez HTTP/1.1\r\nHost: localhost\r\n',
  b'GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\nGET',
  b'POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{',
])
def test_a_head_that_never_comes_ends_the_connection(server, sent):
  with socket.create_connection(('127.0.0.1', server.port), 30) as sock:
    sock.sendall(sent)
    if b'\r\n\r\n' in sent:  # What follows it begins no other.
      assert sock.recv(1000).startswith(b'HTTP/1.1 ')
    with contextlib.suppress(ConnectionError):  # A reset is an end, too.
      if b'\r\n\r\n' in sent:
        sock.sendall(b' ')
      while sock.recv(1000):
        pass


def test_heads_in_pieces_are_no_end(server):
  head = b'GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n'
  with socket.create_connection(('127.0.0.1', server.port), 30) as sock:
    for _ in range(2):
      for piece in (head[:9], head[9:]):
        sock.sendall(piece)
      answer = b''  # Head and body may come apart.
      while not answer.endswith(b'{"status":"ok"}'):
        piece = sock.recv(1000)
        assert piece, answer
        answer += piece
      assert answer.startswith(b'HTTP/1.1 200 ')


def test_connections_of_stalled_readers_end():
  from serving.server import STALLED_SECONDS, bind

  if not hasattr(socket, 'TCP_USER_TIMEOUT'):
    pytest.skip('needs TCP_USER_TIMEOUT')
  with bind('127.0.0.1', 0) as listener:
    with socket.create_connection(listener.getsockname()):
      sock, _ = listener.accept()
      with sock:
        assert STALLED_SECONDS * 1000 == sock.getsockopt(
          socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT
        )


def test_a_lying_content_length_is_refused_at_once(server):
  with socket.create_connection(('127.0.0.1', server.port), 30) as sock:
    sock.sendall(
      f'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n'
      f'X-Api-Key: {KEY}\r\nContent-Length: 99999999999\r\n\r\n'.encode()
    )
    assert b' 413 ' in sock.recv(1000).split(b'\r\n')[0]


def test_a_full_queue_is_a_503_that_says_when_to_come_back(http, other):
  idle(http)
  before = http.get('/metrics').text
  assert 'reason="queue_full"} 0.0' in before
  with running(http):
    thread, answers = queue_up(http)
    for path, body in (
      ('/v1/completions', {'prompt': 'a', 'stream': True}),
      ('/', {'prompt': 'a'}), ('/microgpt/v1/generate', {}),
    ):
      response = other.post(path, json=body)
      assert response.status_code == 503
      assert int(response.headers['retry-after']) >= 1
      assert response.headers['content-type'] == 'application/json'
    assert other.get('/health').status_code == 200
    assert other.post('/tokenize', json={'content': 'a'}).status_code == 200
  thread.join()
  assert answers[0].status_code == 200
  assert 'reason="queue_full"} 3.0' in http.get('/metrics').text
  idle(http)


def test_openai_comes_back_after_a_503(server, http):
  idle(http)
  with openai.OpenAI(
    base_url=f'{server.url}/v1', api_key=OTHER_KEY, max_retries=4
  ) as client:
    with running(http):
      queued, _ = queue_up(http)
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
      wait_until(
        lambda: 'reason="queue_full"} 5.0' in http.get('/metrics').text
      )
    thread.join()
    queued.join()
  assert answers[0].object == 'text_completion'


def test_waiting_too_long_for_a_slot_is_a_503(http, other):
  """After three seconds: a connection may wait longer than a body may."""
  idle(http)
  with running(http):
    response = other.post('/', json={'prompt': 'a', 'max_tokens': 2})
  assert response.status_code == 503
  assert 'No slot was free' in response.json()['error']
  idle(http)


def test_a_request_takes_no_longer_than_it_may(http):
  idle(http)
  response = http.post(
    '/v1/completions', json={**FOREVER, 'stream': False}
  )
  assert response.status_code == 504
  assert response.json()['error']['code'] == 'timeout'
  with http.stream('POST', '/v1/completions', json=FOREVER) as response:
    lines = [line for line in response.iter_lines() if line]
  assert json.loads(lines[-1][6:])['error']['code'] == 'timeout'
  assert '[DONE]' not in ''.join(lines)
  idle(http)


def test_a_stream_that_is_not_read_in_time_ends_with_its_connection(
  http, server
):
  idle(http)
  body = json.dumps(FOREVER).encode()
  with socket.socket() as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(('127.0.0.1', server.port))
    sock.sendall(
      f'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {KEY}'
      f'\r\nContent-Length: {len(body)}\r\n\r\n'.encode() + body
    )
    wait_until(lambda: 'rgpt_slots_busy 1.0' in http.get('/metrics').text)
    wait_until(lambda: not server.has_connection(sock))
  server.wait_for('the stream is not read')
  assert not any('ASGI' in (line or '') for line in server.log)
  idle(http)


def test_one_client_may_not_have_everything(http, other, server):
  idle(http)
  sockets, refusals = [], []

  def refused():
    """Whether four bodies that do not come are all a client may send."""
    for _ in range(4):
      sock = socket.create_connection(('127.0.0.1', server.port), 30)
      sock.sendall(
        f'POST /tokenize HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {KEY}\r\n'
        'Content-Length: 9\r\n\r\n'.encode()
      )
      sockets.append(sock)
    response = http.get('/v1/models')
    if response.status_code == 429:
      refusals.append(response)
    return bool(refusals)

  wait_until(refused)
  response = refusals[0]
  assert response.headers['retry-after'] == '1'
  assert response.json()['error']['type'] == 'rate_limit_error'
  assert other.get('/v1/models').status_code == 200
  assert http.get('/health').status_code == 200
  for sock in sockets:
    sock.close()
  wait_until(lambda: http.get('/v1/models').status_code == 200)
