"""Clients that would jam a server: unread streams and endless ones."""

import contextlib
import json
import socket
import threading
import time

import psutil
import pytest

from tests.support.serving_tools import (
  COMPLETIONS,
  PATIENCE,
  chat_tokenizer,
  make_random,
  receive,
  request_bytes,
  serving,
  wait_until,
)

READ_TIMEOUT = 3  # Seconds that a reader may pause.
FLAGS = (
  '--slots=2',
  '--max_queue=40',
  f'--read_timeout={READ_TIMEOUT}',
  '--max_tokens_limit=900000',
  '--drain_timeout=0.5',
)
ENDLESS = {
  'prompt': 'a',
  'max_tokens': 900_000,
  'ignore_eos': True,
  'stream': True,
}


@pytest.fixture(scope='module')
def server(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('attacked') / 'run'
  make_random(workdir, chat_tokenizer())
  with serving(workdir, *FLAGS) as server:
    yield server
  assert not any('hangs' in (line or '') for line in server.log)


@contextlib.contextmanager
def streams(server, n, **fields):
  """n sockets that each begin to receive a stream, and then read no more."""
  with contextlib.ExitStack() as stack:
    socks = []
    for i in range(n):
      sock = stack.enter_context(socket.socket())
      sock.settimeout(PATIENCE)
      sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
      sock.connect(('127.0.0.1', server.port))
      sock.sendall(request_bytes({**ENDLESS, 'seed': i, **fields}))
      socks.append(sock)
    for sock in socks:
      assert receive(sock, 1)
    yield socks


def read_on(socks):
  """Threads that read the streams to their ends, however long."""

  def one(sock):
    with contextlib.suppress(OSError):
      while sock.recv(1 << 16):
        pass

  threads = [threading.Thread(target=one, args=(sock,)) for sock in socks]
  for thread in threads:
    thread.start()
  return threads


def ask(server, **fields):
  body = {'prompt': 'Hello', 'max_tokens': 30, 'seed': 1, **fields}
  with server.client() as client:
    response = client.post(COMPLETIONS, json=body)
  assert response.status_code == 200, response.text
  return response.json()['choices'][0]['text']


def slow_readers(server):
  return server.metrics()['rgpt_aborted_total{cause="slow_reader"}']


def test_streams_that_nobody_reads_end_and_take_little_memory(server):
  """Sixteen of them, with log-probabilities, took a gigabyte in 70 s."""
  alone = ask(server)
  before, process = slow_readers(server), psutil.Process(server.process.pid)
  size = process.memory_info().rss
  with streams(server, 16, logprobs=20) as socks:
    for _ in range(5):
      assert ask(server) == alone
    wait_until(lambda: slow_readers(server) == before + 16)
    wait_until(server.is_idle)
    assert process.memory_info().rss - size < 60 << 20
    # Far fewer tokens were computed than the streams would have had.
    wait_until(lambda: not any(map(server.has_connection, socks)))


def test_a_reader_that_pauses_gets_the_whole_text(server):
  fields = {'logprobs': 5, 'max_tokens': 3000, 'seed': 9}
  with server.client() as client:
    body = {**ENDLESS, **fields}
    with client.stream('POST', COMPLETIONS, json=body) as response:
      lines = [line for line in response.iter_lines() if line]
  wanted = [token for line in lines[:-1] for token in tokens_of(line)]
  assert len(wanted) == 3000
  for _ in range(20):
    data = b''
    with streams(server, 1, **fields) as (sock,):
      began = time.monotonic()
      while (paused := time.monotonic() - began) < READ_TIMEOUT / 3:
        ask(server)
      if paused < READ_TIMEOUT - 1:  # Else the machine is busy: once more.
        while b'[DONE]' not in data[-100:]:
          data += receive(sock)
        break
  events = [x for x in data.decode().split('\n') if x.startswith('data: {')]
  found = [token for line in events for token in tokens_of(line)]
  # The first event was cut by the byte that told that it had begun.
  assert found[-2000:] == wanted[-2000:]


def tokens_of(line):
  logprobs = json.loads(line[len('data: ') :])['choices'][0]['logprobs']
  return logprobs['tokens'] if logprobs else []


def test_endless_streams_on_all_slots_let_others_through(server):
  alone = ask(server)
  with contextlib.ExitStack() as stack:
    socks, threads = [], []
    for i in range(8):  # Each is read from its first byte on.
      (sock,) = stack.enter_context(streams(server, 1, seed=i))
      socks.append(sock)
      threads += read_on([sock])
    for _ in range(5):
      assert ask(server) == alone
    wait_until(lambda: server.metrics()['rgpt_num_requests_waiting'] == 6)
    assert server.metrics()['rgpt_preemptions_total'] > 0
    for sock in socks:
      sock.shutdown(socket.SHUT_RDWR)
    for thread in threads:
      thread.join(PATIENCE)
  wait_until(server.is_idle)


@pytest.mark.parametrize('name', ['max_tokens', 'max_completion_tokens'])
def test_more_tokens_than_the_limit_are_refused_by_name(server, name):
  with server.client() as client:
    response = client.post(
      COMPLETIONS, json={'prompt': 'a', 'max_tokens': 5, name: 900_001}
    )
    assert response.status_code == 400
    error = response.json()['error']
    assert error['param'] == name and '900000' in error['message']


def test_the_limit_bounds_defaults_too(server):
  with server.client() as client:
    response = client.post('/microgpt/v1/generate', json={})
    assert response.status_code == 200


def test_a_conversation_reports_what_its_next_turn_reused(server):
  turns = [{'role': 'user', 'content': 'Once upon a time'}]
  body = {'max_tokens': 4, 'temperature': 0, 'messages': turns}
  path = '/v1/chat/completions'
  with server.client() as client:
    client.post(path, json=body)
    usage = client.post(path, json=body).json()['usage']
  cached = usage['prompt_tokens'] - 1  # The last one chooses the next.
  assert usage['prompt_tokens_details'] == {'cached_tokens': cached}
  metrics = server.metrics()
  assert metrics['rgpt_prefix_cache_hits_total'] >= cached
  assert metrics['rgpt_prefix_cache_bytes'] > 0


def test_a_server_full_of_unread_streams_leaves_after_sigterm(server):
  """By itself, before the watchdog ends what hangs. The last test here."""
  with streams(server, 6, logprobs=20):
    server.signal()
    assert server.wait() == 0
