"""A server process: start, reload, signals, failures."""

import asyncio
import concurrent.futures
import contextlib
import json
import shutil
import signal
import socket
import threading
import types

import httpx
import jax
import numpy as np
import pytest

from serving.http.errors import translate
from serving.service import Service
from tests.support.serving_tools import (
  PATIENCE,
  ServerProcess,
  chat_tokenizer,
  make_random,
  serving,
  sse,
  wait_until,
)

FOREVER = {
  'prompt': 'a',
  'max_tokens': 10**6,
  'ignore_eos': True,
  'stream': True,
}
PATH = '/v1/completions'
# A server whose engine a certain message breaks.
BROKEN = """
import sys
from launch import cli, serve
from serving import prompts
from serving.engine import kernel_programs, programs
def breakable(kind):
  block = kind.block
  def fail(self, *args):
    if programs.Programs.broken:
      raise RuntimeError('boom: secret detail')
    return block(self, *args)
  kind.block = fail
programs.Programs.broken = False
breakable(programs.Programs)
breakable(kernel_programs.KernelPrograms)
chat_prompt = prompts.chat_prompt
def break_it(tokenizer, messages, *args):
  if messages[0]['content'] == 'break':
    programs.Programs.broken = True
  return chat_prompt(tokenizer, messages, *args)
prompts.chat_prompt = break_it
sys.argv[0] = 'serve'
cli.run(serve.main)
"""

# A server whose tokenizer hangs on a certain text.
STUCK = """
import os, sys, threading
from launch import cli, serve
from serving import prompts
encode = prompts.encode
def get_stuck(tokenizer, prompt):
  if prompt.startswith('stuck'):
    os.write(1, b'a worker is stuck\\n')
    threading.Event().wait()
  return encode(tokenizer, prompt)
prompts.encode = get_stuck
sys.argv[0] = 'serve'
cli.run(serve.main)
"""


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('process') / 'run'
  make_random(workdir, chat_tokenizer())
  return workdir


class Stream:
  """A streamed request on a thread; its events as they come."""

  def __init__(self, server, **fields):
    self.events = []
    self.begun, self._left = threading.Event(), threading.Event()
    self._thread = threading.Thread(
      target=self._read, args=(server, {**FOREVER, **fields})
    )
    self._thread.start()
    assert self.begun.wait(PATIENCE)

  def _read(self, server, body):
    with (
      server.client() as client,
      client.stream('POST', PATH, json=body) as response,
    ):
      for event in sse(response):
        self.events.append(event)
        self.begun.set()
        if self._left.is_set():
          return

  def leave(self):
    self._left.set()
    self.wait()

  def wait(self):
    self._thread.join(PATIENCE)
    assert not self._thread.is_alive()
    return self.events


def test_sigterm_lets_running_requests_finish_and_then_ends(workdir):
  with serving(workdir, '--drain_timeout=600') as server:
    long = Stream(server)
    short = Stream(server, max_tokens=3000)
    server.signal()
    with server.client() as client:
      wait_until(lambda: client.get('/health').status_code == 503)
      assert client.get('/health').json() == {'status': 'draining'}
      refused = client.post(PATH, json={'prompt': 'a'})
      assert refused.status_code == 503 and 'retry-after' in refused.headers
      assert client.get('/livez').status_code == 200
    events = short.wait()
    assert events[-1] == '[DONE]'
    text = ''.join(json.loads(e)['choices'][0]['text'] for e in events[:-1])
    assert len(text) == 3000
    long.leave()
    assert server.wait() == 0  # Nothing runs any more.


def test_a_closed_terminal_drains_and_what_outlasts_it_gets_an_error(workdir):
  with serving(workdir, '--drain_timeout=0.2') as server:
    long = Stream(server)
    for _ in range(2):  # A shell sends it once more to its jobs.
      server.signal(signal.SIGHUP)
    error = json.loads(long.wait()[-1])['error']
    assert error['code'] == 'draining'
    assert server.wait() == 0


def test_ctrl_c_ends_an_idle_server_at_once(workdir):
  with serving(workdir, '--drain_timeout=600') as server:
    counted = ('rgpt_rejected', 'rgpt_aborted', 'rgpt_request_success')
    assert not any(
      value
      for name, value in server.metrics().items()
      if name.startswith(counted)
    )
    server.signal(signal.SIGINT)
    assert server.wait() == 0
    with pytest.raises(httpx.ConnectError):
      httpx.get(f'{server.url}/livez', trust_env=False)


@pytest.mark.slow
def test_a_second_signal_exits_at_once(workdir):
  body = json.dumps(FOREVER).encode()
  with ServerProcess(workdir, '--drain_timeout=600') as server:
    server.wait_ready()
    address = '127.0.0.1', server.port
    with socket.create_connection(address, PATIENCE) as stream:
      stream.sendall(
        b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n'
        b'Content-Length: %d\r\n\r\n%s' % (len(body), body)
      )
      assert stream.recv(100).startswith(b'HTTP/1.1 200')
      server.signal()
      server.wait_for('SIGTERM')
      assert server.process.poll() is None
      server.signal()
      assert server.wait() == 1


def test_a_signal_while_loading_ends_it_too(workdir):
  with ServerProcess(workdir) as server:
    server.url = server.wait_for(r'on (http://\S+)')[1]
    with server.client() as client:
      health = client.get('/health')
      if health.status_code == 503:  # It may be ready already.
        assert health.json() == {'status': 'loading'}
        assert 'retry-after' in health.headers
        refused = client.post('/', json={'prompt': 'a'})
        assert refused.status_code in (200, 503)
    server.signal()
    assert server.wait() == 0


def test_a_broken_engine_answers_500_then_503_and_exits(workdir):
  with (
    ServerProcess(workdir, program=('-c', BROKEN)) as server,
    server.wait_ready().client() as client,
  ):
    assert client.post('/', json={'prompt': 'a'}).status_code == 200
    ask = {'messages': [{'role': 'user', 'content': 'break'}]}
    for _ in range(3):
      try:
        response = client.post('/v1/chat/completions', json=ask)
      except httpx.TransportError:
        break  # It has exited already.
      assert response.status_code in (500, 503)
      assert 'boom' not in response.text
      assert response.json()['error']['message']
      try:
        health = client.get('/health')
      except httpx.TransportError:
        break
      assert health.json()['status'] in ('ok', 'failed')
    assert server.wait() == 1
    assert any('secret detail' in (line or '') for line in server.log)


@contextlib.contextmanager
def stuck(workdir, *flags):
  """A server with three requests that its workers never finish.

  Yields the server and the futures of the answers.
  """

  def ask(prompt):
    with server.client() as client:
      return client.post(PATH, json={'prompt': prompt, 'max_tokens': 2})

  with (
    concurrent.futures.ThreadPoolExecutor(3) as pool,
    serving(workdir, *flags, program=('-c', STUCK)) as server,
  ):
    # Short prompts need no worker.
    asked = [pool.submit(ask, 'stuck' * 1000) for _ in range(2)]
    wait_until(lambda: server.log.count('a worker is stuck') == 2)
    yield server, [*asked, pool.submit(ask, 'a' * 1001)]


def test_requests_before_the_engine_time_out(workdir):
  flags = '--queue_timeout=2', '--request_timeout=4', '--drain_timeout=0.2'
  with stuck(workdir, *flags) as (server, asked):
    for future in asked:
      assert future.result().status_code == 503
      message = future.result().json()['error']['message']
      assert 'No slot was free' in message
    wait_until(server.is_idle)
    with server.client() as client:
      assert client.post('/tokenize', json={'content': ''}).status_code == 504


def test_requests_before_the_engine_are_drained(workdir):
  with stuck(workdir, '--drain_timeout=0.2') as (server, asked):
    wait_until(lambda: server.metrics()['rgpt_num_requests_waiting'] == 3)
    server.signal()
    codes = {future.result().json()['error']['code'] for future in asked}
    assert codes == {'draining'}
    assert server.wait() == 0


def test_requests_ended_by_a_drain_count_as_aborted_not_rejected():
  ended = []

  class Generation:
    def fail(self, error, cause):
      answer = translate(error)
      ended.append((answer.status, answer.code, answer.reason, cause))
      service.generations.clear()

  service = types.SimpleNamespace(
    engine=types.SimpleNamespace(close=lambda: ended.append('closed')),
    generations={'job': Generation()},
    options=types.SimpleNamespace(drain_timeout=0),
  )
  asyncio.run(Service.drain(service))
  assert ended == ['closed', (503, 'draining', None, 'shutdown')]


def newer(workdir, scale, step):
  """A better checkpoint of the same model, as training would leave it."""
  from gpt.runs.checkpoint import BEST
  from gpt.runs.checkpoint_writer import Checkpoints
  from gpt.runs.load import load_model
  from gpt.training.state import TrainState

  params = jax.tree.map(
    lambda x: np.asarray(x * scale), load_model(workdir).params
  )
  checkpoints = Checkpoints(workdir)
  checkpoints.save(
    BEST,
    TrainState(
      step=np.asarray(step, np.int32),
      params=params,
      opt_state={'m': np.zeros(1)},
      lr_scale=np.asarray(1, np.float32),
    ),
    {'best_loss': 1.5 - step / 1000},
  )
  assert checkpoints.wait()
  checkpoints.close()


def test_reload_swaps_weights_under_load_and_refuses_what_does_not_fit(
  workdir, tmp_path
):
  run = tmp_path / 'run'
  shutil.copytree(workdir, run)
  with serving(run) as server, server.client() as client:

    def ask(**fields):
      body = {'prompt': 'Hello', 'seed': 4, 'max_tokens': 40, **fields}
      return client.post(PATH, json=body).json()

    nothing = client.post('/reload').json()
    assert nothing['reloaded'] is False and nothing['status'] == 'ok'
    compiled = server.metrics()['rgpt_jit_compilations_total']
    old = ask(ignore_eos=True, max_tokens=5000, prompt='a')
    long = Stream(server, seed=4, max_tokens=5000)
    newer(run, 1.5, 100)
    answer = client.post('/reload').json()
    assert answer['reloaded'] is True and '100' in answer['reason']
    new = ask(ignore_eos=True, max_tokens=5000, prompt='a')
    assert new['choices'][0]['text'] != old['choices'][0]['text']
    assert new['system_fingerprint'] != old['system_fingerprint']
    events = [json.loads(e) for e in long.wait()[:-1]]
    text = ''.join(e['choices'][0]['text'] for e in events)
    assert text == old['choices'][0]['text']
    assert {e['system_fingerprint'] for e in events} == {
      old['system_fingerprint']
    }
    (card,) = client.get('/v1/models').json()['data']
    assert card['meta']['step'] == 100

    for file in (run / 'checkpoints').rglob('*'):
      if file.is_file():
        file.write_bytes(b'')
    broken = client.post('/reload').json()
    assert broken['status'] == 'error' and not broken['reloaded']
    assert 'cannot read' in broken['reason']
    again = ask(ignore_eos=True, max_tokens=5000, prompt='a')
    assert again['choices'] == new['choices']
    assert server.metrics()['rgpt_jit_compilations_total'] == compiled

    shutil.rmtree(run)
    make_random(run, chat_tokenizer(), n_layer=2)
    other = client.post('/reload').json()
    assert other['status'] == 'error' and not other['reloaded']
    assert 'restart' in other['reason']
    again = ask(ignore_eos=True, max_tokens=5000, prompt='a')
    assert again['choices'] == new['choices']
