"""Server processes to measure: ours, another revision's, and llama.cpp's."""

import http.client
import importlib.util
import io
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence

from gpt import devices
from gpt.errors import UserError
from launch.bench.peers.llama_cpp import find_binary

ROOT = pathlib.Path(__file__).parents[2]
READY_SECONDS = 1800.0


class Server:
  """A server process; the constructor returns once it is ready.

  Args:
    command: of the process. cwd, env: its folder and more environment.
    port: it will listen on; 0: the last number of its first line.

  Attributes:
    start_s, start_cpu_s: wall and CPU seconds until it was ready.

  Raises:
    UserError: the process ended instead; with its output.
  """

  def __init__(
    self,
    command: Sequence[str],
    cwd: pathlib.Path = ROOT,
    env: dict[str, str] | None = None,
    port: int = 0,
  ):
    began = time.perf_counter()
    self._log = tempfile.TemporaryFile()
    try:
      self._process = subprocess.Popen(
        command,
        cwd=cwd,
        stdout=subprocess.PIPE if not port else self._log,
        stderr=self._log,
        text=True,
        env={**os.environ, **(env or {})},
      )
    except OSError as e:
      raise UserError(f'{command[0]} does not start: {e}') from e
    try:
      self.port = port or self._read_port()
      while not self._is_ready():
        if time.perf_counter() - began > READY_SECONDS:
          raise UserError(f'{command[0]}: not ready in {READY_SECONDS:.0f} s')
        time.sleep(0.02)
    except BaseException:
      self._process.kill()
      raise
    self.start_s = time.perf_counter() - began
    self.start_cpu_s = self.cpu_s()

  def _read_port(self) -> int:
    found = re.search(r':(\d+)$', self._process.stdout.readline().strip())
    if not found:
      self._process.wait()
      raise self._ended()
    return int(found[1])

  def _ended(self) -> UserError:
    return UserError(f'no server:\n{self.output()[-4000:]}')

  def output(self) -> str:
    """All it has logged so far."""
    self._log.seek(0)
    return self._log.read().decode(errors='replace')

  def _get(self, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=60)
    try:
      connection.request('GET', path)
      response = connection.getresponse()
      return response.status, response.read().decode()
    finally:
      connection.close()

  def _is_ready(self) -> bool:
    if self._process.poll() is not None:
      raise self._ended()
    try:
      return self._get('/health')[0] == 200
    except OSError:  # It does not listen yet, or is too busy compiling.
      return False

  def cpu_s(self) -> float:
    """CPU seconds of the process so far."""
    import psutil

    times = psutil.Process(self._process.pid).cpu_times()
    return times.user + times.system

  def rss_mb(self) -> float:
    """Resident memory of the process, MB (10^6 bytes)."""
    import psutil

    return psutil.Process(self._process.pid).memory_info().rss / 1e6

  def metrics(self) -> dict[str, float]:
    """The samples of /metrics, of our own servers."""
    text = self._get('/metrics')[1]
    rows = (x.rpartition(' ') for x in text.splitlines() if x[:1] != '#')
    return {name: float(value) for name, _, value in rows}

  def stop(self) -> int:
    """Ends it; the exit code."""
    self._process.send_signal(signal.SIGTERM)
    if self._process.stdout:
      self._process.stdout.close()
    code = self._process.wait(60)
    self._log.close()
    return code


def ours(
  workdir: pathlib.Path,
  cache: str | pathlib.Path,
  *flags: str,
  root: pathlib.Path = ROOT,
) -> Server:
  """launch.serve of the code in `root`, with `cache` for what it compiles."""
  command = [sys.executable, '-m', 'launch.serve']
  command += [f'--workdir={workdir.resolve()}', '--port=0', *flags]
  env = {'RGPT_CACHE': str(cache), 'PYTHONPATH': str(root)}
  return Server(command, root, env)


def llama_cpp(gguf: pathlib.Path, slots: int, window: int) -> Server:
  """llama.cpp's server: the binary of LLAMA_CPP, else llama-cpp-python's.

  The latter answers one request after the other.

  Args:
    window: columns of each slot's cache.

  Raises:
    ImportError: neither is there.
  """
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  threads = str(devices.num_cores())
  if binary := find_binary('llama-server'):
    command = [binary, '-m', str(gguf), '-t', threads, '-tb', threads]
    command += ['-np', str(slots), '-c', str(window * slots)]
    command += ['--host', '127.0.0.1', '--port', str(port)]
    return Server(command, port=port)
  for name in ('llama_cpp', 'fastapi', 'sse_starlette', 'pydantic_settings'):
    if importlib.util.find_spec(name) is None:
      raise ImportError(
        f'no {name}: set LLAMA_CPP to a llama-server binary, or '
        "pip install 'llama-cpp-python[server]'"
      )
  command = [sys.executable, '-m', 'llama_cpp.server', '--model', str(gguf)]
  command += ['--n_ctx', str(window), '--n_threads', threads]
  # A new request would otherwise end the one before.
  command += ['--port', str(port), '--interrupt_requests', 'false']
  return LlamaCppPython(command, port=port)


class LlamaCppPython(Server):
  """llama-cpp-python's server, which has no /health."""

  def _is_ready(self) -> bool:
    if self._process.poll() is not None:
      raise self._ended()
    try:
      return self._get('/v1/models')[0] == 200
    except OSError:
      return False


def checkout(revision: str, folder: str | pathlib.Path) -> pathlib.Path:
  """The files of a git revision of this repository, unpacked into `folder`."""
  command = ['git', '-C', str(ROOT), 'archive', '--format=tar', revision]
  try:
    done = subprocess.run(command, capture_output=True, check=True)
  except (OSError, subprocess.CalledProcessError) as e:
    detail = getattr(e, 'stderr', b'').decode().strip() or str(e)
    raise UserError(
      f'--before={revision} cannot be checked out: {detail}'
    ) from e
  with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
    tar.extractall(folder, filter='data')
  return pathlib.Path(folder)
