"""Atomic writes, and reads that believe nothing.

A file is complete or absent: data goes to a temporary file in the same
directory, is fsynced and renamed over the target. A killed process leaves a
temporary file named `.NAME.tmp-*`, until somebody writes that target again.

What is read may be damaged or hostile. read_bytes and read_json bound size,
memory and nesting before they read or build anything, and every fault is a
UserError. gpt/fields.py takes single entries from a JSON object.
"""

import contextlib
import json
import math
import os
import pathlib
import re
import stat
import time
from collections.abc import Iterator
from typing import IO, Any, BinaryIO

from gpt import unfinished
from gpt.errors import UserError, quoted

# Younger temporary files may belong to a live process.
STALE_SECONDS = 3600.0
MAX_JSON_BYTES = 64 << 20  # The largest tokenizer.json in use have 35 MB.
MAX_DEPTH = 64  # Of nested arrays and objects.
MAX_DIGITS = 40  # transformers writes 10**30 for "no limit".
# Values built from JSON may take this much and 10 bytes a byte of the file.
JSON_BYTES_ALLOWED = 200 << 20
# Most bytes that CPython needs for what each character announces: a container,
# one more value, an entry of an object together with its key.
BYTES_BUILT = {b'[': 80, b'{': 80, b',': 60, b':': 200}
LONE_SURROGATE = re.compile(rb'\\u[dD][89a-fA-F]')

Path = str | os.PathLike[str]


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Opens a binary file that replaces `path` when the block succeeds.

  If the block raises, `path` is unchanged. The file's mode is 0o644.

  Raises:
    OSError: the directory is not writable, or `path` is a directory.
  """
  path = pathlib.Path(path)
  name = unfinished.name_beside(path)
  try:
    with open(name, 'xb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.chmod(name, 0o644)
    os.replace(name, path)
    unfinished.forget(name)
  except BaseException:
    unfinished.remove(name)
    raise


def write_atomic(path: str | os.PathLike, data: bytes) -> None:
  """Writes `data` to `path` atomically; raises OSError like `replacing`."""
  with replacing(path) as file:
    file.write(data)


@contextlib.contextmanager
def locked(file: IO[Any]) -> Iterator[None]:
  """Waits until no other process holds the lock of an open file; holds it.

  The lock ends with the process. Without effect on Windows, and on file systems
  that have no locks.
  """
  try:
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX)
  except (ImportError, OSError):
    yield
    return
  try:
    yield
  finally:
    fcntl.flock(file, fcntl.LOCK_UN)


def remove_leftovers(directory: str | os.PathLike) -> None:
  """Removes temporary files that killed processes left over an hour ago."""
  for path in pathlib.Path(directory).glob('.*.tmp-*'):
    try:
      if time.time() - path.stat().st_mtime > STALE_SECONDS:
        unfinished.remove(path)
    except OSError:
      pass  # Another process removed it first.


# --- reading


def read_bytes(path: Path, max_bytes: int) -> bytes:
  """The content of a regular file of at most `max_bytes`.

  Raises:
    UserError: no such file, no access, a larger file, or a directory, a pipe
      or a device.
  """
  try:
    with open_file(path) as file:
      data = file.read(max_bytes + 1)
  except OSError as e:
    raise UserError(f'cannot read {path}: {e.strerror or e}') from e
  if len(data) > max_bytes:
    raise UserError(
      f'{path} has {os.path.getsize(path):,} bytes; allowed: at most '
      f'{max_bytes:,}'
    )
  return data


def open_file(path: Path) -> BinaryIO:
  """Opens a regular file for reading; it must be closed.

  Raises:
    UserError: no such file, no access, or a directory, a pipe or a device.
  """
  try:
    file = open(path, 'rb', opener=_without_waiting)
  except OSError as e:
    raise UserError(f'cannot read {path}: {e.strerror or e}') from e
  except ValueError as e:  # A NUL or a lone surrogate in the name.
    raise UserError(f'cannot read {quoted(os.fspath(path))}: {e}') from e
  if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
    return file
  file.close()
  raise UserError(f'cannot read {path}: it is a pipe or a device, not a file')


def read_stream(path: Path, max_bytes: int) -> bytes:
  """The content of a file, or of a pipe that somebody writes to.

  Raises:
    UserError: as `read_bytes`; a pipe without a writer.
  """
  if not stat.S_ISFIFO(os.stat(path).st_mode):
    return read_bytes(path, max_bytes)
  with open(path, 'rb', opener=_without_waiting) as pipe:
    os.set_blocking(pipe.fileno(), True)
    data = pipe.read(max_bytes + 1)
  if not data:
    raise UserError(f'cannot read {path}: nobody writes to this pipe')
  if len(data) > max_bytes:
    raise UserError(f'{path} sent more than the {max_bytes:,} bytes allowed')
  return data


def _without_waiting(path: str, flags: int) -> int:
  """Opens a pipe at once, even if nobody writes to it."""
  return os.open(path, flags | os.O_NONBLOCK)


def read_json(
  path: Path, *, max_bytes: int = MAX_JSON_BYTES, infinite: bool = False
) -> dict[str, Any]:
  """The JSON object in a file; see parse_json.

  Raises:
    UserError: a file that cannot be read, or that holds anything else.
  """
  value = parse_json(read_bytes(path, max_bytes), path, infinite=infinite)
  if not isinstance(value, dict):
    raise UserError(
      f'{path} holds {quoted(value)}; allowed: a JSON object {{...}}'
    )
  return value


def parse_json(
  data: bytes | str, where: Path, *, infinite: bool = False
) -> Any:
  """The value of a JSON text, as strict as the standard and stricter.

  Rejected are duplicate keys, nan and infinity, integers of more than
  MAX_DIGITS digits, nesting deeper than MAX_DEPTH, strings that UTF-8 cannot
  encode, and texts whose values would take far more memory than the text.

  Args:
    where: the file, for errors.
    infinite: accepts NaN, Infinity and numbers that overflow to it, which
      Python writes.

  Raises:
    UserError: any of the above, or no JSON.
  """
  if isinstance(data, str):
    data = data.encode('utf-8', 'surrogatepass')
  allowed = JSON_BYTES_ALLOWED + 10 * len(data)
  needed = sum(data.count(sign) * each for sign, each in BYTES_BUILT.items())
  if needed > allowed:
    raise UserError(
      f'{where} may need {needed:,} bytes of memory; allowed: {allowed:,} for '
      f'a file of {len(data):,} bytes'
    )
  try:
    value = json.loads(
      data.decode('utf-8-sig'),
      object_pairs_hook=_object,
      parse_int=_integer,
      parse_float=float if infinite else _finite,
      parse_constant=float if infinite else _finite,
    )
    _check_depth(value)
    if LONE_SURROGATE.search(data):
      json.dumps(value, ensure_ascii=False).encode()
  except RecursionError as e:
    raise UserError(
      f'{where} is not JSON to trust: nested deeper than {MAX_DEPTH} levels'
    ) from e
  except UnicodeDecodeError as e:
    raise UserError(
      f'{where} is not JSON: byte {e.start} is not UTF-8 ({e.reason})'
    ) from e
  except UnicodeEncodeError as e:
    raise UserError(
      f'{where} holds the lone surrogate {quoted(e.object[e.start])}, which is '
      'no character'
    ) from e
  except ValueError as e:
    raise UserError(f'{where} is not JSON: {e}') from e
  return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    seen = set()
    twice = next(k for k, _ in pairs if k in seen or seen.add(k))
    raise ValueError(f'the key {quoted(twice)} occurs twice')
  return found


def _integer(text: str) -> int:
  if len(text) > MAX_DIGITS:
    raise ValueError(f'a number has {len(text)} digits, at most {MAX_DIGITS}')
  return int(text)


def _finite(text: str) -> float:
  found = float(text)
  if not math.isfinite(found):
    raise ValueError(f'the number {quoted(text)} is not finite')
  return found


def _check_depth(value: Any) -> None:
  level = [value]
  for _ in range(MAX_DEPTH):
    level = [
      child
      for parent in level
      for child in (
        parent.values()
        if isinstance(parent, dict)
        else parent
        if isinstance(parent, list)
        else ()
      )
      if isinstance(child, dict | list)
    ]
    if not level:
      return
  raise RecursionError
