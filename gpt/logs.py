"""The library's log on a terminal: the standard `logging`, set up in one place.

Modules log to `logging.getLogger(__name__)`. Launchers call `to_console`;
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

  def __init__(self, info_to: str = 'stderr', survive: bool = False) -> None:
    """See `to_console`."""
    super().__init__()
    self.info_to, self.survive = info_to, survive

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
      if not self.survive or e.errno not in READER_GONE:
        raise
      discard(stream)
      try:
        self._write(f'warning: {STDOUT_CLOSED}', sys.stderr)
      except OSError:
        discard(sys.stderr)

  def _write(self, text: str, stream: TextIO | None) -> None:
    if stream is None:  # Closed before the start: `>&-`, pythonw.
      return
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


def to_console(info_to: str = 'stderr', survive: bool = False) -> None:
  """Shows the log of this process on the console; a second call re-routes it.

  Args:
    info_to: 'stdout' for programs whose log is their output (training), else
      'stderr'.
    survive: when nothing reads the console any more, discard lines instead of
      raising BrokenPipeError.
  """
  for name in ROOTS:
    logger = logging.getLogger(name)
    logger.handlers = [
      h for h in logger.handlers if not isinstance(h, ConsoleHandler)
    ]
    logger.addHandler(ConsoleHandler(info_to, survive))
    logger.setLevel(logging.INFO)
    # absl and notebook front ends put a handler of their own on the root.
    logger.propagate = False


@contextlib.contextmanager
def shown_by_default() -> Iterator[None]:
  """Shows the log on stdout meanwhile, unless the caller has configured it.

  Configured means: the logger 'gpt' has a handler or a level, or the root
  logger has a handler and lets INFO pass.
  """
  loggers = [logging.getLogger(name) for name in ROOTS]
  root = logging.getLogger()
  own = any(x.handlers or x.level != logging.NOTSET for x in loggers)
  if own or (root.handlers and root.level <= logging.INFO):
    yield
    return
  before = [(x.handlers, x.propagate, x.level) for x in loggers]
  to_console('stdout', survive=True)
  try:
    yield
  finally:
    for logger, (handlers, propagate, level) in zip(loggers, before):
      logger.handlers, logger.propagate = handlers, propagate
      logger.setLevel(level)


@contextlib.contextmanager
def quiet(below: int = logging.WARNING) -> Iterator[None]:
  """Drops lines below a level meanwhile: by default INFO."""
  loggers = [logging.getLogger(name) for name in ROOTS]
  levels = [logger.level for logger in loggers]
  for logger in loggers:
    logger.setLevel(max(below, logger.level))
  try:
    yield
  finally:
    for logger, level in zip(loggers, levels):
      logger.setLevel(level)
