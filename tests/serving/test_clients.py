"""Clients that disconnect, stall, crowd or fuzz leave nothing behind."""

import concurrent.futures
import json
import random
import socket
import threading

import pytest

from tests.support.serving_tools import (
  COMPLETIONS,
  PATIENCE,
  receive,
  request_bytes,
  wait_until,
)

FOREVER = {'prompt': 'a', 'max_tokens': 10**6, 'ignore_eos': True}


def connect(server, buffer=None):
  sock = socket.socket()
  sock.settimeout(PATIENCE)
  if buffer:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
  sock.connect(('127.0.0.1', server.port))
  return sock


def ask(server, **fields):
  body = {'prompt': 'Hello', 'max_tokens': 3, 'seed': 1, **fields}
  with server.client() as client:
    response = client.post(COMPLETIONS, json=body)
  assert response.status_code == 200, response.text
  return response.json()['choices'][0]['text']


@pytest.fixture(autouse=True)
def nothing_stays_behind(server):
  """Before and after each test the server is idle, and it answers after it."""
  wait_until(server.is_idle)
  compiled = server.metrics()['rgpt_jit_compilations_total']
  yield
  wait_until(server.is_idle)
  assert len(ask(server, ignore_eos=True)) == 3
  assert server.metrics()['rgpt_jit_compilations_total'] == compiled


def slots_busy(server):
  return server.metrics()['rgpt_slots_busy']


@pytest.mark.parametrize('stream', [False, True])
def test_a_client_that_leaves_while_decoding_frees_its_slots(server, stream):
  before = server.metrics()['rgpt_aborted_total{cause="disconnect"}']
  with connect(server) as sock:
    sock.sendall(request_bytes({**FOREVER, 'stream': stream, 'n': 3}))
    wait_until(lambda: slots_busy(server) == 3)
  aborted = 'rgpt_aborted_total{cause="disconnect"}'
  wait_until(lambda: server.metrics()[aborted] > before)
  wait_until(server.is_idle)
  assert server.metrics()[aborted] - before == 1


def test_clients_that_leave_while_queued(server):
  holders = [connect(server) for _ in range(4)]
  for sock in holders:
    sock.sendall(request_bytes(FOREVER))
  wait_until(lambda: slots_busy(server) == 4)
  queued = [connect(server) for _ in range(10)]
  for i, sock in enumerate(queued):
    sock.sendall(request_bytes({**FOREVER, 'stream': bool(i % 2)}))
  wait_until(lambda: server.metrics()['rgpt_num_requests_waiting'] == 10)
  for sock in queued:
    sock.close()
  wait_until(lambda: server.metrics()['rgpt_num_requests_waiting'] == 0)
  assert slots_busy(server) == 4
  for sock in holders:
    sock.close()


@pytest.mark.parametrize('rest', [b'GET /livez HTTP/1.1\r\n', b'x' * 70_000])
@pytest.mark.parametrize('stream', [False, True])
def test_a_disconnect_is_noticed_behind_unread_data(server, stream, rest):
  with connect(server) as sock:
    sock.sendall(request_bytes({**FOREVER, 'stream': stream}))
    wait_until(lambda: slots_busy(server) == 1)
    sock.sendall(rest)
  wait_until(server.is_idle)


def test_more_than_a_request_ahead_of_an_answer_ends_the_connection(server):
  with connect(server) as sock:
    sock.sendall(request_bytes(FOREVER))
    wait_until(lambda: slots_busy(server) == 1)
    with pytest.raises(ConnectionError):
      for _ in range(1000):
        sock.sendall(b'x' * (64 << 10))
    wait_until(lambda: not server.has_connection(sock))
  wait_until(server.is_idle)


def test_requests_read_ahead_of_an_answer_are_answered_in_order(server):
  with connect(server) as sock:
    sock.sendall(
      request_bytes({'prompt': 'a', 'max_tokens': 20_000, 'ignore_eos': True})
    )
    wait_until(lambda: slots_busy(server) == 1)
    for text in ('ab', 'c', ''):
      sock.sendall(request_bytes({'content': text}, '/tokenize'))
    data = b''
    while data.count(b'"tokens":[') < 3:
      data += receive(sock)
  _, *answers = data.split(b'HTTP/1.1 200 OK')
  bodies = [json.loads(part.split(b'\r\n\r\n')[1]) for part in answers]
  assert 'choices' in bodies[0]
  assert [len(body['tokens']) for body in bodies[1:]] == [2, 1, 0]


def test_malformed_http_gets_a_400_or_no_answer(server):
  good = request_bytes({'prompt': 'a', 'max_tokens': 2})
  for data in (
    good[:20],
    good[:-5],
    b'GET / HTTP/1.1\r\n\r\n',
    b'\0' * 100,
    b'POST / HTTP/9.9\r\n\r\n',
    b'GET /health HTTP/1.0\r\n\r\n',
    b'POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n',
    b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n'
    b'Transfer-Encoding: chunked\r\n\r\nzz\r\n',
    b'POST /nothing HTTP/1.1\r\nHost: localhost\r\n'
    b'Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n',
  ):
    with connect(server) as sock:
      sock.sendall(data)
      sock.shutdown(socket.SHUT_WR)
      answer = b''
      while piece := sock.recv(4096):
        answer += piece
      assert not answer or answer.startswith(b'HTTP/1.1 '), answer
      head, _, body = answer.partition(b'\r\n\r\n')
      assert b' 500 ' not in head.split(b'\r\n')[0]
      if b' 400 ' in head.split(b'\r\n')[0]:
        assert b'x-request-id' in head
        start, end = body.index(b'{'), body.rindex(b'}') + 1
        error = json.loads(body[start:end])['error']
        if not data.startswith(b'POST / '):  # RandyGPT's errors are text.
          assert error['type'] == 'invalid_request_error'


def test_offers_to_upgrade_are_ignored(server):
  with server.client() as client:
    for protocol in ('websocket', 'h2c'):
      headers = {'connection': 'Upgrade', 'upgrade': protocol}
      response = client.get('/health', headers=headers)
      assert response.json() == {'status': 'ok'}
  assert not [line for line in server.log if 'pgrade' in line]


def test_sixty_four_clients_each_get_the_text_they_get_alone(server):
  """All are served, each with the text it gets alone, streaming or not."""
  alone = {seed: ask(server, seed=seed, max_tokens=40) for seed in range(8)}
  start = threading.Barrier(64, timeout=PATIENCE)

  def one(i):
    body = {
      'prompt': 'Hello',
      'seed': i % 8,
      'max_tokens': 40,
      'stream': i % 2 == 0,
    }
    with server.client() as client:
      start.wait()
      response = client.post(COMPLETIONS, json=body)
    assert response.status_code == 200, response.text
    if not body['stream']:
      return response.json()['choices'][0]['text']
    lines = [line[6:] for line in response.text.split('\n') if line]
    assert lines.pop() == '[DONE]'
    return ''.join(json.loads(x)['choices'][0]['text'] for x in lines)

  with concurrent.futures.ThreadPoolExecutor(64) as pool:
    texts = list(pool.map(one, range(64)))
  assert texts == [alone[i % 8] for i in range(64)]


def abort_at_random(server, rng):
  """Sends one request and aborts it at a random moment."""
  body = {
    'prompt': 'x' * rng.choice([0, 1, 31, 32, 33, 3000]),
    'max_tokens': rng.choice([1, 5, 100, 10**6]),
    'ignore_eos': rng.random() < 0.5,
    'stream': rng.random() < 0.5,
    'n': rng.choice([1, 1, 3, 8]),
    'echo': rng.random() < 0.2,
    'context_overflow': rng.choice(['slide', 'slide', 'exact', 'stop']),
  }
  if rng.random() < 0.3:
    body |= {'logprobs': 2, 'max_tokens': min(body['max_tokens'], 100)}
  data = request_bytes(body)
  with connect(server) as sock:
    if rng.random() < 0.2:
      sock.sendall(data[: rng.randrange(len(data))])
      return
    sock.sendall(data)
    sock.settimeout(rng.choice([0.0001, 0.001, 0.01, 0.05]))
    try:
      for _ in range(rng.randrange(4)):
        sock.recv(rng.choice([1, 1000, 100_000]))
    except TimeoutError:
      pass
    if rng.random() < 0.3:  # A reset instead of an orderly end.
      sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')


def aborts(server, count):
  def some(seed):
    rng = random.Random(seed)
    for _ in range(count // 16):
      abort_at_random(server, rng)

  with concurrent.futures.ThreadPoolExecutor(16) as pool:
    list(pool.map(some, range(16)))


def test_aborts_leave_nothing_behind(server):
  aborts(server, 160)


@pytest.mark.slow
def test_a_thousand_aborts_leave_nothing_behind(server):
  aborts(server, 1008)
