"""The operator's choices; launch.serve has a flag for each."""

import dataclasses
import os
import re
from collections.abc import Sequence

from gpt.errors import UserError

NAME = re.compile(r'\w[\w.:-]*(/\w[\w.:-]*)*')  # Of a model; no path.


@dataclasses.dataclass(frozen=True)
class Options:
  """Limits and identities; times in seconds, sizes in bytes.

  Attributes:
    model_name: listed by /v1/models.
    strict_model: refuse requests for any other name with 404.
    adapters: (name, workdir) of LoRA runs of the model that is served; a
      request's `model` chooses one of them.
    slots: choices decoded at once.
    precision: of weights, keys and values in decoding; see kernels.plan_for.
    max_queue: requests that may wait for a slot.
    max_per_client: requests a client may have in flight; 0: no limit.
    context_overflow: for requests that do not choose; see Sampling.
    prefix_cache: bytes of keys and values kept for prompts that begin alike;
      0: none.
    max_tokens_limit: largest max_tokens of a request; 0: no limit.
    request_timeout: from arrival to the last byte of the answer.
    queue_timeout: from arrival to a slot.
    read_timeout: for a stream whose client reads nothing.
    body_limit: largest request body.
    body_timeout: for a request's head, and again for its body.
    drain_timeout: for running requests at shutdown.
    keys: accepted API keys; empty: no key is required.
    allowed_hosts: accepted names in the Host header; empty: any.
    cors_origins: origins whose pages may use the API; '*': all.
  """

  model_name: str
  strict_model: bool = False
  adapters: tuple[tuple[str, str], ...] = ()
  slots: int = 4
  precision: str = 'float32'
  max_queue: int = 64
  max_per_client: int = 0
  context_overflow: str = 'slide'
  prefix_cache: int = 256 << 20
  max_tokens_limit: int = 0
  request_timeout: float = 600.0
  queue_timeout: float = 60.0
  read_timeout: float = 5.0
  body_limit: int = 1 << 20
  body_timeout: float = 30.0
  drain_timeout: float = 10.0
  keys: tuple[str, ...] = ()
  allowed_hosts: tuple[str, ...] = ()
  cors_origins: tuple[str, ...] = ()


def parse_adapters(
  given: Sequence[str], model_name: str
) -> tuple[tuple[str, str], ...]:
  """(name, directory) of every NAME=DIR.

  Raises:
    UserError: a name that could be a path, or that is taken.
  """
  found: dict[str, str] = {}
  for text in given:
    name, _, directory = text.partition('=')
    if not NAME.fullmatch(name) or len(name) > 80 or not directory:
      raise UserError(
        f'--adapter={text}: give a name of letters, digits and _ . : - (parts '
        'between / too) and a directory, such as --adapter=poems=runs/poems'
      )
    if name in found or name == model_name:
      raise UserError(
        f'--adapter={text}: the name {name} is taken: choose another'
      )
    found[name] = os.path.expanduser(directory)
  return tuple(found.items())
