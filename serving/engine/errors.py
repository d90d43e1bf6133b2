"""Reasons why a request ends without a complete answer.

They know nothing of HTTP: serving/http/errors.py gives each its status.
"""


class RequestFailed(Exception):
  """Base class; the message may be shown to the client."""


class Unavailable(RequestFailed):
  """The engine takes no requests in this state: loading, draining, failed."""

  def __init__(self, state: str) -> None:
    super().__init__(f'The engine is {state}.')
    self.state = state


class Overloaded(RequestFailed):
  """Too much to do; it may be worth trying again.

  Attributes:
    wait: estimated seconds until what waits now has been served.
  """

  wait = 0.0


class QueueFull(Overloaded):
  def __init__(self, waiting: int, wait: float) -> None:
    super().__init__(
      f'The server is busy: {waiting} requests are waiting already.'
    )
    self.wait = wait


class QueueTimeout(Overloaded):
  def __init__(self, seconds: float, wait: float) -> None:
    super().__init__(f'No slot was free within {seconds:g} s.')
    self.wait = wait


class RequestTimeout(RequestFailed):
  def __init__(self, seconds: float) -> None:
    super().__init__(f'The request took longer than {seconds:g} s.')


class ContextTooLong(RequestFailed):
  """A prompt does not fit and its request refuses to move the window.

  Args:
    window: tokens of the context.
    given: what was asked for, e.g. 'the prompt has 300 tokens'.
    param: the request field that is too long.
  """

  def __init__(self, window: int, given: str, param: str) -> None:
    super().__init__(
      f"This model's maximum context length is {window} tokens; {given}."
    )
    self.param = param


class InvalidRequest(RequestFailed):
  """A field whose value only the tokenized prompt reveals as unusable."""

  def __init__(self, message: str, param: str) -> None:
    super().__init__(message)
    self.param = param


class Interrupted(RequestFailed):
  """The server shut down before the request had finished."""

  def __init__(self) -> None:
    super().__init__('The server is shutting down.')


class NotRead(RequestFailed):
  """The client read nothing for so long that its request was ended."""

  def __init__(self) -> None:
    super().__init__('The stream was not read.')


class StepFailed(RequestFailed):
  """A fault of ours; the log has the details, the client gets none."""

  def __init__(self) -> None:
    super().__init__(
      'Internal server error. The log of the server has the details.'
    )


class ClientGone(RequestFailed):
  """The client has disconnected: nobody is left to answer."""
