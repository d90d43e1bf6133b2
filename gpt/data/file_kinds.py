"""Kinds of files: records and token files by name, others by content.

Files that are not text would train without an error, on rubbish. So they are
refused by name.
"""

import re

from gpt.data.compressed import without_suffix
from gpt.errors import UserError

# Kinds of sources.
TEXT, JSONL, PARQUET, TOKENS = 'text', 'jsonl', 'parquet', 'tokens'
RECORDS = JSONL, PARQUET
SUFFIXES = {
  '.txt': TEXT,
  '.text': TEXT,
  '.md': TEXT,
  '.jsonl': JSONL,
  '.ndjson': JSONL,
  '.parquet': PARQUET,
  '.pq': PARQUET,
  '.bin': TOKENS,
  '.npy': TOKENS,
}
# Of a record, if data.text_field is not set; of conversations in Parquet.
DEFAULT_FIELD, CHATS_FIELD = 'text', 'messages'
HEAD_BYTES = 1 << 14  # Of a file, enough to recognize it.
HOLE_BYTES = 1 << 20  # NUL bytes in a row that are no text.
UNPACK = 'unpack it first'
# How files begin that hold no text: what they are, and how to get at it.
MAGIC = (
  (b'PAR1', 'a Parquet file', 'name it .parquet'),
  (b'\x1f\x8b', 'gzip data within gzip data', UNPACK),
  (b'\x28\xb5\x2f\xfd', 'zstd data within compressed data', UNPACK),
  (b'PK\x03\x04', 'a zip archive', UNPACK),
  (b'BZh', 'bzip2 data', 'unpack it (bunzip2)'),
  (b'\xfd7zXZ\0', 'xz data', 'unpack it (unxz)'),
  (b'7z\xbc\xaf\x27\x1c', 'a 7-Zip archive', UNPACK),
  (b'Rar!\x1a\x07', 'a RAR archive', UNPACK),
  (b'\x89PNG\r\n', 'a PNG image', ''),
  (b'\xff\xd8\xff', 'a JPEG image', ''),
  (b'GIF8', 'a GIF image', ''),
  (b'%PDF-', 'a PDF', 'extract its text (pdftotext)'),
  (b'\x7fELF', 'a program', ''),
  (b'GGUF', 'a GGUF model', ''),
  (b'SQLite format 3\0', 'an SQLite database', ''),
  (b'ARROW1\0\0', 'an Arrow file', 'convert it to Parquet'),
  (b'\x93NUMPY', 'a NumPy array', 'name it .npy if it holds token ids'),
  (b'RGPT000', 'a model of RandyGPT', ''),
  (b'\x89HDF\r\n', 'an HDF5 file', ''),
)
TAR = (257, b'ustar')  # Offset and magic.
# No text has bytes that UTF-8 does not allow, or control characters, in this
# share of its characters.
MOST_ODD = 0.3
FEWEST_ODD = 16
ODD = re.compile('[\0-\x08\x0e-\x1a\x1c-\x1f\x7f\ufffd]')
UTF16 = b'\xff\xfe', b'\xfe\xff'


def kind_of(name: str, field: str = '') -> str:
  """The kind of a file, by its name: unknown ones are plain text.

  Args:
    field: data.text_field; with it, .json is JSON Lines, as many data sets
      have it.
  """
  name = without_suffix(name).lower()
  if field and name.endswith('.json'):
    return JSONL
  return SUFFIXES.get(f'.{name.rpartition(".")[2]}', TEXT)


def is_listed(name: str, field: str) -> bool:
  """Whether a directory stands for this file too.

  Arrays are named themselves: few of those beside a text hold tokens.
  """
  known = [suffix for suffix in SUFFIXES if suffix != '.npy']
  known += ['.json'] if field else []
  return without_suffix(name).lower().endswith(tuple(known))


def check_text(name: str, head: bytes) -> None:
  """Refuses what is not text.

  Args:
    name: of the file, for messages.
    head: its first bytes, of which HEAD_BYTES are looked at.

  Raises:
    UserError: the bytes are those of another kind of file.
  """
  for magic, what, advice in MAGIC:
    if head.startswith(magic):
      raise not_text(name, what, advice)
  if head[TAR[0] :].startswith(TAR[1]):
    raise not_text(name, 'a tar archive', UNPACK)
  if head.startswith(UTF16):  # text_reader explains it.
    return
  text = head[:HEAD_BYTES].decode('utf-8', 'replace')
  odd = len(ODD.findall(text))
  if odd > max(FEWEST_ODD, MOST_ODD * len(text)):
    raise not_text(
      name,
      f'not UTF-8 text ({odd / len(text):.0%} of its first characters are '
      'control characters or bytes that UTF-8 does not allow)',
      'convert text of another encoding (iconv -t UTF-8)',
    )


def check_no_hole(name: str, block: bytes) -> None:
  """Refuses a block of NUL bytes only, which no text has.

  A sparse file of terabytes is a few bytes on the disk, and a day to read.

  Args:
    name: of the file, for messages.
    block: the next of its bytes; shorter than HOLE_BYTES, it may be anything.

  Raises:
    UserError: the block is a hole.
  """
  if len(block) >= HOLE_BYTES and not block.strip(b'\0'):
    raise not_text(
      name,
      f'not whole: {len(block):,} bytes in a row are NUL, as in a download '
      'that was cut or a sparse file',
      'get it again',
    )


def not_text(name: str, what: str, advice: str) -> UserError:
  """The error for a file that is no text."""
  return UserError(
    f'{name} is {what}, which cannot be trained on: '
    f'{f"{advice}, or " if advice else ""}leave it out of data.path'
  )
