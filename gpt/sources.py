"""Where training text comes from, and how its bytes become clean text.

It exists so that everything later sees one thing: str in '\\n' line ends,
read in bounded memory, with every repair counted so that it can be said.
"""

import codecs
import dataclasses
import glob
import hashlib
import io
import os
import pathlib
import re
import urllib.error
import urllib.request

from gpt.errors import UserError
from gpt.sample_text import sample_text
from gpt.tokenizer_base import EOS, iter_lines, write_atomic

SHAKESPEARE_URL = (
  'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/'
  'tinyshakespeare/input.txt'
)
SHAKESPEARE_SHA256 = (
  '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed'
)
SHAKESPEARE_FILE = 'tinyshakespeare.txt'
DOWNLOAD_TIMEOUT_S = 10
READ_BYTES = 1 << 20
# A longer line is encoded in pieces of this many characters.
MAX_LINE_CHARS = 1 << 20
LITERAL = re.compile(r'<[^<>\s]+>')


@dataclasses.dataclass(frozen=True)
class Source:
  """One text: a file, or bytes in memory."""

  name: str
  path: pathlib.Path | None = None
  data: bytes | None = None

  def open(self):
    """A binary reader. Raises UserError if the file cannot be read."""
    if self.data is not None:
      return io.BytesIO(self.data)
    try:
      return open(self.path, 'rb')
    except OSError as e:
      raise UserError(f'cannot read {self.path}: {e.strerror}') from e

  @property
  def size(self) -> int:
    """Bytes."""
    return len(self.data) if self.data is not None else (
      os.path.getsize(self.path)
    )


@dataclasses.dataclass(frozen=True)
class Sources:
  """All texts of a corpus, in order.

  `kind` is 'files', 'shakespeare' or 'sample'; `description` says in words
  where the text comes from.
  """

  kind: str
  items: tuple[Source, ...]
  description: str

  @property
  def size(self) -> int:
    """Bytes of all texts."""
    return sum(item.size for item in self.items)

  def sha256(self) -> str:
    """sha256 (hex) over the number, order, lengths and bytes of the texts."""
    total = hashlib.sha256()
    for item in self.items:
      digest = hashlib.sha256()
      with item.open() as f:
        while block := f.read(READ_BYTES):
          digest.update(block)
      total.update(f'{item.size} {digest.hexdigest()}\n'.encode())
    return total.hexdigest()


@dataclasses.dataclass
class TextStats:
  """What reading found: bytes read, and repairs made."""

  bytes: int = 0
  crlf: int = 0
  bom: int = 0
  invalid_utf8: int = 0

  def repairs(self) -> str:
    """The repairs in words; '' if the text was clean."""
    said = []
    if self.crlf:
      said.append(f'{self.crlf:,} CRLF line ends became LF')
    if self.bom:
      said.append(f'{self.bom} byte-order mark removed')
    if self.invalid_utf8:
      said.append(
        f'{self.invalid_utf8:,} invalid UTF-8 sequences became U+FFFD'
      )
    return '; '.join(said)


def cache_home() -> pathlib.Path:
  """Where downloads are kept: $RGPT_CACHE, else ~/.cache/rgpt."""
  home = os.environ.get('RGPT_CACHE')
  return pathlib.Path(home) if home else pathlib.Path.home() / '.cache/rgpt'


def split_paths(path) -> list[str]:
  """'a.txt, b/*.txt' or a list or tuple of such -> list of patterns."""
  parts = [path] if isinstance(path, str | os.PathLike) else list(path)
  return [p.strip() for s in parts for p in str(s).split(',') if p.strip()]


def find_sources(path, prefer: str = '') -> Sources:
  """Finds the text that `data.path` names.

  Args:
    path: files or globs (a string with commas, a list or a tuple), 'sample',
      'shakespeare' or 'auto' (train.txt here, else tinyshakespeare if it can
      be had, else the sample).
    prefer: for 'auto', the `kind` used before by the same run, so that a
      resumed run does not change its text because a network came back.

  Raises:
    UserError: nothing found, or tinyshakespeare cannot be had.
  """
  patterns = split_paths(path)
  if patterns == ['sample']:
    return _sample()
  if patterns == ['shakespeare']:
    return _shakespeare()
  if patterns == ['auto']:
    return _auto(prefer)
  if not patterns:
    raise UserError(
      'data.path is empty: give text files or globs, or shakespeare, sample '
      'or auto'
    )
  return _files(patterns)


def _files(patterns: list[str]) -> Sources:
  paths: dict[str, None] = {}
  for pattern in patterns:
    expanded = os.path.expanduser(pattern)
    if os.path.isfile(expanded):
      paths[expanded] = None
      continue
    found = sorted(glob.glob(expanded, recursive=True))
    found = [p for p in found if os.path.isfile(p)]
    if not found:
      what = 'is a directory' if os.path.isdir(expanded) else 'does not exist'
      if glob.has_magic(pattern):
        what = 'matches no file'
      raise UserError(
        f'data.path: {pattern} {what} (looked from {os.getcwd()}). Give text '
        'files or globs such as data/*.txt, or one of shakespeare, sample, '
        'auto'
      )
    paths.update(dict.fromkeys(found))
  items = tuple(Source(p, pathlib.Path(p)) for p in paths)
  names = ', '.join(i.name for i in items[:3])
  if len(items) > 3:
    names += f' and {len(items) - 3} more'
  return Sources('files', items, names)


def _sample() -> Sources:
  data = sample_text().encode()
  return Sources(
    'sample', (Source('sample', data=data),), 'the built-in sample text'
  )


def _auto(prefer: str) -> Sources:
  if prefer == 'sample':
    return _sample()
  if prefer != 'shakespeare' and os.path.isfile('train.txt'):
    return _files(['train.txt'])
  try:
    return _shakespeare()
  except UserError as e:
    if prefer == 'shakespeare':
      raise
    reason = str(e).split('\n')[0]
    sample = _sample()
    return dataclasses.replace(
      sample,
      description=f'{sample.description} (no train.txt here; {reason})',
    )


def _verified(data: bytes) -> bool:
  return hashlib.sha256(data).hexdigest() == SHAKESPEARE_SHA256


def _shakespeare() -> Sources:
  cached = cache_home() / SHAKESPEARE_FILE
  candidates = [cached]
  if extra := os.environ.get('RGPT_DATA'):
    candidates.append(pathlib.Path(extra) / SHAKESPEARE_FILE)
  for file in candidates:
    # RGPT_CACHE may point anywhere, so a failed read only means "not here".
    try:
      data = file.read_bytes()
    except OSError:
      continue
    if _verified(data):
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
  """tinyshakespeare from its pinned URL ($RGPT_SHAKESPEARE_URL overrides)."""
  url = os.environ.get('RGPT_SHAKESPEARE_URL') or SHAKESPEARE_URL
  options = (
    f'Put the file at {cache_home() / SHAKESPEARE_FILE}, name a directory '
    'that has it in RGPT_DATA, give your own text with '
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
  if not _verified(data):
    raise UserError(
      f'tinyshakespeare from {url} has the wrong sha256 '
      f'{hashlib.sha256(data).hexdigest()} (expected {SHAKESPEARE_SHA256}): '
      f'not used\n{options}'
    )
  return data


def iter_text(source: Source, stats: TextStats):
  """Yields the text of one source as str chunks; repairs go into `stats`.

  CRLF becomes LF, a leading byte-order mark goes, invalid UTF-8 becomes
  U+FFFD.

  Raises:
    UserError: the file cannot be read, or is UTF-16 or UTF-32.
  """
  decoder = codecs.getincrementaldecoder('utf-8')('replace')
  raw_tail, held, replaced, genuine = b'', '', 0, 0
  first = True
  with source.open() as f:
    while True:
      raw = f.read(READ_BYTES)
      if first and raw[:2] in (b'\xff\xfe', b'\xfe\xff'):
        raise UserError(
          f'{source.name} looks like UTF-16, only UTF-8 is read; convert it: '
          f'iconv -f UTF-16 -t UTF-8 {source.name} > text.txt'
        )
      text = held + decoder.decode(raw, final=not raw)
      stats.bytes += len(raw)
      # U+FFFD that stands in the file is no repair.
      genuine += (raw_tail + raw).count(b'\xef\xbf\xbd')
      raw_tail = (raw_tail + raw)[-2:]
      replaced += text.count('\ufffd', len(held))
      if first and text:
        first = False
        if text[0] == '\ufeff':
          text = text[1:]
          stats.bom += 1
      held = ''
      if raw and text.endswith('\r'):
        text, held = text[:-1], '\r'
      if '\r\n' in text:
        stats.crlf += text.count('\r\n')
        text = text.replace('\r\n', '\n')
      if text:
        yield text
      if not raw:
        break
  stats.invalid_utf8 += replaced - genuine


def iter_blocks(chunks, keep_whole: str = ''):
  """Regroups str chunks into blocks that end at line ends.

  Lines longer than MAX_LINE_CHARS are cut, but never inside `keep_whole`
  (whose first character it does not have again).
  """
  carry = ''
  for chunk in chunks:
    end = chunk.rfind('\n') + 1
    if end:
      yield carry + chunk[:end]
      carry = chunk[end:]
    else:
      carry += chunk
    while len(carry) > MAX_LINE_CHARS:
      cut = MAX_LINE_CHARS
      if keep_whole:
        at = carry.rfind(keep_whole[0], cut - len(keep_whole) + 1, cut)
        if at > 0 and keep_whole.startswith(carry[at : at + len(keep_whole)]):
          cut = at
      yield carry[:cut]
      carry = carry[cut:]
  if carry:
    yield carry


def iter_pieces(sources: Sources, separator: str, stats: TextStats):
  """Yields pieces of text, with None wherever a document ends.

  Separators: 'none' (all files are one text, joined at a line end),
  'blank_line' (one or more blank lines, which are dropped), or a literal in
  angle brackets such as '<|eos|>' (each one ends a document; the text around
  it is kept as it is). With the last two each file begins a new document.

  Raises:
    UserError: unknown separator, or a file that cannot be read.
  """
  literal = separator if LITERAL.fullmatch(separator) else ''
  if not literal and separator not in ('none', 'blank_line'):
    raise UserError(
      f'data.document_separator {separator!r} is unknown: allowed are none, '
      f'blank_line, or a literal in angle brackets such as {EOS}'
    )
  last: str | None = ''  # the piece before; None after the end of a document
  for source in sources.items:
    if separator == 'none' and last and not last.endswith('\n'):
      yield '\n'
    elif separator != 'none' and last:
      yield None
    pieces = iter_blocks(iter_text(source, stats), literal)
    if literal:
      pieces = _split_literal(pieces, literal)
    elif separator == 'blank_line':
      pieces = _split_blank(pieces)
    for last in pieces:
      yield last


def _split_literal(blocks, literal: str):
  for block in blocks:
    for i, part in enumerate(block.split(literal)):
      if i:
        yield None
      if part:
        yield part


def _split_blank(blocks):
  started = ended = line_open = False
  for block in blocks:
    kept: list[str] = []
    for line in iter_lines(block):
      # A cut line goes on in the next block: its rest is not a blank line.
      if not line_open and not line.strip():
        ended = started
        continue
      if ended:
        if kept:
          yield ''.join(kept)
          kept = []
        yield None
        ended = False
      started = True
      kept.append(line)
      line_open = not line.endswith('\n')
    if kept:
      yield ''.join(kept)
