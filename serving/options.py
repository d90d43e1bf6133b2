"""What the operator of a server chooses; launch.serve has a flag for each."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Options:
  """Limits and identities; times in seconds, sizes in bytes.

  Attributes:
    model_name: what /v1/models lists.
    strict_model: 404 for any other name.
    slots: choices decoded at once. max_queue: requests that may wait.
    max_per_client: requests a client may have in flight; 0: no limit.
    context_overflow: what requests get that do not choose.
    request_timeout: from arrival to the last byte. queue_timeout: to a slot.
    body_limit: of a request; body_timeout: for its head, and for its body.
    drain_timeout: what running requests get after SIGTERM.
    keys: accepted API keys; none: everybody is let in.
    allowed_hosts: names in the Host header; empty: any.
    cors_origins: origins whose pages may use the API; '*': all.
  """

  model_name: str
  strict_model: bool = False
  slots: int = 4
  max_queue: int = 64
  max_per_client: int = 0
  context_overflow: str = 'slide'
  request_timeout: float = 600.0
  queue_timeout: float = 60.0
  body_limit: int = 1 << 20
  body_timeout: float = 30.0
  drain_timeout: float = 10.0
  keys: tuple[str, ...] = ()
  allowed_hosts: tuple[str, ...] = ()
  cors_origins: tuple[str, ...] = ()
