"""What is due after a step: an eval, a save, or the end."""

from typing import Any, NamedTuple


class Due(NamedTuple):
  """The actions due after a step; false if there are none.

  Attributes:
    eval, save: as config.eval.every and config.checkpoint.every say, and at
      the last step.
    stop: an interruption was requested.
    first: this process has compiled; timing begins after this step.
  """

  eval: bool
  save: bool
  stop: bool
  first: bool

  def __bool__(self) -> bool:
    return any(self)


def what_is_due(step: int, first: int, last: int, config: Any) -> Due:
  """Actions the config asks for after `step`; the process began at `first`."""
  every = config.checkpoint.every
  eval_due = step % config.eval.every == 0 or step == last
  save_due = step == last or bool(every and step % every == 0)
  return Due(eval_due, save_due, stop=False, first=step == first + 1)
