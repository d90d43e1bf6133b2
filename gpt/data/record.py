"""W/data.json: which text a run uses, so that another one is noticed.

It exists so that `auto` stays what it was when a network comes back, that a
changed text is said, and that a model knows what it was trained on.
"""

import json
import pathlib

from gpt.files import write_atomic

FILE = 'data.json'


def read(workdir) -> dict:
  """{} where there is none, else 'kind', 'description' and 'text_sha256'.

  The sha256 is '' from the time a text was found until it was read.
  """
  try:
    text = (pathlib.Path(workdir) / FILE).read_text(encoding='utf-8')
    record = json.loads(text)
  except (OSError, ValueError):
    return {}
  return record if isinstance(record, dict) else {}


def write(workdir, kind: str, description: str, text_sha256: str) -> None:
  """Args as in data.sources.Sources and data.token_cache.EncodedInfo."""
  record = {
    'kind': kind,
    'description': description,
    'text_sha256': text_sha256,
  }
  if record != read(workdir):
    path = pathlib.Path(workdir) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(record, indent=1) + '\n').encode())


def drop(workdir) -> None:
  (pathlib.Path(workdir) / FILE).unlink(missing_ok=True)
