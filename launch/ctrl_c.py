"""Ctrl-C in a command that generates text."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class CtrlC:
  """Remembers Ctrl-C, and raises KeyboardInterrupt unless told to wait.

  Libraries call Python from places where exceptions are lost, so the first
  KeyboardInterrupt may vanish; `check` raises it again.

  Attributes:
    pressed: whether Ctrl-C was pressed since the start, or since `held` began.
  """

  def __init__(self) -> None:
    """Takes the place of the handler of SIGINT."""
    self.pressed = self._held = False
    signal.signal(signal.SIGINT, self._handle)

  def _handle(self, number: int, frame: FrameType | None) -> None:
    self.pressed = True
    if not self._held:
      raise KeyboardInterrupt

  def check(self) -> None:
    """Raises KeyboardInterrupt if Ctrl-C was pressed."""
    if self.pressed:
      raise KeyboardInterrupt

  @contextlib.contextmanager
  def held(self) -> Iterator[None]:
    """Within it Ctrl-C only sets `pressed`, for a loop that asks."""
    self.pressed, self._held = False, True
    try:
      yield
    finally:
      self._held = False
