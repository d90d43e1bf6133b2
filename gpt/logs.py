"""The library's log on a terminal: the standard `logging`, set up in one place.

Modules log to `logging.getLogger(__name__)`. Launchers call `to_console` once;
`train_and_evaluate` does so for callers who configured nothing themselves, so
that a notebook shows progress.
"""

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from gpt import terminal

ROOTS = ('gpt', 'launch')
# A pipe whose reader has ended (`| head`), a terminal that was closed.
READER_GONE = (errno.EPIPE, errno.EIO)
STDOUT_CLOSED = (
  'nothing reads stdout any more; training continues, and metrics.jsonl has '
  'its numbers'
)


class ConsoleHandler(logging.Handler):
  """Plain lines: INFO to stdout or stderr, `warning: ...` to stderr.

  Lines appear above a tqdm progress bar; a terminal.Line fits the terminal.
  Streams are looked up at each line, since notebooks and tests replace them.
  """

  def __init__(self, info_to: str = 'stderr'):
    """`info_to`: 'stdout' or 'stderr'."""
    super().__init__()
    self.info_to = info_to

  def emit(self, record: logging.LogRecord) -> None:
    stream: TextIO = getattr(sys, self.info_to)
    if isinstance(record.msg, terminal.Line):
      text = terminal.rendered(record.msg, stream)
    else:
      text = self.format(record)
    if record.levelno >= logging.WARNING:
      text = f'{record.levelname.lower()}: {text}'
      stream = sys.stderr
    try:
      self._write(text, stream)
    except OSError as e:
      if e.errno not in READER_GONE:
        raise
      discard(stream)
      if stream is not sys.stderr:
        self._write(f'warning: {STDOUT_CLOSED}', sys.stderr)

  def _write(self, text: str, stream: TextIO) -> None:
    bar = getattr(sys.modules.get('tqdm'), 'tqdm', None)
    if bar is None:
      stream.write(text + '\n')
    else:
      bar.write(text, file=stream)
    stream.flush()


def discard(stream: TextIO) -> None:
  """Sends what is written to a stream from now on to the null device."""
  with contextlib.suppress(OSError, ValueError):
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def to_console(info_to: str = 'stderr') -> None:
  """Shows the log of this process on the console; a second call re-routes it.

  Args:
    info_to: 'stdout' for programs whose log is their output (training), else
      'stderr'.
  """
  for name in ROOTS:
    logger = logging.getLogger(name)
    logger.handlers = [
      h for h in logger.handlers if not isinstance(h, ConsoleHandler)
    ]
    logger.addHandler(ConsoleHandler(info_to))
    logger.setLevel(logging.INFO)
    # absl and notebook front ends put a handler of their own on the root.
    logger.propagate = False


@contextlib.contextmanager
def shown_by_default() -> Iterator[None]:
  """Shows the log on stdout meanwhile, unless the caller has configured it."""
  loggers = [logging.getLogger(name) for name in ROOTS]
  if any(x.handlers or x.level != logging.NOTSET for x in loggers):
    yield
    return
  to_console('stdout')
  try:
    yield
  finally:
    for logger in loggers:
      logger.handlers, logger.propagate = [], True
      logger.setLevel(logging.NOTSET)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Holds back INFO lines meanwhile: their reader has seen them before."""
  levels = {name: logging.getLogger(name).level for name in ROOTS}
  for name in ROOTS:
    logging.getLogger(name).setLevel(logging.WARNING)
  try:
    yield
  finally:
    for name, level in levels.items():
      logging.getLogger(name).setLevel(level)


def silence() -> None:
  """Logs errors only: one process of a run speaks for all of them."""
  for name in ROOTS:
    logging.getLogger(name).setLevel(logging.ERROR)
