"""What can go wrong with a request, and the one shape in which we say so."""

import dataclasses


class ClientGone(Exception):
  """Nobody is there to answer any more."""


@dataclasses.dataclass(eq=False)
class ApiError(Exception):
  """An error for the client; the text may be shown, so no internals in it.

  Attributes:
    status: HTTP status.
    message: what was given, what is allowed.
    type: OpenAI's error class.
    param: the field at fault, if it is one.
    code: for programs, e.g. 'context_length_exceeded'.
    retry_after: seconds, sent as Retry-After. allow: methods, sent as Allow.
    reason: label of rgpt_rejected_total, where the request was turned away.
  """

  status: int
  message: str
  type: str = 'invalid_request_error'
  param: str | None = None
  code: str | None = None
  retry_after: int | None = None
  allow: str | None = None
  reason: str | None = None

  def __str__(self):
    return self.message

  def body(self) -> dict:
    return {
      'error': {
        'message': self.message,
        'type': self.type,
        'param': self.param,
        'code': self.code,
      }
    }

  def body_for(self, path: str) -> dict:
    """The body; RandyGPT's and microgpt's routes have {"error": "text"}."""
    if path == '/' or path.startswith('/microgpt/'):
      return {'error': self.message}
    return self.body()

  def headers(self) -> dict[str, str]:
    headers = {}
    if self.retry_after is not None:
      headers['Retry-After'] = str(self.retry_after)
    if self.allow is not None:
      headers['Allow'] = self.allow
    if self.status == 401:
      headers['WWW-Authenticate'] = 'Bearer'
    return headers


def bad_request(message: str, param=None, code=None) -> ApiError:
  return ApiError(400, message, param=param, code=code)


def unsupported(param: str, message: str) -> ApiError:
  return bad_request(message, param, 'unsupported_parameter')


def context_length(window: int, given: str, param: str) -> ApiError:
  """`given` says what was asked for, e.g. 'the prompt has 300 tokens'.

  `param` is the field that is too long.
  """
  return bad_request(
    f"This model's maximum context length is {window} tokens; {given}.",
    param,
    'context_length_exceeded',
  )


def unauthorized(message: str) -> ApiError:
  return ApiError(
    401, message, 'authentication_error', code='invalid_api_key', reason='auth'
  )


def not_found(message: str, param=None, code=None) -> ApiError:
  return ApiError(404, message, param=param, code=code)


def overloaded(message: str, reason: str, retry_after: int = 1) -> ApiError:
  return ApiError(
    503,
    message,
    'overloaded_error',
    code='overloaded',
    retry_after=retry_after,
    reason=reason,
  )


def unavailable(state: str) -> ApiError:
  """The server is loading, draining or failed."""
  text = {
    'loading': 'The model is loading.',
    'draining': 'The server is shutting down.',
    'failed': 'The server has failed and is about to stop.',
  }[state]
  return ApiError(
    503, text, 'unavailable_error', code=state, retry_after=5, reason=state
  )


def timed_out(seconds: float) -> ApiError:
  return ApiError(
    504,
    f'The request took longer than {seconds:g} s.',
    'timeout_error',
    code='timeout',
  )


def internal() -> ApiError:
  return ApiError(
    500,
    'Internal server error. The log of the server has the details.',
    'server_error',
    code='internal_error',
  )
