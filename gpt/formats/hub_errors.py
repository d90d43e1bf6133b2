"""Errors of the Hugging Face hub, explained in one line each.

This module imports no JAX, and huggingface_hub (extra `hf`) only on demand.
"""

import contextlib
import errno
from collections.abc import Iterator
from typing import Any

from gpt.errors import UserError

# Packages whose exceptions tell of a connection: one, by huggingface_hub's age.
TRANSPORTS = ('httpx', 'httpx2', 'httpcore', 'httpcore2', 'requests', 'urllib3')
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Unreachable(UserError):
  """The hub gives no answer."""


def library() -> Any:
  """The package huggingface_hub; UserError if it is not installed."""
  try:
    import huggingface_hub
    import huggingface_hub.constants  # The package loads its parts on demand.
    import huggingface_hub.errors
    import huggingface_hub.utils
  except ImportError as e:
    raise UserError(
      "the hub's models need huggingface_hub: pip install 'rgpt[hf]'"
    ) from e
  return huggingface_hub


@contextlib.contextmanager
def explained(
  repo: str, revision: str = 'main', action: str = 'read'
) -> Iterator[None]:
  """Turns the failures of requests and of writes into one clear line each.

  Args:
    repo, revision: what the requests are about.
    action: what they want to do with it.

  Raises:
    Unreachable: no answer, or offline mode. UserError: everything else.
  """
  hub = library()
  errors, where = hub.errors, hub.constants.ENDPOINT
  try:
    yield
  except UserError:
    raise
  except errors.GatedRepoError as e:
    raise UserError(
      f'{repo} is gated: accept its terms on {where}/{repo}, and put a token '
      'of that account into HF_TOKEN'
    ) from e
  except errors.RepositoryNotFoundError as e:
    raise _not_found(where, repo) from e
  except errors.RevisionNotFoundError as e:
    raise UserError(
      f'{repo} has no revision {revision}: name a branch, a tag or a commit'
    ) from e
  except errors.OfflineModeIsEnabled as e:
    raise Unreachable('HF_HUB_OFFLINE forbids connections to the hub') from e
  except errors.HfHubHTTPError as e:
    status = getattr(e.response, 'status_code', 0)
    if status == 401 and not hub.get_token():
      raise _not_found(where, repo) from e
    raise _refused(where, f'{action} {repo}', status) from e
  except OSError as e:
    if e.errno in DISK_FULL:
      raise UserError(
        f'no space left for {repo} in {hub.constants.HF_HOME}: free some '
        'space, or set HF_HOME, and try again; what has arrived is kept'
      ) from e
    if isinstance(e, PermissionError):
      raise UserError(f'cannot write to {e.filename}: {e.strerror}') from e
    raise _lost(where, e) from e
  except Exception as e:
    if type(e).__module__.split('.')[0] not in TRANSPORTS:
      raise
    raise _lost(where, e) from e


def _not_found(where: str, repo: str) -> UserError:
  return UserError(
    f'{where} has no model {repo}, or a private one: check the name, or put a '
    'token that may read it into HF_TOKEN'
  )


def _refused(where: str, wish: str, status: int) -> UserError:
  """The error for an HTTP status.

  Args:
    wish: 'read owner/name', for example.
  """
  if status in (401, 403):
    return UserError(
      f'{where} does not let you {wish} ({status}): put a token with that '
      'permission into HF_TOKEN'
    )
  if status == 429 or status >= 500:
    return Unreachable(f'{where} is busy or down ({status}): try again later')
  return UserError(f'{where} rejects a request to {wish} ({status})')


def _lost(where: str, error: Exception) -> Unreachable:
  reason = ' '.join(str(error).split())[:120] or type(error).__name__
  return Unreachable(f'no connection to {where} ({reason})')
