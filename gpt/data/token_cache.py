"""Text -> a flat file of token ids, made once and checked before each use.

It exists so that training never holds a corpus in memory and never trains on
tokens of another text, vocabulary or mode: the file's name and its side file
carry a fingerprint of all three, and anything that does not fit is rebuilt.

tokens-<fingerprint>.bin is little-endian uint16 or uint32, nothing else;
tokens-<fingerprint>.json beside it is written last and makes it valid.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import sys
import time
import zlib

import numpy as np
import tqdm

from gpt.data.sources import Sources
from gpt.data.text_reader import MAX_LINE_CHARS, TextStats, iter_pieces
from gpt.errors import UserError
from gpt.files import remove_leftovers, replacing, write_atomic

logger = logging.getLogger(__name__)

FORMAT = 1
# Below this many bytes encoding is over before a bar could be read.
BAR_BYTES = 4 << 20


@dataclasses.dataclass
class EncodedInfo:
  """Side file of a token file.

  n_tokens and dtype describe the file, crc32 is over its bytes; chars is the
  number of characters encoded, unknown the characters dropped (and counts).
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
  """The smallest of little-endian uint16 and uint32 that fits."""
  return np.dtype('<u2' if vocab_size <= 1 << 16 else '<u4')


def corpus_fingerprint(text_sha256: str, tokenizer, separator: str) -> str:
  """sha256 (hex) of everything that decides the tokens."""
  parts = [
    FORMAT,
    text_sha256,
    tokenizer.fingerprint,
    separator,
    MAX_LINE_CHARS,
    str(token_dtype(tokenizer.vocab_size)),
  ]
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def load_or_encode(
  sources: Sources,
  tokenizer,
  separator: str,
  directory,
  tidy=False,
  encode=None,
) -> tuple[np.ndarray, np.ndarray, EncodedInfo]:
  """The tokens of `sources`, encoded if need be.

  Args:
    sources: the text.
    tokenizer: encodes it; its EOS id ends each document.
    separator: see text_reader.iter_pieces; or with `encode`, its name, which
      no separator has.
    encode: (sources, tokenizer, stats, unknown) -> what encode_pieces yields,
      for text that is not plain.
    directory: where token files are kept; may be shared between runs and
      processes (each writes its own temporary file and renames it).
    tidy: remove the directory's token files of other fingerprints.

  Returns:
    tokens, a read-only memory map of uint16[n] or uint32[n];
    doc_starts int64[n_docs], index 0 and each index after an EOS;
    info, the side file.

  Raises:
    UserError: the text cannot be read or the directory not written.
  """
  text_sha256 = sources.sha256
  fingerprint = corpus_fingerprint(text_sha256, tokenizer, separator)
  directory = pathlib.Path(directory)
  base = directory / f'tokens-{fingerprint[:16]}'
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
        {'fingerprint': fingerprint, 'text_sha256': text_sha256},
      )
      if sources.have_changed():
        base.with_suffix('.json').unlink()
        raise UserError(
          f'{sources.description} changed while it was being encoded: start '
          'again when nothing writes to it'
        )
      _remove_leftovers(directory, base if tidy else None)
    except OSError as e:
      raise UserError(
        f'cannot write the token cache in {directory}: {e.strerror}; free '
        'some space or set --config.data.cache_dir to another directory'
      ) from e
  path = base.with_suffix('.bin')
  if not info.n_tokens:  # an empty file cannot be mapped
    return np.zeros(0, info.dtype), np.zeros(0, np.int64), info
  tokens = np.memmap(path, info.dtype, 'r', shape=(info.n_tokens,))
  ends = find_token(path, info, tokenizer.eos_id) if info.documents > 1 else []
  doc_starts = np.concatenate([[0], np.asarray(ends, np.int64) + 1])
  return tokens, doc_starts[doc_starts < info.n_tokens].astype(np.int64), info


def _read_valid(base: pathlib.Path, fingerprint: str) -> EncodedInfo | None:
  """The side file, if it and the tokens are whole and what we want."""
  try:
    data = json.loads(base.with_suffix('.json').read_text(encoding='utf-8'))
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
  except (OSError, ValueError, TypeError, KeyError):
    return None


def find_token(path, info: EncodedInfo, id: int) -> np.ndarray:
  """int64[n] indices of `id`; reads the file piece by piece, not by its map,
  whose pages would count as memory of this process."""
  found, size = [np.zeros(0, np.int64)], 1 << 20
  for start in range(0, info.n_tokens, size):
    offset = start * np.dtype(info.dtype).itemsize
    part = np.fromfile(path, info.dtype, size, offset=offset)
    found.append(np.flatnonzero(part == id) + start)
  return np.concatenate(found)


def encode_pieces(pieces, tokenizer, unknown: dict[str, int]):
  """Yields (ids int32[n], characters) for pieces of text.

  None, the end of a document, becomes the EOS id, of no characters.
  """
  eos = np.array([tokenizer.eos_id], np.int32)
  for piece in pieces:
    if piece is None:
      yield eos, 0
      continue
    add_unknown(tokenizer, piece, unknown)
    yield tokenizer.encode(piece), len(piece)


def add_unknown(tokenizer, text: str, unknown: dict[str, int]) -> None:
  """Adds the characters of `text` that encoding drops to the counts."""
  for char, count in tokenizer.count_unknown(text).items():
    unknown[char] = unknown.get(char, 0) + count


def _encode_file(
  sources, tokenizer, separator, encode, base, ids
) -> EncodedInfo:
  start = time.monotonic()
  stats, unknown = TextStats(), {}
  dtype = token_dtype(tokenizer.vocab_size)
  n_tokens = chars = crc = ends = 0
  size = sources.size
  show_bar = sys.stderr.isatty()
  if size >= BAR_BYTES and not show_bar:
    logger.info(f'encoding {size / 1e6:,.1f} MB of text; the tokens are cached')
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
  text = json.dumps(dataclasses.asdict(info), indent=1)
  write_atomic(base.with_suffix('.json'), text.encode())
  seconds = time.monotonic() - start
  if size >= BAR_BYTES:
    logger.info(
      f'encoded {size / 1e6:,.1f} MB into {n_tokens:,} tokens in '
      f'{seconds:.1f} s'
    )
  return info


def _remove_leftovers(directory: pathlib.Path, keep: pathlib.Path | None):
  """Old temporary files; with `keep` also every other token file."""
  remove_leftovers(directory)
  if keep:
    for path in directory.glob('tokens-*.*'):
      if path.stem != keep.name:
        path.unlink(missing_ok=True)
