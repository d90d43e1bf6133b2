"""A real server process and tiny models for it."""

import contextlib
import json
import os
import re
import signal
import string
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import psutil

from gpt.tokenizers import build_tokenizer
from tests.support.workdirs import ROOT, STRICT, make_run

CHAT_TOKENS = ('<|user|>', '<|assistant|>', '<|end_turn|>')
LETTERS = string.ascii_letters + string.digits + ' .,:;!?\n'
READY_SECONDS = 250
PATIENCE = 120  # Seconds after which something is broken, not slow.
COMPLETIONS = '/v1/completions'
KEY, OTHER_KEY = 'first-key', 'second key'


def chat_tokenizer():
  return build_tokenizer('char', [LETTERS], 0, CHAT_TOKENS)


def make_random(workdir, tokenizer, seed=0, spread=0.15, **model):
  """A run with random weights; a larger `spread` makes it more certain."""
  rng = np.random.default_rng(seed)

  def fill(name, shape):
    scale = spread if name == 'lm_head' else 0.3
    return rng.normal(size=shape) * scale

  defaults = {'n_embd': 32, 'n_head': 4, 'n_layer': 1, 'block_size': 32}
  return make_run(workdir, tokenizer, fill, **{**defaults, **model})


class ServerProcess:
  """`python -m launch.serve` on a free port; warnings are errors.

  As a context manager it kills the process on exit, whatever happens.

  Args:
    workdir: to serve; None: `flags` name the model. flags: more arguments.
    env: more environment. program: instead of `-m launch.serve`.
    ready_seconds: how long its start may take.
  """

  def __init__(
    self,
    workdir,
    *flags,
    env=None,
    program=('-m', 'launch.serve'),
    ready_seconds=READY_SECONDS,
  ):
    self.log, self._ready_seconds = [], ready_seconds
    self._line = threading.Condition()
    self.process = subprocess.Popen(
      [
        sys.executable,
        *STRICT,
        *program,
        *([f'--workdir={workdir}'] if workdir else []),
        '--port=0',
        *flags,
      ],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      env={**os.environ, **(env or {})},
    )
    threading.Thread(target=self._read, daemon=True).start()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self.process.poll() is None:
      self.process.kill()
    self.process.wait()

  def _read(self):
    with self.process.stdout as lines:
      for line in lines:
        with self._line:
          self.log.append(line.rstrip('\n'))
          self._line.notify_all()
    with self._line:
      self.log.append(None)
      self._line.notify_all()

  def wait_for(self, pattern, seconds=READY_SECONDS):
    """The first match of a regular expression in the log."""

    def match():
      found = (re.search(pattern, line) for line in self.log if line)
      return next((m for m in found if m), None)

    with self._line:
      self._line.wait_for(
        lambda: match() or (self.log and self.log[-1] is None), seconds
      )
      assert match(), f'no {pattern!r} in:\n' + '\n'.join(map(str, self.log))
      return match()

  def wait_ready(self):
    self.url = self.wait_for(r'on (http://\S+)', self._ready_seconds)[1]
    self.port = int(self.url.rpartition(':')[2])
    self.wait_for('ready:', self._ready_seconds)
    return self

  def client(self, **kwargs):
    kwargs.setdefault('timeout', PATIENCE)
    return httpx.Client(
      base_url=self.url, trust_env=False, verify=False, **kwargs
    )

  def metrics(self, **kwargs) -> dict:
    """All samples of /metrics: 'name{labels}' -> value."""
    with self.client(**kwargs) as client:
      return parse_metrics(client.get('/metrics').text)

  def is_idle(self) -> bool:
    """Nothing runs, waits or holds a slot."""
    with self.client() as client:
      return is_idle(client)

  def has_connection(self, sock) -> bool:
    """Whether the process keeps its end of a client's socket."""
    port = sock.getsockname()[1]
    connections = psutil.Process(self.process.pid).net_connections('tcp')
    return any(c.raddr and c.raddr.port == port for c in connections)

  def signal(self, number=signal.SIGTERM):
    self.process.send_signal(number)

  def wait(self, seconds=PATIENCE) -> int:
    """The exit code, once all output has been read."""
    code = self.process.wait(seconds)
    with self._line:
      assert self._line.wait_for(lambda: self.log[-1:] == [None], seconds)
    return code

  def stop(self) -> int:
    if self.process.poll() is None:
      self.signal()
    try:
      return self.wait()
    except subprocess.TimeoutExpired:
      self.process.kill()
      raise


def parse_metrics(text: str) -> dict:
  lines = (x for x in text.splitlines() if x and not x.startswith('#'))
  return {
    name: float(value) for name, _, value in (x.rpartition(' ') for x in lines)
  }


@contextlib.contextmanager
def serving(workdir, *flags, **kwargs):
  """A ready ServerProcess, which must end with 0 and without a traceback."""
  with ServerProcess(workdir, *flags, **kwargs) as server:
    server.wait_ready()
    yield server
    server.code = server.stop()
    text = '\n'.join(map(str, server.log))
    assert server.code == 0 and 'Traceback' not in text, text


def request_bytes(body: dict, path: str = COMPLETIONS) -> bytes:
  """A whole request, with KEY."""
  data = json.dumps(body).encode()
  head = (
    f'POST {path} HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {KEY}\r\n'
    f'Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n'
  )
  return head.encode() + data


def is_idle(http) -> bool:
  """Nothing runs, waits or holds a slot."""
  names = ('num_requests_running', 'num_requests_waiting', 'slots_busy')
  metrics = parse_metrics(http.get('/metrics').text)
  return not any(metrics[f'rgpt_{name}'] for name in names)


def keyed_serving(path, *flags, **kwargs):
  """Serves a small chat model; keys: KEY, OTHER_KEY and 'schlüssel'.

  Args:
    kwargs: of ServerProcess.
  """
  make_random(path / 'run', chat_tokenizer())
  # As a Windows editor writes it.
  (path / 'keys').write_text(f'\ufeff{OTHER_KEY}\r\n', encoding='utf-8')
  return serving(
    path / 'run',
    *flags,
    f'--api_key_file={path}/keys',
    env={'RGPT_API_KEY': f'{KEY}, schlüssel'},
    **kwargs,
  )


def keyed_client(server):
  """For a fixture `http`: a client that has KEY."""
  with server.client(headers={'authorization': f'Bearer {KEY}'}) as client:
    yield client


def wait_until(condition, seconds=PATIENCE):
  """Polls a condition that another process will soon make true."""
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline, 'it did not happen'
    time.sleep(0.005)


def receive(sock, size=1 << 16) -> bytes:
  """The bytes that have arrived; fails if the connection has ended."""
  data = sock.recv(size)
  assert data, 'the connection has ended'
  return data


def sse(response):
  """The data of each event of a streamed response."""
  for line in response.iter_lines():
    if line:
      assert line.startswith('data: '), line
      yield line[len('data: ') :]
