"""gzip and zstd, recognized by how a file begins, read as a stream."""

import gzip
import importlib
import io
import zlib
from typing import Any, BinaryIO

from gpt.errors import UserError

GZIP, ZSTD = b'\x1f\x8b', b'\x28\xb5\x2f\xfd'
SUFFIXES = {'.gz': GZIP, '.zst': ZSTD, '.zstd': ZSTD}
NAMES = {GZIP: 'gzip', ZSTD: 'zstd'}
BUFFER_BYTES = 1 << 20


def without_suffix(name: str) -> str:
  """'a.txt.gz' -> 'a.txt'; names of other files stay as they are."""
  for suffix in SUFFIXES:
    if name.lower().endswith(suffix):
      return name[: -len(suffix)]
  return name


def method_of(file: BinaryIO, name: str) -> bytes:
  """GZIP, ZSTD or b'': how a file at its first byte is compressed.

  Raises:
    UserError: its name promises another method.
  """
  head = file.read(4)
  file.seek(0)
  found = next((magic for magic in NAMES if head.startswith(magic)), b'')
  promised = SUFFIXES.get(f'.{name.lower().rpartition(".")[2]}', found)
  if found != promised and head:
    raise UserError(
      f'{name} is not {NAMES[promised]} data, although its name says so: '
      'rename it, or leave it out of data.path'
    )
  return found


def decompressed(file: BinaryIO, name: str) -> BinaryIO:
  """A reader of what a file holds: `file` itself if it is not compressed.

  Raises:
    UserError: its name promises another method; no library for zstd. Reading
      raises it for data that are damaged or end early.
  """
  raw: Any
  try:
    method = method_of(file, name)
    if not method:
      return file
    raw = gzip.GzipFile(fileobj=file) if method == GZIP else _zstd_reader(file)
  except BaseException:
    file.close()
    raise
  return io.BufferedReader(_Explained(file, raw, name, method), BUFFER_BYTES)


def _zstd_reader(file: BinaryIO) -> Any:
  try:  # Python 3.14 and newer.
    return importlib.import_module('compression.zstd').ZstdFile(file)
  except ImportError:
    pass
  try:
    zstandard: Any = importlib.import_module('zstandard')
  except ImportError as e:
    raise UserError(
      "zstd files need the `zstandard` library: pip install 'rgpt[corpora]' "
      '(or Python 3.14)'
    ) from e
  return _ZstdFrames(file, zstandard.ZstdDecompressor())


class _ZstdFrames:
  """Reads frames by `zstandard`, whose own reader takes a cut file for whole.

  Raises:
    EOFError: the file ends within a frame.
  """

  # At most 128 KiB come out of each 4 bytes.
  INPUT_BYTES = 1 << 12

  def __init__(self, file: BinaryIO, library: Any) -> None:
    self._file, self._library = file, library
    self._frame: Any = None
    self._left, self._input = b'', b''

  def read(self, n: int) -> bytes:
    while not self._left:
      self._input = self._input or self._file.read(self.INPUT_BYTES)
      if not self._input:
        if self._frame is not None:
          raise EOFError
        return b''
      if self._frame is None:
        self._frame = self._library.decompressobj()
      self._left = self._frame.decompress(self._input)
      self._input = b''
      if self._frame.eof:
        self._input, self._frame = self._frame.unused_data, None
    data, self._left = self._left[:n], self._left[n:]
    return data

  def close(self) -> None:
    self._frame = None


class _Explained(io.RawIOBase):
  """A decompressing reader whose errors are UserErrors that name the file."""

  def __init__(
    self, file: BinaryIO, raw: Any, name: str, method: bytes
  ) -> None:
    super().__init__()
    self._file, self._raw = file, raw
    self._name, self._method = name, NAMES[method]

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    try:
      data = self._raw.read(len(buffer))
    except EOFError as e:
      raise UserError(
        f'{self._name}: the {self._method} data end early: the file was cut; '
        'get it again'
      ) from e
    except Exception as e:
      # Each library has its own exceptions.
      if isinstance(e, OSError | zlib.error) or 'zstd' in str(type(e)).lower():
        raise UserError(
          f'{self._name}: damaged {self._method} data ({e}): get the file again'
        ) from e
      raise
    buffer[: len(data)] = data
    return len(data)

  def close(self) -> None:
    if not self.closed:
      self._raw.close()
      self._file.close()
    super().close()
