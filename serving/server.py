"""The server process: socket, signals, uvicorn, exit code."""

import asyncio
import contextlib
import errno
import functools
import logging
import os
import signal
import socket
import sys
import threading
from typing import Any, NoReturn

import uvicorn

from gpt.errors import UserError
from gpt.runs.load import LoadedModel
from serving.http.app import create_app
from serving.http.protocol import HEAD_BYTES, Protocol
from serving.options import Options
from serving.service import Service

log = logging.getLogger('rgpt.serve')

FAILED_EXIT, FORCED_EXIT = 1, 1
SEND_BUFFER = 64 << 10
LEAVE_SECONDS = 1.5  # for all that follows drain_timeout
STALLED_SECONDS = 120  # unacknowledged data after which a connection ends


def bind(host: str, port: int) -> socket.socket:
  """A listening socket. Raises UserError if it cannot be opened."""
  try:
    family, kind, protocol, _, address = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    if os.name == 'posix':
      sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Bounds what the kernel holds for each reader that stalls.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    if hasattr(socket, 'TCP_USER_TIMEOUT'):  # Linux; connections inherit it.
      sock.setsockopt(
        socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_SECONDS * 1000
      )
    sock.bind(address)
    sock.listen(2048)
  except UnicodeError as e:  # From encoding the name; not an OSError.
    raise UserError(f'--host={host} is not a valid host name') from e
  except OverflowError as e:
    raise UserError(f'--port={port} is not a port: 0 to 65535') from e
  except OSError as e:
    if e.errno == errno.EADDRINUSE:
      raise UserError(
        f'port {port} on {host} is in use: stop what listens there or choose '
        'another --port'
      ) from e
    raise UserError(f'cannot listen on {host} port {port}: {e}') from e
  return sock


class Server(uvicorn.Server):
  """uvicorn, but signals drain the service before anything is closed.

  The first SIGTERM, Ctrl-C or SIGHUP (a closed terminal) drains. A second
  SIGTERM or Ctrl-C leaves at once; further SIGHUPs are ignored, as shells and
  service managers send them along with other signals.

  Attributes:
    code: exit code of the process.
  """

  def __init__(self, config: uvicorn.Config, service: Service) -> None:
    super().__init__(config)
    self.code = 0
    self._service = service
    self._loop: asyncio.AbstractEventLoop | None = None
    self._draining: int | None = None

  async def startup(self, sockets: list[socket.socket] | None = None) -> None:
    self._loop = asyncio.get_running_loop()
    hang_up = getattr(signal, 'SIGHUP', None)
    # Under nohup it stays ignored.
    if hang_up and signal.getsignal(hang_up) != signal.SIG_IGN:
      signal.signal(hang_up, self.handle_exit)
    await super().startup(sockets)
    self._service.start()

  def handle_exit(self, sig: int, frame: Any) -> None:
    if self._loop is None:  # Nothing runs yet.
      os._exit(128 + sig)
    if self._draining is None:
      self._draining = sig
      self._loop.call_soon_threadsafe(self._begin_drain, self._loop)
    elif sig != getattr(signal, 'SIGHUP', None):
      os._exit(FORCED_EXIT)

  def _begin_drain(self, loop: asyncio.AbstractEventLoop) -> None:
    name = signal.Signals(self._draining or 0).name
    log.info('%s: finishing running requests', name)
    self._drain_task = loop.create_task(self._drain())

    # Whatever hangs: a service manager would kill the process a little later.
    seconds = self._service.options.drain_timeout + LEAVE_SECONDS
    watchdog = threading.Timer(seconds, self._leave)
    watchdog.daemon = True
    watchdog.start()

  def _leave(self) -> None:
    log.warning('something hangs: the process ends all the same')
    leave(self.code)

  async def _drain(self) -> None:
    await self._service.drain()
    self.should_exit = True

  def die(self, error: BaseException) -> None:
    """Logs why the engine has failed and ends the process soon.

    Until then requests get 503.
    """
    if isinstance(error, UserError):
      log.critical('%s', error)
    else:
      log.critical('the engine has failed', exc_info=error)
    self.code = FAILED_EXIT
    loop = asyncio.get_running_loop()
    loop.call_later(0.5, setattr, self, 'should_exit', True)


def serve(
  loaded: LoadedModel,
  workdir: Any,
  which: str,
  options: Options,
  sock: socket.socket,
) -> NoReturn:
  """Serves until a signal or a failure ends it, then ends the process."""
  servers: list[Server] = []
  service = Service(
    loaded, workdir, which, options, lambda error: servers[0].die(error)
  )
  # uvicorn calls it like a class.
  http: Any = functools.partial(
    Protocol, options.body_timeout, options.body_limit + HEAD_BYTES
  )
  config = uvicorn.Config(
    create_app(service),
    http=http,
    ws='none',
    lifespan='off',
    log_config=None,
    access_log=False,
    server_header=False,
    timeout_keep_alive=75,
    timeout_graceful_shutdown=1,
  )
  server = Server(config, service)
  servers.append(server)
  asyncio.run(server.serve([sock]))
  service.engine.stop()
  service.engine.join(1.0)
  # At once: the interpreter and JAX need a second or two to take themselves
  # down, and a compilation or a tokenizer that still runs cannot be stopped.
  leave(server.code)


def leave(code: int) -> NoReturn:
  """Ends the process without further ado."""
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError):  # Nobody may read them any more.
      stream.flush()
  os._exit(code)
