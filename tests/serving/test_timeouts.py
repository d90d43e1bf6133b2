"""Timeouts, on a server with short ones, and connections that it closes."""

import contextlib
import json
import socket

import pytest

from tests.support.serving_tools import (
  KEY,
  PATIENCE,
  is_idle,
  keyed_client,
  keyed_serving,
  receive,
  request_bytes,
  wait_until,
)

HASTY = (
  '--slots=1',
  '--body_timeout=1',
  '--queue_timeout=1',
  '--request_timeout=5',
)
# A server whose requests keep their slots, so that others wait for long.
STUBBORN = """
import sys
from launch import cli, serve
from serving.engine import scheduler
scheduler.FIRST_SLICE = 1e9
sys.argv[0] = 'serve'
cli.run(serve.main)
"""
FOREVER = {
  'prompt': 'a',
  'max_tokens': 10**6,
  'ignore_eos': True,
  'stream': True,
}


@pytest.fixture(scope='module')
def server(tmp_path_factory):
  path = tmp_path_factory.mktemp('timeouts')
  with keyed_serving(path, *HASTY, program=('-c', STUBBORN)) as server:
    yield server


http = pytest.fixture(keyed_client, scope='module')


@pytest.fixture(autouse=True)
def idle_around(http):
  wait_until(lambda: is_idle(http))
  yield
  wait_until(lambda: is_idle(http))


def test_a_body_that_never_ends_or_never_comes(server):
  head = (
    f'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n'
    f'Authorization: Bearer {KEY}\r\n'
  )
  for rest in (
    'Content-Length: 50\r\n\r\n{"pro',
    'Transfer-Encoding: chunked\r\n\r\n5\r\n{"pro\r\n',
  ):
    with socket.create_connection(('127.0.0.1', server.port), PATIENCE) as sock:
      sock.sendall((head + rest).encode())
      answer = sock.makefile('rb').read()
    assert b' 408 ' in answer.split(b'\r\n')[0]
    assert b'did not arrive' in answer


@pytest.mark.parametrize(
  'sent',
  [
    b'',
    b'GET /livez HT',
    b'GET /livez HTTP/1.1\r\nHost: localhost\r\n',
    b'GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\nGET',
    b'POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{',
  ],
)
def test_a_head_that_never_comes_ends_the_connection(server, sent):
  with socket.create_connection(('127.0.0.1', server.port), PATIENCE) as sock:
    sock.sendall(sent)
    if b'\r\n\r\n' in sent:  # What follows it begins no other.
      assert sock.recv(1000).startswith(b'HTTP/1.1 ')
    with contextlib.suppress(ConnectionError):  # A reset is an end, too.
      if b'\r\n\r\n' in sent:
        sock.sendall(b' ')
      while sock.recv(1000):
        pass


def test_waiting_too_long_for_a_slot_is_a_503(http, server):
  """After a second: a connection may wait longer than a body may."""
  body = {**FOREVER, 'stream': False}
  for _ in range(20):
    with socket.create_connection(('127.0.0.1', server.port), PATIENCE) as sock:
      sock.sendall(request_bytes(body))
      wait_until(lambda: 'rgpt_slots_busy 1.0' in http.get('/metrics').text)
      response = http.post('/', json={'prompt': 'a', 'max_tokens': 2})
    if response.status_code != 200:
      break  # Else a busy machine let the first one time out before.
  assert response.status_code == 503
  assert 'No slot was free' in response.json()['error']
  assert 1 <= int(response.headers['retry-after']) <= 60


def test_a_request_times_out(http):
  response = http.post('/v1/completions', json={**FOREVER, 'stream': False})
  assert response.status_code == 504
  assert response.json()['error']['code'] == 'timeout'
  with http.stream('POST', '/v1/completions', json=FOREVER) as response:
    lines = [line for line in response.iter_lines() if line]
  assert json.loads(lines[-1][6:])['error']['code'] == 'timeout'
  assert '[DONE]' not in ''.join(lines)


def test_a_stream_that_is_not_read_in_time_ends_with_its_connection(server):
  with socket.socket() as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(PATIENCE)
    sock.connect(('127.0.0.1', server.port))
    # Log-probabilities fill the buffers however slow the machine is.
    sock.sendall(request_bytes({**FOREVER, 'logprobs': 20}))
    assert receive(sock, 1)
    wait_until(lambda: not server.has_connection(sock))
  server.wait_for('the stream is not read')
  assert not any('ASGI' in (line or '') for line in server.log)


def test_the_kernel_closes_connections_of_stalled_readers():
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


def test_a_head_may_arrive_in_pieces(server):
  head = b'GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n'
  with socket.create_connection(('127.0.0.1', server.port), PATIENCE) as sock:
    for _ in range(2):
      for piece in (head[:9], head[9:]):
        sock.sendall(piece)
      answer = b''  # Head and body may come apart.
      while not answer.endswith(b'{"status":"ok"}'):
        answer += receive(sock)
      assert answer.startswith(b'HTTP/1.1 200 ')
