"""Errors as clients see them, in one shape.

`translate` is the only place where the engine's errors meet HTTP.
"""

import dataclasses
import math

from serving.engine import errors
from serving.engine.errors import RequestFailed

STATES = {
  'loading': 'The model is loading.',
  'draining': 'The server is shutting down.',
  'failed': 'The server has failed and is about to stop.',
}

MOST_RETRY = 60  # seconds to wait at most before another try


@dataclasses.dataclass(eq=False)
class ApiError(Exception):
  """An error for the client: no internals in its text.

  Attributes:
    status: HTTP status.
    message: what was given, what is allowed.
    type: OpenAI's class of errors.
    param: the field at fault, if it is one.
    code: for programs, e.g. 'context_length_exceeded'.
    retry_after: seconds, sent as Retry-After. allow: methods, sent as Allow.
    reason: label of rgpt_rejected_total, for requests that were turned away.
  """

  status: int
  message: str
  type: str = 'invalid_request_error'
  param: str | None = None
  code: str | None = None
  retry_after: int | None = None
  allow: str | None = None
  reason: str | None = None

  def __str__(self) -> str:
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


def translate(error: RequestFailed) -> ApiError:
  """The answer for a request that the engine did not complete."""
  text = str(error)
  match error:
    case errors.Unavailable():
      return unavailable(error.state)
    case errors.Interrupted():  # After it was let in, so not a rejection.
      return dataclasses.replace(unavailable('draining'), reason=None)
    case errors.QueueFull():
      return overloaded(text, 'queue_full', error.wait)
    case errors.QueueTimeout():
      return overloaded(text, 'queue_timeout', error.wait)
    case errors.RequestTimeout():
      return ApiError(504, text, 'timeout_error', code='timeout')
    case errors.ContextTooLong():
      return bad_request(text, error.param, 'context_length_exceeded')
    case errors.InvalidRequest():
      return bad_request(text, error.param)
    case errors.NotRead():
      return ApiError(500, text, 'server_error')
  return internal()


def bad_request(
  message: str, param: str | None = None, code: str | None = None
) -> ApiError:
  return ApiError(400, message, param=param, code=code)


def unauthorized(message: str) -> ApiError:
  return ApiError(
    401, message, 'authentication_error', code='invalid_api_key', reason='auth'
  )


def not_found(
  message: str, param: str | None = None, code: str | None = None
) -> ApiError:
  return ApiError(404, message, param=param, code=code)


def overloaded(message: str, reason: str, wait: float) -> ApiError:
  """For a queue that will need `wait` seconds for what it holds."""
  return ApiError(
    503,
    message,
    'overloaded_error',
    code='overloaded',
    retry_after=min(max(1, math.ceil(wait)), MOST_RETRY),
    reason=reason,
  )


def unavailable(state: str) -> ApiError:
  """For an engine that is loading, draining or failed."""
  return ApiError(
    503,
    STATES[state],
    'unavailable_error',
    code=state,
    retry_after=5,
    reason=state,
  )


def internal() -> ApiError:
  return ApiError(
    500, str(errors.StepFailed()), 'server_error', code='internal_error'
  )
