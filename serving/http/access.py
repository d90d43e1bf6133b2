"""Access control: API keys, Host names, origins of web pages."""

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Mapping, Sequence

# Monitors and the page itself need no key; the page's own requests do.
PUBLIC = {
  '/health': ('GET', 'HEAD'),
  '/livez': ('GET', 'HEAD'),
  '/version': ('GET', 'HEAD'),
  '/': ('GET', 'HEAD'),
}
# Answered under any Host name: they reveal nothing.
PROBES = ('/health', '/livez', '/version')


def is_public(method: str, path: str) -> bool:
  return method in PUBLIC.get(path, ())


class Keys:
  """A set of API keys, kept as SHA-256 hashes.

  A key is compared with every hash, each in constant time, so the time of an
  answer does not depend on how much of the key is right.
  """

  def __init__(self, keys: Iterable[str]) -> None:
    self._digests = [
      digest(key.encode('utf-8', 'surrogateescape')) for key in keys
    ]

  def __bool__(self) -> bool:
    return bool(self._digests)

  def accept(self, key: str) -> bool:
    """Whether a key from a header is known; headers arrive as Latin-1."""
    given, found = digest(key.encode('latin-1')), False
    for known in self._digests:
      found |= hmac.compare_digest(given, known)
    return found


def digest(key: bytes) -> bytes:
  return hashlib.sha256(key).digest()


def given_key(headers: Mapping[str, str]) -> str | None:
  """The key in `Authorization: Bearer KEY` or `X-Api-Key: KEY`."""
  scheme, _, key = headers.get('authorization', '').partition(' ')
  if scheme.lower() == 'bearer' and key.strip():
    return key.strip()
  return headers.get('x-api-key') or None


def is_loopback(host: str) -> bool:
  """Whether only this machine can reach a server bound to `host`."""
  if host == 'localhost':
    return True
  try:
    return ipaddress.ip_address(host.strip('[]')).is_loopback
  except ValueError:
    return False


def host_name(header: str) -> str:
  """The name in a Host header, without its port, in lower case."""
  host = header.strip().lower()
  if host.startswith('['):
    return host.partition(']')[0] + ']'
  return host.rpartition(':')[0] if ':' in host else host


def allowed_hosts(names: Iterable[str], loopback: bool) -> tuple[str, ...]:
  """The operator's names as `host_allowed` needs them; '*' allows any.

  Args:
    loopback: the server listens on a loopback address.
  """
  hosts = tuple(name.lower() for name in names)
  if '*' in hosts or not (hosts or loopback):
    return ()
  return (*hosts, 'localhost')


def is_cross_origin(headers: Mapping[str, str]) -> bool:
  """Whether a browser sends this request for a page of another origin.

  That includes pages on another port of the same host, which browsers count as
  the same site: any program on this machine can serve one. Browsers send
  Sec-Fetch-Site, but not over plain http to an address that is not loopback.
  There Origin, which they always send, must match the Host.
  """
  if 'sec-fetch-site' in headers:
    return headers['sec-fetch-site'] not in ('same-origin', 'none')
  if 'origin' not in headers:
    return False
  host = headers['origin'].rpartition('//')[2]
  return host.lower() != headers.get('host', '').strip().lower()


def host_allowed(header: str | None, allowed: Sequence[str]) -> bool:
  """Whether a Host header is acceptable; a guard against DNS rebinding.

  Args:
    allowed: names; 'localhost' includes every loopback address; empty: any
      name.
  """
  if not allowed or header is None:
    return True
  name = host_name(header)
  return name in allowed or ('localhost' in allowed and is_loopback(name))
