"""A real server process: socket, signals, uvicorn, and how it ends."""

import asyncio
import errno
import functools
import logging
import os
import signal
import socket
import sys

import uvicorn

from gpt.errors import UserError
from serving.http.app import create_app
from serving.http.protocol import Protocol
from serving.service import Service

log = logging.getLogger('rgpt.serve')

FAILED_EXIT, FORCED_EXIT = 1, 1
SEND_BUFFER = 128 << 10
STALLED_SECONDS = 120  # without a byte read, while there are some to be read
HEAD_BYTES = 64 << 10


def bind(host: str, port: int) -> socket.socket:
  """A listening socket. Raises UserError where it cannot be had."""
  try:
    family, kind, protocol, _, address = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    if os.name == 'posix':
      sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # What the kernel may hold for a reader that stands still, each.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    if hasattr(socket, 'TCP_USER_TIMEOUT'):  # Linux; connections inherit it.
      sock.setsockopt(
        socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_SECONDS * 1000
      )
    sock.bind(address)
    sock.listen(2048)
  except UnicodeError as e:  # Of the encoding of names; not an OSError.
    raise UserError(f'--host={host} is not the name of a host') from e
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
  """uvicorn, except that a signal drains before anything is closed.

  Attributes:
    code: exit code of the process.
  """

  def __init__(self, config, service):
    super().__init__(config)
    self.code = 0
    self._service = service
    self._loop = None
    self._draining = None

  async def startup(self, sockets=None) -> None:
    self._loop = asyncio.get_running_loop()
    await super().startup(sockets)
    self._service.start()

  def handle_exit(self, sig, frame) -> None:
    """SIGTERM, Ctrl-C: once to drain, twice to leave at once."""
    if self._draining is not None or self._loop is None:
      os._exit(FORCED_EXIT)
    self._draining = sig
    self._loop.call_soon_threadsafe(self._begin_drain)

  def _begin_drain(self) -> None:
    log.info('%s: finishing what runs', signal.Signals(self._draining).name)
    self._loop.create_task(self._drain())

  async def _drain(self) -> None:
    await self._service.drain()
    self.should_exit = True

  def die(self, error) -> None:
    """The engine has failed: say why, answer 503, leave."""
    if isinstance(error, UserError):
      log.critical('%s', error)
    else:
      log.critical('the engine has failed', exc_info=error)
    self.code = FAILED_EXIT
    self._loop.call_later(0.5, setattr, self, 'should_exit', True)


def serve(loaded, workdir, which, options, sock) -> int:
  """Serves until a signal or a failure ends it; the exit code."""
  server = None
  service = Service(
    loaded, workdir, which, options, lambda error: server.die(error)
  )
  config = uvicorn.Config(
    create_app(service),
    http=functools.partial(
      Protocol, options.body_timeout, options.body_limit + HEAD_BYTES
    ),
    ws='none',
    lifespan='off',
    log_config=None,
    access_log=False,
    server_header=False,
    timeout_keep_alive=75,
    timeout_graceful_shutdown=1,
  )
  server = Server(config, service)
  asyncio.run(server.serve([sock]))
  service.engine.stop()
  if not (service.engine.join(2.0) and service.close(0.5)):
    # It compiles, or turns a text into tokens, and nothing can stop that.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(server.code)
  return server.code
