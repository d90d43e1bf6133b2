"""Who may use the server: API keys, Host names, origins of web pages."""

import hashlib
import hmac
import ipaddress

# Monitors and the page itself need no key; what the page asks for does.
PUBLIC = {
  '/health': ('GET', 'HEAD'),
  '/livez': ('GET', 'HEAD'),
  '/version': ('GET', 'HEAD'),
  '/': ('GET', 'HEAD'),
}
# Asked for by address or by any name; nothing there is anybody's secret.
PROBES = ('/health', '/livez', '/version')


def is_public(method: str, path: str) -> bool:
  return method in PUBLIC.get(path, ())


class Keys:
  """A set of API keys, kept as hashes.

  Every key is compared, each in constant time, so that answers take as long
  for a wrong key as for a right one.
  """

  def __init__(self, keys):
    self._digests = [
      digest(key.encode('utf-8', 'surrogateescape')) for key in keys
    ]

  def __bool__(self):
    return bool(self._digests)

  def accept(self, key: str) -> bool:
    """Whether a key from a header, whose bytes are its characters, is one."""
    given, found = digest(key.encode('latin-1')), False
    for known in self._digests:
      found |= hmac.compare_digest(given, known)
    return found


def digest(key: bytes) -> bytes:
  return hashlib.sha256(key).digest()


def given_key(headers: dict) -> str | None:
  """From `Authorization: Bearer KEY` or `X-Api-Key: KEY`."""
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


def allowed_hosts(names, loopback: bool) -> tuple[str, ...]:
  """For `host_allowed`, from the operator's names; '*' allows any.

  Args:
    loopback: the server listens on a loopback address.
  """
  hosts = tuple(name.lower() for name in names)
  if '*' in hosts or not (hosts or loopback):
    return ()
  return (*hosts, 'localhost')


def is_cross_site(headers: dict) -> bool:
  """Whether a page of another site has a browser send this request.

  Browsers say so, but not to plain http on an address that is not loopback.
  There the Origin, which they always send, must be the host that is asked.
  """
  if 'sec-fetch-site' in headers:
    return headers['sec-fetch-site'] == 'cross-site'
  if 'origin' not in headers:
    return False
  host = headers['origin'].rpartition('//')[2]
  return host.lower() != headers.get('host', '').strip().lower()


def host_allowed(header: str | None, allowed) -> bool:
  """A name in a web page must not lead a browser here (DNS rebinding).

  Args:
    allowed: names; 'localhost' stands for every loopback address as well;
      empty: all are allowed.
  """
  if not allowed or header is None:
    return True
  name = host_name(header)
  return name in allowed or ('localhost' in allowed and is_loopback(name))
