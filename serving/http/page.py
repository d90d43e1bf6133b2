"""The web page and a content security policy that allows only its own code."""

import base64
import hashlib
import pathlib
import re

PAGE = pathlib.Path(__file__).parents[1] / 'static' / 'index.html'


def read_page() -> tuple[bytes, str]:
  """(page, policy that allows only the page's own script and style)."""
  page = PAGE.read_bytes()

  def allowed(tag: str) -> str:
    inside = re.findall(rf'<{tag}>(.*?)</{tag}>'.encode(), page, re.DOTALL)
    hashes = (
      base64.b64encode(hashlib.sha256(text).digest()).decode()
      for text in inside
    )
    return ' '.join(f"'sha256-{h}'" for h in hashes)

  policy = (
    "default-src 'none'; "
    f'script-src {allowed("script")}; style-src {allowed("style")}; '
    "connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
  )
  return page, policy
