"""Token files of other programs, read as they are (token_headers.py)."""

import hashlib
import json
import logging
import os
import pathlib
import re
from typing import Any

import numpy as np

from gpt.data import token_headers, token_shards
from gpt.data.file_kinds import TOKENS, check_no_hole
from gpt.data.sources import Source, Sources
from gpt.data.text_dataset import Corpus
from gpt.data.text_reader import TextStats
from gpt.data.token_cache import EncodedInfo
from gpt.data.token_headers import TokenFile
from gpt.data.token_shards import TokenShards
from gpt.errors import UserError
from gpt.files import write_atomic
from gpt.tokenizers import Tokenizer

logger = logging.getLogger(__name__)

VALIDATION = re.compile(r'(^|[^a-z])val(id|idation)?([^a-z]|$)')
SCAN_TOKENS = 1 << 22


def are_tokens(sources: Sources) -> bool:
  """Whether a corpus is token files.

  Raises:
    UserError: some of its files are, and others are not.
  """
  kinds = {item.kind == TOKENS for item in sources.items}
  if len(kinds) > 1:
    tokens = next(i.name for i in sources.items if i.kind == TOKENS)
    text = next(i.name for i in sources.items if i.kind != TOKENS)
    raise UserError(
      f'data.path names both token files ({tokens}) and text ({text}): name '
      'one kind'
    )
  return kinds == {True}


def open_tokens(
  sources: Sources,
  tokenizer: Tokenizer,
  directory: str | os.PathLike,
  val_fraction: float,
) -> Corpus:
  """A corpus of token files, which are mapped and not copied.

  Files named val (val.bin, fineweb_val_000000.bin) validate; without any, the
  last val_fraction of the tokens.

  Args:
    tokenizer: the one that made the ids.
    directory: keeps what one look at all ids found.

  Raises:
    UserError: a file is damaged or has ids that the tokenizer has not.
  """
  items = sorted(sources.items, key=_validates)
  files = [token_headers.read(item, tokenizer.vocab_size) for item in items]
  if len({file.dtype for file in files}) > 1:
    raise UserError(
      'the token files hold ids of 2 and of 4 bytes: name files of one kind'
    )
  tokens = TokenShards(
    [(f.path, f.count, f.offset) for f in files], files[0].dtype
  )
  ends = _scan(files, tokens, tokenizer, pathlib.Path(directory))
  starts = np.concatenate([[0], ends + 1]).astype(np.int64)
  starts = starts[starts < len(tokens)]
  n_train = int(len(tokens) * (1 - val_fraction))
  held_out = [
    file.count for item, file in zip(items, files) if _validates(item)
  ]
  if held_out and len(held_out) < len(files):
    n_train = len(tokens) - sum(held_out)
    logger.info(
      f'data: {len(held_out)} of {len(files)} token files validate, by their '
      'names; data.val_fraction is not used'
    )
  info = EncodedInfo(
    fingerprint='',
    text_sha256=sources.sha256,
    n_tokens=len(tokens),
    dtype=files[0].dtype,
    crc32=0,
    chars=0,
    documents=len(starts),
    unknown={},
    stats=TextStats(bytes=sources.size),
  )
  return Corpus(
    tokens, starts, n_train, sources.description, info, sources.kind
  )


def _validates(source: Source) -> bool:
  return bool(VALIDATION.search(os.path.basename(source.name).lower()))


def _scan(
  files: list[TokenFile],
  tokens: TokenShards,
  tokenizer: Tokenizer,
  directory: pathlib.Path,
) -> np.ndarray:
  """int64[n]: where documents end; checks all ids once, and remembers that."""
  stats = [os.stat(file.path) for file in files]
  key: list[Any] = [[s.st_size, s.st_mtime_ns] for s in stats]
  key += [tokenizer.eos_id, tokenizer.vocab_size]
  name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
  path = directory / f'tokens-{name}.ends'
  sealed = directory / f'tokens-{name}.json'
  try:
    crc = token_shards.read_sealed(sealed)['crc32']
    if token_shards.crc_of(path) == crc:
      return np.fromfile(path, '<i8')
  except (UserError, OSError, KeyError):
    pass
  found, most, where = [np.zeros(0, np.int64)], -1, files[0].path
  for file in files:
    first = 0
    while first < file.count:
      n = min(SCAN_TOKENS, file.count - first)
      at = file.offset + first * tokens.dtype.itemsize
      part = np.fromfile(file.path, tokens.dtype, n, offset=at)
      check_no_hole(str(file.path), part.tobytes())
      if int(part.max()) > most:
        most, where = int(part.max()), file.path
      before = sum(f.count for f in files[: files.index(file)])
      found.append(np.flatnonzero(part == tokenizer.eos_id) + before + first)
      first += n
  if most >= tokenizer.vocab_size:
    raise UserError(
      f'{where} holds the token {most:,}, but the tokenizer has only '
      f'{tokenizer.vocab_size:,}: name the one that made the file with '
      '--config.data.tokenizer_path'
    )
  ends = np.concatenate(found).astype('<i8')
  directory.mkdir(parents=True, exist_ok=True)
  write_atomic(path, ends.tobytes())
  token_shards.write_sealed(sealed, {'crc32': token_shards.crc_of(path)})
  return ends
