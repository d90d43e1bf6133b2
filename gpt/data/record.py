"""workdir/data.json: the text a run is trained on.

`auto` keeps its first choice across restarts, a changed text is noticed, and
model cards name the training text.
"""

import json
import os
import pathlib
from typing import Any

from gpt.errors import UserError
from gpt.fields import read_fields
from gpt.files import write_atomic

FILE = 'data.json'
FIELDS = ('kind', 'description', 'text_sha256')


def read(workdir: str | os.PathLike) -> dict[str, Any]:
  """The record: kind, description and text_sha256; {} if it cannot be read.

  text_sha256 is '' while the text has been found but not yet read.
  """
  try:
    fields = read_fields(pathlib.Path(workdir) / FILE, max_bytes=1 << 20)
    return {name: fields.text(name) for name in FIELDS}
  except UserError:
    return {}


def write(
  workdir: str | os.PathLike, kind: str, description: str, text_sha256: str
) -> None:
  """Writes the record if it differs; creates the workdir if needed.

  Args:
    workdir: of the run.
    kind, description: as in gpt.data.sources.Sources.
    text_sha256: as in gpt.data.token_cache.EncodedInfo, or ''.
  """
  record = {
    'kind': kind,
    'description': description,
    'text_sha256': text_sha256,
  }
  if record != read(workdir):
    path = pathlib.Path(workdir) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(record, indent=1) + '\n').encode())


def drop(workdir: str | os.PathLike) -> None:
  """Deletes the record, if there is one."""
  (pathlib.Path(workdir) / FILE).unlink(missing_ok=True)
