"""Ctrl-C in the REPL: it stops a reply, or the line that is being typed."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class CtrlC:
  """Raises KeyboardInterrupt at Ctrl-C, unless it is held back.

  Attributes:
    pressed: whether Ctrl-C was pressed since `held` began.
  """

  def __init__(self) -> None:
    """Takes the place of the handler of SIGINT."""
    self.pressed = self._held = False
    signal.signal(signal.SIGINT, self._handle)

  def _handle(self, number: int, frame: FrameType | None) -> None:
    self.pressed = True
    if not self._held:
      raise KeyboardInterrupt

  @contextlib.contextmanager
  def held(self) -> Iterator[None]:
    """Within it Ctrl-C only sets `pressed`, for a loop that asks.

    Libraries call Python from places where an exception would be lost.
    """
    self.pressed, self._held = False, True
    try:
      yield
    finally:
      self._held = False
