"""CORS: Starlette's middleware, with our answer to origins not on the list."""

import re
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

# Allowed where a preflight does not name the headers it wants to send.
HEADERS = 'authorization, content-type, x-api-key, x-request-id'


class Cors(CORSMiddleware):
  """Lets pages of some origins use the API; '*' lets all.

  To other origins the server looks as if it had no CORS: Starlette would
  answer their preflights with a plain text. The headers of a preflight are
  echoed, because clients have their own (x-stainless-*), but only as far as
  they are names of headers.
  """

  def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
    super().__init__(
      app,
      allow_origins=origins,
      allow_methods=('GET', 'POST'),
      allow_headers=('*',),
      expose_headers=('x-request-id', 'retry-after'),
    )

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    origin = Headers(scope=scope).get('origin')
    if origin is None or not self.is_allowed_origin(origin):
      await self.app(scope, receive, send)
    else:
      await super().__call__(scope, receive, send)

  def preflight_response(self, request_headers: Mapping[str, str]) -> Response:
    asked = request_headers.get('access-control-request-headers', '')
    names = re.sub(r"[^A-Za-z0-9!#$%&'*+.^_`|~, -]", '', asked).strip()
    response = super().preflight_response(
      Headers(
        {
          **request_headers,
          'access-control-request-headers': names or HEADERS,
        }
      )
    )
    headers = dict(response.headers)
    del headers['content-length'], headers['content-type']
    return Response(status_code=204, headers=headers)
