"""The log lines of the library, as a list."""

import contextlib
import logging


class ListHandler(logging.Handler):
  """Appends each line to `lines`, warnings with their level in front."""

  def __init__(self, on_line=None):
    super().__init__()
    self.lines: list[str] = []
    self._on_line = on_line

  def emit(self, record):
    text = record.getMessage()
    if record.levelno >= logging.WARNING:
      text = f'{record.levelname.lower()}: {text}'
    self.lines.append(text)
    if self._on_line:
      self._on_line(text)


@contextlib.contextmanager
def log_lines(on_line=None):
  """The list that lines go to meanwhile, instead of the console.

  Args:
    on_line: called with each line; may raise to crash the code that logs.
  """
  logger, handler = logging.getLogger('gpt'), ListHandler(on_line)
  before, level = logger.handlers, logger.level
  logger.handlers = [handler]
  logger.setLevel(logging.INFO)
  try:
    yield handler.lines
  finally:
    logger.handlers = before
    logger.setLevel(level)
