"""Data sets of the hub: hf://datasets/owner/name[@revision][/FILES].

huggingface_hub (extra `corpora`) downloads them into its own cache; HF_HOME,
HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean there. What has
arrived is not downloaded again. Nothing of a data set is ever run.
"""

import glob
import importlib
import logging
import os
import re
from typing import Any

from gpt.data.compressed import SUFFIXES as PACKED
from gpt.data.file_kinds import SUFFIXES
from gpt.errors import MOST_QUOTED, UserError

logger = logging.getLogger(__name__)

SCHEME = 'hf://datasets/'
ADDRESS = re.compile(
  r'hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w./-]+?))?(?:/([^@]+))?', re.ASCII
)
# Of a data set as a whole: its README is no text of it.
WHOLE = [
  f'*{suffix}{packed}'
  for suffix in SUFFIXES
  if suffix not in ('.md', '.bin', '.npy')
  for packed in ('', *PACKED)
]


def download(address: str) -> str:
  """Downloads the files of a data set; returns their pattern on this machine.

  Args:
    address: FILES may be a file, a folder or a glob; without it, all files of
      text count.

  Raises:
    UserError: not an address, no such data set or file, or no connection.
  """
  found = ADDRESS.fullmatch(address)
  if not found or '..' in address:
    raise UserError(
      f'{address} names no data set: write hf://datasets/owner/name, '
      'hf://datasets/owner/name@revision or hf://datasets/owner/name/'
      'data/*.parquet'
    )
  repo, revision, files = found.groups()
  try:
    hub: Any = importlib.import_module('huggingface_hub')
    errors: Any = importlib.import_module('huggingface_hub.errors')
  except ImportError as e:
    raise UserError(
      "data sets of the hub need huggingface_hub: pip install 'rgpt[corpora]'"
    ) from e
  wanted = WHOLE
  if files:
    wanted = [files, f'{files.rstrip("/")}/*']
  logger.info(f'data: downloading {address} unless it is in the cache')
  try:
    directory = hub.snapshot_download(
      repo, repo_type='dataset', revision=revision, allow_patterns=wanted
    )
  except errors.RevisionNotFoundError as e:
    raise UserError(f'{address}: {repo} has no revision {revision}') from e
  except Exception as e:  # Of several libraries for connections.
    if isinstance(e, TypeError | AttributeError | NameError):
      raise
    status = getattr(getattr(e, 'response', None), 'status_code', 0)
    unknown = isinstance(e, errors.RepositoryNotFoundError)
    if unknown or status in (401, 403):
      raise UserError(
        f'{address}: the hub has no data set {repo}, or it is private or '
        'gated: check the name, or put a token into HF_TOKEN'
      ) from e
    reason = ' '.join(str(e).split())[:MOST_QUOTED]
    raise UserError(
      f'{address} cannot be downloaded: {type(e).__name__}: {reason}'
    ) from e
  base = glob.escape(directory)
  if files:
    path = os.path.join(directory, files)
    pattern = path if os.path.exists(path) else os.path.join(base, files)
    if os.path.exists(path) or glob.glob(pattern, recursive=True):
      return pattern
  elif any(names for _, _, names in os.walk(directory)):
    return directory
  raise UserError(
    f'{address} holds no {"such " if files else ""}files of text: name them, '
    'as in hf://datasets/owner/name/data/*.parquet'
  )
