"""Training text: files, tinyshakespeare, or the built-in sample.

`data.path` works on every machine, with or without a network; the description
records which text was found.
"""

import dataclasses
import functools
import glob
import hashlib
import io
import logging
import os
import pathlib
import urllib.error
import urllib.request
from collections.abc import Iterable
from typing import Any, BinaryIO

from gpt.data import file_kinds, hub_datasets
from gpt.data.compressed import decompressed
from gpt.data.digests import digests
from gpt.data.sample_text import sample_text
from gpt.errors import MOST_QUOTED, UserError, quoted
from gpt.files import open_file, write_atomic

logger = logging.getLogger(__name__)

SHAKESPEARE_URL = (
  'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/'
  'tinyshakespeare/input.txt'
)
SHAKESPEARE_SHA256 = (
  '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed'
)
SHAKESPEARE_FILE = 'tinyshakespeare.txt'
DOWNLOAD_TIMEOUT_S = 10
BUILT_IN = ('shakespeare', 'sample', 'auto')
# Begins the data.path of a run imported from elsewhere: the rest names files
# of another machine, which are not read.
IMPORTED = 'imported:'


@dataclasses.dataclass(frozen=True)
class Source:
  """One text: the file `path`, or `data` or `records` in memory.

  Attributes:
    name: for messages.
    path: a file, perhaps compressed.
    data: bytes, if there is no path.
    kind: 'text', 'jsonl', 'parquet' or 'tokens'.
    field: of records, the one with the text; '': whole lines.
    records: values of a Parquet file's field, if there is no path.
    first: number of the first line of `data` or of the first of `records`.
    offset: bytes of the file that come before `data`.
  """

  name: str
  path: pathlib.Path | None = None
  data: bytes | None = None
  kind: str = file_kinds.TEXT
  field: str = ''
  records: tuple[Any, ...] = ()
  first: int = 1
  offset: int = 0

  def open(self) -> BinaryIO:
    """A reader of the bytes, decompressed.

    Raises:
      UserError: the file cannot be read.
    """
    if self.path is None:
      return io.BytesIO(self.data or b'')
    return decompressed(open_file(self.path), self.name)

  def open_raw(self) -> BinaryIO:
    """A reader of the bytes as they are stored; raises UserError."""
    return (
      io.BytesIO(self.data or b'') if not self.path else open_file(self.path)
    )

  @property
  def are_records(self) -> bool:
    """Whether each record, not the text as a whole, is a document."""
    return self.kind in file_kinds.RECORDS and bool(self.field)

  @property
  def size(self) -> int:
    """Bytes."""
    if self.path is None:
      return len(self.data or b'')
    return os.path.getsize(self.path)


@dataclasses.dataclass(frozen=True)
class Sources:
  """The texts of a corpus, in order.

  Attributes:
    kind: 'files', 'shakespeare' or 'sample'.
    items: the texts.
    description: where the text comes from, in words.
    memory: directory that remembers the hashes of large files; None: none do.
  """

  kind: str
  items: tuple[Source, ...]
  description: str
  memory: pathlib.Path | None = None

  @property
  def size(self) -> int:
    """Bytes of all texts."""
    return sum(item.size for item in self.items)

  @property
  def sha256(self) -> str:
    """SHA-256 (hex) of the number, order, lengths and bytes of the texts."""
    return self._hashed[1]

  def have_changed(self) -> bool:
    """Whether the texts differ from what was hashed.

    Reads them again only if a size or modification time differs.
    """
    state, sha256 = self._hashed
    if self._state() == state:
      return False
    return dataclasses.replace(self).sha256 != sha256  # A copy hashes anew.

  @functools.cached_property
  def _hashed(self) -> tuple[list[tuple[int, int]], str]:
    """`_state` before reading, and the hash; the files are read once."""
    state, total = self._state(), hashlib.sha256()
    for item, digest in zip(self.items, digests(self.items, self.memory)):
      total.update(f'{item.size} {digest}\n'.encode())
      if item.are_records:
        total.update(f'{item.kind} {item.field}\n'.encode())
    return state, total.hexdigest()

  def _state(self) -> list[tuple[int, int]]:
    """(size in bytes, mtime in ns) of each file that exists."""
    paths = [i.path for i in self.items if i.path is not None]
    stats = [os.stat(path) for path in paths if os.path.exists(path)]
    return [(s.st_size, s.st_mtime_ns) for s in stats]


def cache_home() -> pathlib.Path:
  """The directory of downloads: $RGPT_CACHE, by default ~/.cache/rgpt.

  RGPT_CACHE=off affects compiled programs (gpt/devices.py), not downloads.
  """
  home = os.environ.get('RGPT_CACHE', '')
  if home in ('', 'off'):
    return pathlib.Path.home() / '.cache/rgpt'
  return pathlib.Path(home)


def split_paths(path: str | os.PathLike | Iterable) -> list[str]:
  """'a.txt, b/*.txt', or several such strings -> list of patterns."""
  parts = [path] if isinstance(path, str | os.PathLike) else list(path)
  return [p.strip() for s in parts for p in str(s).split(',') if p.strip()]


def imported(path: str) -> str:
  """The data.path of an imported run whose own one was `path`."""
  if path.strip() in BUILT_IN or path.startswith(IMPORTED):
    return path
  return f'{IMPORTED}{path[:MOST_QUOTED]}'


def find_sources(
  path: str | os.PathLike | Iterable,
  prefer: str = '',
  format: str = 'text',
  field: str = '',
) -> Sources:
  """Finds the text that `data.path` names.

  Args:
    path: files, directories, globs or hf://datasets/ addresses (a string with
      commas, a list or a tuple), 'sample', 'shakespeare' or 'auto' (train.txt
      in the working directory, else tinyshakespeare if available, else the
      sample).
    prefer: for 'auto', the `kind` that the run used before, so a resumed run
      does not switch texts when a network or a file becomes available.
    format, field: data.format and data.text_field.

  Raises:
    UserError: nothing was found, tinyshakespeare is not available, or `path`
      is that of an imported run.
  """
  if isinstance(path, str) and path.startswith(IMPORTED):
    raise UserError(
      'this run was imported, and the text it was trained on '
      f'({quoted(path.removeprefix(IMPORTED))}) is not read from this machine: '
      'name a text with --data (launch.evaluate) or --config.data.path '
      '(launch.train)'
    )
  patterns = split_paths(path)
  if patterns == ['sample']:
    return _sample()
  if patterns == ['shakespeare']:
    return _shakespeare()
  if patterns == ['auto']:
    return _auto(prefer)
  if not patterns:
    raise UserError(
      'data.path is empty: give text files, directories or globs, or '
      'shakespeare, sample or auto'
    )
  return _files(patterns, format, field)


def _files(
  patterns: list[str], format: str = 'text', field: str = ''
) -> Sources:
  paths: dict[str, None] = {}
  for pattern in patterns:
    expanded = os.path.expanduser(pattern)
    if pattern.startswith(hub_datasets.SCHEME):
      expanded = hub_datasets.download(pattern)
    if os.path.isfile(expanded):
      paths[expanded] = None
      continue
    if os.path.isdir(expanded):
      paths.update(dict.fromkeys(_in_directory(expanded, field)))
      continue
    found = sorted(glob.glob(expanded, recursive=True))
    found = [p for p in found if os.path.isfile(p)]
    if not found:
      what = 'does not exist'
      if os.path.lexists(expanded):
        what = 'is no file but a pipe, a device or a broken link'
      if glob.has_magic(pattern):
        what = 'matches no file'
      raise UserError(
        f'the text {pattern} {what} (working directory: {os.getcwd()}). Give '
        'files, directories or globs such as data/*.txt, or one of '
        'shakespeare, sample, auto'
      )
    paths.update(dict.fromkeys(found))
  items = tuple(_source(path, format, field) for path in paths)
  names = ', '.join(i.name for i in items[:3])
  if len(items) > 3:
    names += f' and {len(items) - 3:,} more'
  return Sources('files', items, names)


def _in_directory(directory: str, field: str) -> list[str]:
  """The text files in a directory and those below it, in order of names."""
  found, others = [], []
  for folder, folders, names in os.walk(directory):
    folders[:] = sorted(name for name in folders if not name.startswith('.'))
    for name in sorted(names):
      if not name.startswith('.'):
        listed = file_kinds.is_listed(name, field)
        (found if listed else others).append(os.path.join(folder, name))
  if not found:
    holds = f'{len(others):,} others, such as {others[0]}' if others else 'none'
    raise UserError(
      f'the text {directory} is a directory without files named '
      f'{", ".join(file_kinds.SUFFIXES)} (or these with .gz or .zst): it holds '
      f'{holds}. Give a glob to read files of other names as text, or one of '
      'shakespeare, sample, auto'
    )
  if others:
    logger.info(
      f'data: {directory} has {len(others):,} files of other kinds, which are '
      f'not read, such as {others[0]}'
    )
  return sorted(found)


def _source(path: str, format: str, field: str) -> Source:
  """The source of a file: what its name says it is."""
  kind = file_kinds.kind_of(path, field)
  default = file_kinds.DEFAULT_FIELD
  if format == 'chat':  # Each line is a conversation, without a field.
    default = file_kinds.CHATS_FIELD if kind == file_kinds.PARQUET else ''
  if kind not in file_kinds.RECORDS:
    default = field = ''
  return Source(path, pathlib.Path(path), kind=kind, field=field or default)


def _sample() -> Sources:
  data = sample_text().encode()
  return Sources(
    'sample', (Source('sample', data=data),), 'the built-in sample text'
  )


def _auto(prefer: str) -> Sources:
  here = os.path.isfile('train.txt')
  if prefer == 'files' and not here:
    raise UserError(
      'this run was trained on files, but the working directory has no '
      'train.txt: restore it, give the files with --config.data.path, or use '
      'another --workdir'
    )
  if prefer in ('sample', 'shakespeare'):
    found = _sample() if prefer == 'sample' else _shakespeare()
    if not here:
      return found
    return dataclasses.replace(
      found,
      description=(
        f'{found.description}, as before (to use train.txt, choose another '
        '--workdir)'
      ),
    )
  if here:
    return _files(['train.txt'])
  try:
    return _shakespeare()
  except UserError as e:
    sample, reason = _sample(), str(e).split('\n')[0]
    return dataclasses.replace(
      sample,
      description=(f'{sample.description} (no train.txt; {reason})'),
    )


def _is_shakespeare(data: bytes) -> bool:
  return hashlib.sha256(data).hexdigest() == SHAKESPEARE_SHA256


def _shakespeare() -> Sources:
  cached = cache_home() / SHAKESPEARE_FILE
  candidates = [cached]
  if extra := os.environ.get('RGPT_DATA'):
    candidates.append(pathlib.Path(extra) / SHAKESPEARE_FILE)
  for file in candidates:
    # RGPT_CACHE may name any path: a failed read means "not cached".
    try:
      data = file.read_bytes()
    except OSError:
      continue
    if _is_shakespeare(data):
      return Sources(
        'shakespeare',
        (Source('shakespeare', data=data),),
        f'tinyshakespeare ({file})',
      )
  data = _download()
  try:
    cached.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(cached, data)
    where = f'downloaded to {cached}'
  except OSError as e:
    where = f'downloaded, not cached: {e.strerror}'
  return Sources(
    'shakespeare',
    (Source('shakespeare', data=data),),
    f'tinyshakespeare ({where})',
  )


def _download() -> bytes:
  """Downloads tinyshakespeare from $RGPT_SHAKESPEARE_URL or the pinned URL."""
  url = os.environ.get('RGPT_SHAKESPEARE_URL') or SHAKESPEARE_URL
  options = (
    f'Put the file at {cache_home() / SHAKESPEARE_FILE}, set RGPT_DATA to a '
    'directory that contains it, give your own text with '
    '--config.data.path=FILE, or use --config.data.path=sample'
  )
  try:
    with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_S) as reply:
      data = reply.read(16 << 20)
  except (OSError, ValueError, urllib.error.URLError) as e:
    reason = getattr(e, 'reason', e)
    raise UserError(
      f'tinyshakespeare cannot be downloaded from {url}: {reason}\n{options}'
    ) from e
  if not _is_shakespeare(data):
    raise UserError(
      f'the file at {url} is not tinyshakespeare: wrong sha256 '
      f'{hashlib.sha256(data).hexdigest()}, expected {SHAKESPEARE_SHA256}\n'
      f'{options}'
    )
  return data
