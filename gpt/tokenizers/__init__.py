"""Text <-> token ids: the Tokenizer protocol, loading, building, streaming.

Other packages use any tokenizer through the protocol. The kinds are characters
(char), SentencePiece (sentencepiece), RandyGPT's vocab.json (randygpt) and
Hugging Face's tokenizer.json (huggingface).
"""

import codecs
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from gpt.errors import UserError, quoted
from gpt.fields import Fields, read_fields
from gpt.files import read_bytes, read_json
from gpt.tokenizers import gpt2_files
from gpt.tokenizers.base import (
  BOS,
  CHECKSUM,
  EOS,
  MAX_FILE_BYTES,
  MAX_VOCAB,
  META_FILE,
  TEMPLATE_FILE,
  content_sha256,
)
from gpt.tokenizers.char import CharTokenizer, build_char
from gpt.tokenizers.hf_directory import MODEL, read_tokenizer
from gpt.tokenizers.huggingface import (
  HF_FILE,
  HfTokenizer,
  build_hf,
  is_hf_json,
  marks_documents,
  read_hf_json,
)
from gpt.tokenizers.randygpt import VOCAB_FILE, RandyTokenizer, read_vocab_json
from gpt.tokenizers.sentencepiece import (
  MODEL_FILE,
  SentencePieceTokenizer,
  build_sentencepiece,
  read_sentencepiece,
)
from gpt.tokenizers.template_files import template_in

__all__ = [
  'BOS',
  'EOS',
  'CharTokenizer',
  'HfTokenizer',
  'RandyTokenizer',
  'SentencePieceTokenizer',
  'StreamDecoder',
  'Tokenizer',
  'build_tokenizer',
  'load_tokenizer',
]


# The files of each kind, beside tokenizer.json.
FILES = {
  'char': (),
  'sentencepiece': (MODEL_FILE,),
  'randygpt': (VOCAB_FILE,),
  'hf': (HF_FILE,),
}


class Tokenizer(Protocol):
  """The interface of all tokenizers; its methods are pure and thread-safe."""

  kind: str  # 'char' | 'sentencepiece' | 'randygpt' | 'hf'
  bos_id: int
  eos_id: int
  # Control tokens, which encode() never produces: name -> id.
  special_tokens: dict[str, int]
  # Ids that a sampler must ban: unk, pad and control tokens, but not EOS.
  unsampleable_ids: tuple[int, ...]
  # Size that training asked for; 0 if the tokenizer was not trained for a run.
  requested_vocab_size: int
  # Ids that the model expects before a text: BOS for some models, or none.
  prefix_ids: tuple[int, ...]
  # One space at the beginning of a decoded text is dropped (SentencePiece's
  # dummy prefix, which `encode` puts there).
  strips_space: bool
  # Jinja chat template of the model; '': conversations are in our own format
  # (gpt/tokenizers/chat_format.py), or the model has none.
  chat_template: str

  @property
  def vocab_size(self) -> int: ...

  @property
  def fingerprint(self) -> str:
    """sha256 (hex) of everything that affects encoding."""
    ...

  def encode(self, text: str) -> np.ndarray:
    """int32[n] ids, without BOS or EOS."""
    ...

  def encode_more(self, text: str) -> np.ndarray:
    """int32[n] ids of text that continues a text: no prefix is put before."""
    ...

  def decode(self, ids: ArrayLike) -> str:
    """Text of int[n] ids; control tokens have none."""
    ...

  def token_bytes(self, id: int) -> bytes:
    """UTF-8 bytes of one id (perhaps part of a character)."""
    ...

  def count_unknown(self, text: str) -> dict[str, int]:
    """Characters that encode() drops, with their counts."""
    ...

  def save(self, directory: str | os.PathLike[str]) -> None:
    """Writes a directory that load_tokenizer reads."""
    ...


class StreamDecoder:
  """Decodes one id at a time, in whole characters.

  The results of feed() and the final flush(), joined, equal decode() of all
  ids at once.

  Args:
    after: the id before the first; text that continues a text keeps the space
      that decode() drops at the beginning.
  """

  def __init__(self, tokenizer: Tokenizer, after: int | None = None) -> None:
    self._tokenizer = tokenizer
    self._utf8 = codecs.getincrementaldecoder('utf-8')('replace')
    continues = after is not None and tokenizer.token_bytes(after)
    self._strip = tokenizer.strips_space and not continues

  def feed(self, id: int) -> str:
    """Returns the characters that `id` completes, perhaps none."""
    data = self._tokenizer.token_bytes(int(id))
    if self._strip and data:
      self._strip = False
      data = data.removeprefix(b' ')
    return self._utf8.decode(data)

  def flush(self) -> str:
    """Returns U+FFFD if a character is still incomplete, else ''."""
    text = self._utf8.decode(b'', final=True)
    self._utf8.reset()
    return text


def build_tokenizer(
  kind: str,
  texts: Iterable[str],
  vocab_size: int,
  special_tokens: Sequence[str] = (),
) -> Tokenizer:
  """Builds a tokenizer from text.

  Args:
    kind: 'char' (ignores vocab_size), 'sentencepiece' or 'hf' (byte-level BPE
      as in microgpt).
    texts: pieces of text that end at line ends, without document separators.
    vocab_size: wanted number of ids, control tokens included.
    special_tokens: names of extra control tokens.

  Raises:
    UserError: unknown kind, empty text or an impossible vocab_size.
  """
  if kind == 'char':
    return build_char(texts, special_tokens)
  if kind == 'sentencepiece':
    return build_sentencepiece(texts, vocab_size, special_tokens)
  if kind == 'hf':
    return build_hf(texts, vocab_size, special_tokens)
  if kind == 'randygpt':
    raise UserError(
      'a RandyGPT vocabulary is read, not trained: give its vocab.json as '
      'data.tokenizer_path, or use data.tokenizer=sentencepiece'
    )
  raise UserError(
    f'unknown tokenizer {kind!r}: allowed are char, sentencepiece, randygpt, hf'
  )


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
  """Reads a tokenizer from a workdir, a tokenizer directory or a file.

  Args:
    path: a run's workdir (with tokenizer/), a directory with tokenizer.json
      (ours or Hugging Face's), vocab.json, spm.model or tokenizer.model, or one
      of these files.

  Raises:
    UserError: no such file, or not a tokenizer.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    for directory in (path / 'tokenizer', path):
      if os.path.lexists(directory / META_FILE):
        return _with_template(_load_directory(directory), directory)
    if gpt2_files.find_files(path):
      return read_tokenizer(path, guess=True)
    for name in (VOCAB_FILE, MODEL_FILE):
      if (path / name).is_file():
        return load_tokenizer(path / name)
    if (path / MODEL).is_file():
      return read_tokenizer(path)
    raise UserError(
      f'no tokenizer in {path}: expected tokenizer/{META_FILE} (a workdir), '
      f'{META_FILE}, {VOCAB_FILE} or {MODEL_FILE}'
    )
  if not path.exists():
    raise UserError(
      f'no such tokenizer: {path} (expected a workdir, a tokenizer directory, '
      'a vocab.json, a Hugging Face tokenizer.json or a SentencePiece model)'
    )
  if path.name == META_FILE:
    return _with_template(_load_directory(path.parent), path.parent)
  if path.suffix == '.json':
    spec = _parsed(path)
    if is_hf_json(spec):
      if marks_documents(spec):
        return read_hf_json(path)
      return read_tokenizer(path.parent, file=path.name, guess=True)
    if gpt2_files.find_files(path.parent):
      return read_tokenizer(path.parent, file='', guess=True)
    return read_vocab_json(path)
  return read_sentencepiece(path)


def _parsed(path: pathlib.Path) -> Any:
  """The file's JSON, or None if it is none."""
  try:
    return read_json(path)
  except UserError:
    return None


def _with_template(tokenizer: Tokenizer, directory: pathlib.Path) -> Tokenizer:
  """Adds the chat template that lies beside a tokenizer of a run, if any."""
  if (directory / TEMPLATE_FILE).is_file():
    tokenizer.chat_template = template_in(directory)
  return tokenizer


def _load_directory(directory: pathlib.Path) -> Tokenizer:
  meta_path = directory / META_FILE
  try:
    meta = read_fields(meta_path, max_bytes=MAX_FILE_BYTES)
    if is_hf_json(meta.values):
      ours = marks_documents(meta.values)
      return read_hf_json(meta_path) if ours else read_tokenizer(directory)
    # Ours has its kind, and the vocabulary beside it.
    of_run = directory.name == 'tokenizer' and (directory / VOCAB_FILE).exists()
    if 'vocab' in meta and 'kind' not in meta and not of_run:
      return read_vocab_json(meta_path)  # RandyGPT's own name for its file.
    kind = meta.choice('kind', FILES)
    wanted = meta.text(CHECKSUM, '')  # 0.2 wrote none.
    files = {
      name: read_bytes(directory / name, MAX_FILE_BYTES) for name in FILES[kind]
    }
    if wanted and wanted != content_sha256(meta.values, files):
      raise UserError(
        f'{META_FILE} or a file beside it has changed since it was written: '
        f'its {CHECKSUM} is no longer {quoted(wanted)}. Put the files back'
      )
    return _own(directory, kind, meta)
  except UserError as e:
    raise UserError(f'{directory}: {e}') from e


def _own(directory: pathlib.Path, kind: str, meta: Fields) -> Tokenizer:
  """The tokenizer that `save` wrote."""
  asked = meta.integer('requested_vocab_size', 0, MAX_VOCAB, 0)
  names = meta.items('special_tokens', (), of=str)
  if kind == 'char':
    return CharTokenizer(meta.items('chars', of=str), names)
  if kind == 'sentencepiece':
    meta.choice('model', (MODEL_FILE,))
    return read_sentencepiece(directory / MODEL_FILE, asked)
  if kind == 'hf':
    given = meta.mapping('foreign', {})
    foreign = {
      'bos': given.text('bos', None),
      'eos': given.text('eos', None),
      'vocab_size': given.integer('vocab_size', 0, MAX_VOCAB, 0),
      'add_bos': given.flag('add_bos', None),
    }
    return read_hf_json(directory / HF_FILE, asked, **foreign)
  return read_vocab_json(directory / VOCAB_FILE, names)
