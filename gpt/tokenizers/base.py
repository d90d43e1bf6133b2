"""Base of the tokenizers: a table of bytes per id, files, a fingerprint.

Decoding is the same for all kinds: the bytes of the ids are joined and read as
UTF-8. `StreamDecoder` does this one id at a time, so streamed text always
equals text decoded at once.
"""

import collections
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gpt.errors import UserError, quoted
from gpt.files import write_atomic

BOS = '<|bos|>'
EOS = '<|eos|>'
META_FILE = 'tokenizer.json'
CHECKSUM = 'sha256'  # Of everything else in the directory.
MAX_VOCAB = 1 << 22  # Ids; the largest vocabularies in use have 2^18.
MAX_FILE_BYTES = 64 << 20  # Of one file of a tokenizer.
TEMPLATE_FILE = 'chat_template.jinja'


def iter_lines(text: str) -> Iterator[str]:
  """Lines with their '\\n' (str.splitlines also splits at ten others)."""
  start = 0
  while start < len(text):
    end = text.find('\n', start) + 1 or len(text)
    yield text[start:end]
    start = end


def replace_surrogates(text: str) -> str:
  """Replaces lone surrogates, which UTF-8 cannot encode, by U+FFFD."""
  if text.isascii():
    return text
  return text.encode('utf-16-le', 'surrogatepass').decode(
    'utf-16-le', 'replace'
  )


def count_of(text: str, chars: set[str]) -> dict[str, int]:
  """Counts each of `chars` in a text, in one pass; sorted."""
  if not chars:
    return {}
  return dict(
    sorted(collections.Counter(c for c in text if c in chars).items())
  )


def check_special_tokens(names: Iterable[str]) -> tuple[str, ...]:
  """The names of extra control tokens; UserError for empty or equal ones."""
  names = tuple(names)
  if len(set(names)) != len(names) or not all(names):
    raise UserError(
      f'special tokens must be distinct and non-empty: {quoted(names)}'
    )
  if reserved := {BOS, EOS} & set(names):
    raise UserError(f'every tokenizer already has {sorted(reserved)}')
  return names


def content_sha256(meta: Mapping[str, Any], files: Mapping[str, bytes]) -> str:
  """sha256 (hex) of tokenizer.json, but for this entry, and its files."""
  meta = {name: x for name, x in meta.items() if name != CHECKSUM}
  digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
  for name, data in sorted(files.items()):
    digest.update(f'{name}\0{len(data)}\0'.encode() + data)
  return digest.hexdigest()


class BaseTokenizer:
  """Base class; subclasses set the fields and implement `encode`.

  Attributes:
    kind, bos_id, eos_id, special_tokens, unsampleable_ids: see Tokenizer.
    requested_vocab_size: size asked for in training; a small text gives less.
    prefix_ids, strips_space: see Tokenizer.
    chat_template: see Tokenizer.
    _bytes: bytes of each id; b'' for control tokens.
  """

  kind: str
  bos_id: int
  eos_id: int
  special_tokens: dict[str, int]
  unsampleable_ids: tuple[int, ...]
  requested_vocab_size: int = 0
  prefix_ids: tuple[int, ...] = ()
  strips_space: bool = False
  chat_template: str = ''
  _bytes: list[bytes]

  @property
  def vocab_size(self) -> int:
    """Number of ids, control tokens included."""
    return len(self._bytes)

  def token_bytes(self, id: int) -> bytes:
    """UTF-8 bytes of `id`; b'' for control tokens."""
    if not 0 <= id < len(self._bytes):
      raise UserError(
        f'token id {id} is outside the vocabulary: allowed are 0 to '
        f'{len(self._bytes) - 1}'
      )
    return self._bytes[id]

  def decode(self, ids: ArrayLike) -> str:
    """Text of int[n] ids; invalid UTF-8 becomes U+FFFD, control tokens ''."""
    try:
      ids = np.asarray(ids, dtype=np.int64).reshape(-1)
    except OverflowError:
      ids = np.asarray(ids, dtype=object).reshape(-1)
      self.token_bytes(max(ids.tolist(), key=abs))
      raise
    if ids.size and (ids.min() < 0 or ids.max() >= len(self._bytes)):
      bad = int(ids[(ids < 0) | (ids >= len(self._bytes))][0])
      self.token_bytes(bad)
    table = self._bytes
    data = b''.join([table[i] for i in ids.tolist()])
    if self.strips_space:
      data = data.removeprefix(b' ')
    return data.decode('utf-8', 'replace')

  def encode(self, text: str) -> np.ndarray:
    """int32[n] ids, without BOS or EOS."""
    raise NotImplementedError

  def encode_more(self, text: str) -> np.ndarray:
    """int32[n] ids of text that continues a text."""
    return self.encode(text)

  def count_unknown(self, text: str) -> dict[str, int]:
    """Characters of `text` that encode() drops, with their counts."""
    del text
    return {}

  def _meta(self) -> dict[str, Any]:
    """Fields of tokenizer.json beside 'kind' that affect encoding."""
    raise NotImplementedError

  def _files(self) -> dict[str, bytes]:
    """Other files of the tokenizer: name -> content."""
    return {}

  @property
  def fingerprint(self) -> str:
    """sha256 (hex) of everything that affects the results of encode()."""
    digest = hashlib.sha256()
    meta = {'kind': self.kind, **self._meta()}
    parts = {'meta': json.dumps(meta, sort_keys=True).encode()}
    for name, data in sorted({**parts, **self._files()}.items()):
      digest.update(f'{name}\0{len(data)}\0'.encode() + data)
    return digest.hexdigest()

  def save(self, directory: str | os.PathLike[str]) -> None:
    """Writes the tokenizer's files, tokenizer.json last: it makes it valid."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in self._files().items():
      write_atomic(directory / name, data)
    if self.chat_template:
      write_atomic(directory / TEMPLATE_FILE, self.chat_template.encode())
    meta = {'kind': self.kind, 'vocab_size': self.vocab_size, **self._meta()}
    if self.requested_vocab_size:
      meta['requested_vocab_size'] = self.requested_vocab_size
    meta[CHECKSUM] = content_sha256(meta, self._files())
    text = json.dumps(meta, indent=1) + '\n'
    write_atomic(directory / META_FILE, text.encode())
