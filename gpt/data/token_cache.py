"""Flat files of token ids: encoded once, verified before each use.

Training maps the file instead of holding the corpus in memory. A fingerprint
of text, tokenizer and separator is part of the file's name and of its side
file; files that do not match are rebuilt, so stale tokens are never used.

tokens-<fingerprint>.bin holds little-endian uint16 or uint32 and nothing else;
tokens-<fingerprint>.json, its side file, is written last and makes it valid.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tqdm

from gpt.data.pieces import iter_pieces
from gpt.data.sources import Sources
from gpt.data.text_reader import MAX_LINE_CHARS, TextStats
from gpt.errors import UserError
from gpt.fields import Fields
from gpt.files import read_json, remove_leftovers, replacing, write_atomic
from gpt.tokenizers import Tokenizer

logger = logging.getLogger(__name__)

FORMAT = 1
MOST = 1 << 62  # Of every count.
CHECKSUM = 'side_crc32'  # Of the side file's other fields.
# Less text than this is encoded before anyone could read a progress bar.
BAR_BYTES = 4 << 20

# (ids int32[n], number of characters) pairs; an EOS that ends a document has
# no characters.
Encoded = Iterator[tuple[np.ndarray, int]]
Encoder = Callable[[Sources, Tokenizer, TextStats, dict[str, int]], Encoded]


@dataclasses.dataclass
class EncodedInfo:
  """Content of a token file's side file.

  Attributes:
    fingerprint: see corpus_fingerprint.
    text_sha256: as in gpt.data.sources.Sources.
    n_tokens, dtype: length and NumPy dtype of the token file.
    crc32: of its bytes.
    chars: number of characters encoded.
    documents: number of documents.
    unknown: characters that encoding dropped, with their counts.
    stats: counts of what was read.
  """

  fingerprint: str
  text_sha256: str
  n_tokens: int
  dtype: str
  crc32: int
  chars: int
  documents: int
  unknown: dict[str, int]
  stats: TextStats


def token_dtype(vocab_size: int) -> np.dtype:
  """Little-endian uint16 if every id fits, otherwise uint32."""
  return np.dtype('<u2' if vocab_size <= 1 << 16 else '<u4')


def corpus_fingerprint(
  text_sha256: str, tokenizer: Tokenizer, separator: str, largest: int
) -> str:
  """SHA-256 (hex) of everything that determines the tokens."""
  parts = [
    FORMAT,
    text_sha256,
    tokenizer.fingerprint,
    separator,
    MAX_LINE_CHARS,
    str(token_dtype(largest + 1)),
  ]
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def base_of(directory: pathlib.Path, fingerprint: str) -> pathlib.Path:
  """The path of a token file and its side file, without a suffix."""
  return directory / f'tokens-{fingerprint[:16]}'


def load_or_encode(
  sources: Sources,
  tokenizer: Tokenizer,
  separator: str,
  directory: str | os.PathLike,
  tidy: bool = False,
  encode: Encoder | None = None,
  end: int | None = None,
) -> tuple[np.ndarray, np.ndarray, EncodedInfo]:
  """The tokens of `sources`, from the cache or newly encoded.

  Args:
    sources: the text.
    tokenizer: encodes it; its EOS id ends each document.
    separator: see pieces.iter_pieces; with `encode`, a name for that
      encoder that is not a separator.
    directory: of the token files. Runs and processes may share it: each
      writes its own temporary file and renames it.
    tidy: delete the directory's token files with other fingerprints.
    encode: used instead of iter_pieces and encode_pieces, for text with
      structure of its own.
    end: the largest value of `encode`, which ends each document; None: its
      values are ids, and EOS ends a document.

  Returns:
    tokens, a read-only memory map of uint16[n] or uint32[n];
    doc_starts int64[n_docs], 0 and each index after the end of a document;
    info, the side file.

  Raises:
    UserError: the text cannot be read or changes meanwhile, or the directory
      cannot be written to.
  """
  text_sha256 = sources.sha256
  largest = tokenizer.vocab_size - 1 if end is None else end
  fingerprint = corpus_fingerprint(text_sha256, tokenizer, separator, largest)
  directory = pathlib.Path(directory)
  base = base_of(directory, fingerprint)
  info = _read_valid(base, fingerprint)
  if info is None:
    try:
      directory.mkdir(parents=True, exist_ok=True)
      info = _encode_file(
        sources,
        tokenizer,
        separator,
        encode,
        base,
        token_dtype(largest + 1),
        {'fingerprint': fingerprint, 'text_sha256': text_sha256},
      )
      if sources.have_changed():
        base.with_suffix('.json').unlink()
        raise UserError(
          f'{sources.description} changed while it was being encoded: try '
          'again once nothing writes to it'
        )
      remove_leftovers(directory)
      if tidy:
        remove_others(directory, base)
    except OSError as e:
      raise UserError(
        f'cannot write the token cache in {directory}: {e.strerror}; free '
        'some space or set --config.data.cache_dir to another directory'
      ) from e
  path = base.with_suffix('.bin')
  if not info.n_tokens:  # An empty file cannot be mapped.
    return np.zeros(0, info.dtype), np.zeros(0, np.int64), info
  tokens = np.memmap(path, info.dtype, 'r', shape=(info.n_tokens,))
  end = tokenizer.eos_id if end is None else end
  ends = find_token(path, info, end)
  doc_starts = np.concatenate([[0], np.asarray(ends, np.int64) + 1])
  return tokens, doc_starts[doc_starts < info.n_tokens].astype(np.int64), info


def _read_valid(base: pathlib.Path, fingerprint: str) -> EncodedInfo | None:
  """The side file; None unless it and the tokens are intact and match."""
  try:
    data = read_json(base.with_suffix('.json'))
    found = data.pop(CHECKSUM, None)  # 0.2 wrote none.
    if found not in (None, _checksum(data)):
      return None
    _check_side(Fields(data, base))
    info = EncodedInfo(**{**data, 'stats': TextStats(**data['stats'])})
    size = os.path.getsize(base.with_suffix('.bin'))
    whole = info.n_tokens * np.dtype(info.dtype).itemsize
    if info.fingerprint != fingerprint or size != whole:
      return None
    crc = 0
    with open(base.with_suffix('.bin'), 'rb') as f:
      while block := f.read(1 << 20):
        crc = zlib.crc32(block, crc)
    return info if crc == info.crc32 else None
  except (OSError, ValueError, TypeError, KeyError, OverflowError):
    return None


def _check_side(side: Fields) -> None:
  side.choice('dtype', ('<u2', '<u4'))
  for name in ('n_tokens', 'crc32', 'chars', 'documents'):
    side.integer(name, 0, MOST)
  for group in (side.mapping('unknown'), side.mapping('stats')):
    for name in group.values:
      group.integer(name, 0, MOST)


def _checksum(side: dict[str, Any]) -> int:
  return zlib.crc32(json.dumps(side, sort_keys=True).encode())


def find_token(
  path: str | os.PathLike, info: EncodedInfo, id: int
) -> np.ndarray:
  """int64[n], the indices of `id` in a token file.

  It reads the file in pieces: pages of a memory map would count towards the
  memory of this process.
  """
  found, size = [np.zeros(0, np.int64)], 1 << 20
  for start in range(0, info.n_tokens, size):
    offset = start * np.dtype(info.dtype).itemsize
    part = np.fromfile(path, info.dtype, size, offset=offset)
    found.append(np.flatnonzero(part == id) + start)
  return np.concatenate(found)


def encode_pieces(
  pieces: Iterable[str | None],
  tokenizer: Tokenizer,
  unknown: dict[str, int],
  continues: bool = False,
) -> Encoded:
  """Encodes pieces of text; None, the end of a document, becomes EOS.

  Args:
    pieces: from pieces.iter_pieces.
    tokenizer: encodes them.
    unknown: gets the counts of characters that encoding drops.
    continues: the first piece continues a document.
  """
  eos = np.array([tokenizer.eos_id], np.int32)
  encode = tokenizer.encode_more if continues else tokenizer.encode
  for piece in pieces:
    if piece is None:
      encode = tokenizer.encode
      yield eos, 0
      continue
    add_unknown(tokenizer, piece, unknown)
    yield encode(piece), len(piece)
    encode = tokenizer.encode_more


def add_unknown(
  tokenizer: Tokenizer, text: str, unknown: dict[str, int]
) -> None:
  """Adds the characters of `text` that encoding drops to `unknown`."""
  for char, count in tokenizer.count_unknown(text).items():
    unknown[char] = unknown.get(char, 0) + count


def _encode_file(
  sources: Sources,
  tokenizer: Tokenizer,
  separator: str,
  encode: Encoder | None,
  base: pathlib.Path,
  dtype: np.dtype,
  ids: dict[str, str],
) -> EncodedInfo:
  """Writes base.bin, then base.json; `ids` are its first two fields."""
  start = time.monotonic()
  stats = TextStats()
  unknown: dict[str, int] = {}
  n_tokens = chars = crc = ends = 0
  size = sources.size
  show_bar = sys.stderr.isatty()
  if size >= BAR_BYTES and not show_bar:
    logger.info(
      f'encoding {size / 1e6:,.1f} MB of text; the tokens will be cached'
    )
  bar = tqdm.tqdm(
    total=size,
    unit='B',
    unit_scale=True,
    desc='encoding',
    leave=False,
    disable=size < BAR_BYTES or not show_bar,
  )
  with bar, replacing(base.with_suffix('.bin')) as file:
    if encode is None:
      pieces = iter_pieces(sources, separator, stats)
      encoded = encode_pieces(pieces, tokenizer, unknown)
    else:
      encoded = encode(sources, tokenizer, stats, unknown)
    for ids_N, n_chars in encoded:
      data = ids_N.astype(dtype).tobytes()
      file.write(data)
      crc = zlib.crc32(data, crc)
      n_tokens += len(ids_N)
      chars += n_chars
      ends += not n_chars
      bar.update(stats.bytes - bar.n)
  info = EncodedInfo(
    n_tokens=n_tokens,
    dtype=dtype.str,
    crc32=crc,
    chars=chars,
    documents=ends + 1,
    unknown=unknown,
    stats=stats,
    **ids,
  )
  side = dataclasses.asdict(info)
  text = json.dumps({**side, CHECKSUM: _checksum(side)}, indent=1)
  write_atomic(base.with_suffix('.json'), text.encode())
  seconds = time.monotonic() - start
  if size >= BAR_BYTES:
    logger.info(
      f'encoded {size / 1e6:,.1f} MB into {n_tokens:,} tokens in '
      f'{seconds:.1f} s'
    )
  return info


def remove_others(directory: pathlib.Path, keep: pathlib.Path) -> None:
  """Removes the tokens of other texts or tokenizers from a cache."""
  for path in directory.glob('tokens-*.*'):
    if path.stem != keep.name:
      path.unlink(missing_ok=True)
  for path in directory.glob('corpus-*'):
    if path.name != keep.name:
      shutil.rmtree(path, ignore_errors=True)
