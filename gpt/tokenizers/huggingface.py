"""Hugging Face's tokenizer.json, the tokenizer of microgpt's models.

The `tokenizers` library (extra: hf) reads these files and trains new ones as
microgpt does: byte-level BPE with the mark `<bos>` at both ends of a document
and control tokens at the ids 0, 1, 2, ... in the order given. Unlike
microgpt's, our vocabularies hold all 256 bytes, so that no text is lost.
"""

import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from gpt.errors import UserError
from gpt.files import read_bytes
from gpt.tokenizers.base import (
  BOS,
  EOS,
  MAX_FILE_BYTES,
  BaseTokenizer,
  check_special_tokens,
  replace_surrogates,
)
from gpt.tokenizers.sentencepiece import TRAIN_BYTES, training_lines

# In a tokenizer directory tokenizer.json is our own file (with the kind).
HF_FILE = 'hf_tokenizer.json'
PROBE = ' a\n\n\tb  e\u0301\U0001f642\x00\r\n12 <bos><|bos|>'


def _library() -> Any:
  try:
    import tokenizers
  except ImportError as e:
    raise UserError(
      'a Hugging Face tokenizer needs the `tokenizers` library: '
      "pip install 'rgpt[hf]' (or: pip install tokenizers)"
    ) from e
  return tokenizers


def rgpt_token(content: str) -> str:
  """'<user>' -> '<|user|>'; other names stay as they are."""
  match = re.fullmatch(r'<(\w+)>', content)
  return f'<|{match[1]}|>' if match else content


def microgpt_token(name: str) -> str:
  """'<|user|>' -> '<user>', microgpt's spelling."""
  match = re.fullmatch(r'<\|(\w+)\|>', name)
  return f'<{match[1]}>' if match else name


@functools.cache
def byte_alphabet() -> dict[str, int]:
  """{character: byte} of byte-level BPE (GPT-2's bytes_to_unicode).

  Printable bytes are represented by themselves, the others by U+0100 and the
  following characters, in order.
  """
  plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [b for b in range(256) if b not in plain]
  table = {chr(b): b for b in plain}
  return table | {chr(256 + i): b for i, b in enumerate(others)}


class HfTokenizer(BaseTokenizer):
  """A tokenizer.json; encode and decode are thread-safe.

  Args:
    data: the file's bytes, kept unchanged.
    requested_vocab_size: see BaseTokenizer.

  Raises:
    UserError: the `tokenizers` library is missing; `data` is no tokenizer.json,
      is one that changes text (by a normalizer, a prefix space), or has no
      `<bos>`.
  """

  kind = 'hf'

  def __init__(self, data: bytes, requested_vocab_size: int = 0) -> None:
    tokenizers = _library()
    try:
      self._tokenizer = tokenizers.Tokenizer.from_str(data.decode('utf-8'))
      # The library's own serialization has the fields that older files lack.
      spec = json.loads(self._tokenizer.to_str())
    except Exception as e:  # The library raises bare Exception.
      raise UserError(f'not a Hugging Face tokenizer.json: {e}') from e
    # Names of control tokens inside a text are encoded as text.
    self._tokenizer.encode_special_tokens = True
    self._tokenizer.no_truncation()
    self._tokenizer.no_padding()
    self.data = data
    self.requested_vocab_size = requested_vocab_size
    _check_lossless_parts(spec)
    control = {
      t['content']: t['id'] for t in spec['added_tokens'] if t['special']
    }
    names = {rgpt_token(content): id for content, id in control.items()}
    if BOS not in names:
      raise UserError(
        'this tokenizer.json has no document mark: a special token <bos> (or '
        f'{BOS}) is needed; its special tokens: {sorted(control) or "none"}'
      )
    self.bos_id = names[BOS]
    self.eos_id = names.get(EOS, self.bos_id)  # microgpt: <bos> at both ends.
    self.special_tokens = {BOS: self.bos_id, EOS: self.eos_id} | names
    self.unsampleable_ids = tuple(sorted(set(control.values()) - {self.eos_id}))
    self._bytes = self._table(spec, set(control.values()))
    self._unknown_token = spec['model'].get('unk_token') is not None
    self._missing = self._missing_bytes(spec)
    self._check_round_trip(control)

  def _table(self, spec: dict[str, Any], control: set[int]) -> list[bytes]:
    """Bytes of each id."""
    vocab = self._tokenizer.get_vocab(with_added_tokens=True)
    if sorted(vocab.values()) != list(range(len(vocab))):
      raise UserError(
        f'this tokenizer.json gives {len(vocab)} tokens ids that are not '
        f'0 to {len(vocab) - 1}'
      )
    to_bytes = _token_reader(spec)
    added = {t['id']: t['content'] for t in spec['added_tokens']}
    table = [b''] * len(vocab)
    for token, id in vocab.items():
      if id not in control:
        table[id] = added[id].encode() if id in added else to_bytes(token)
    return table

  def _missing_bytes(self, spec: dict[str, Any]) -> frozenset[int] | None:
    """Bytes without a token, or None for vocabularies of whole characters."""
    if self._unknown_token:
      return frozenset()
    single = {b[0] for b in self._bytes if len(b) == 1}
    byte_level = spec['decoder']['type'] == 'ByteLevel'
    if byte_level or spec['model'].get('byte_fallback'):
      return frozenset(range(256)) - single
    self._characters = frozenset(
      b.decode() for b in self._bytes if b and len(b.decode()) == 1
    )
    return None

  def _check_round_trip(self, control: dict[str, int]) -> None:
    probe = ''.join(c for c in PROBE if not self._is_unknown(c))
    ids = self.encode(PROBE).tolist()
    if set(ids) & set(control.values()) and not self._unknown_token:
      raise UserError(
        'this tokenizer.json turns text into control tokens: its special '
        'tokens must not be reachable by merges'
      )
    if self.decode(ids) != probe and not self._unknown_token:
      raise UserError(
        'this tokenizer.json does not reproduce the text it encodes; train '
        'one with data.tokenizer=hf'
      )

  def _is_unknown(self, char: str) -> bool:
    if self._missing is None:
      return char not in self._characters
    return bool(self._missing) and not self._missing.isdisjoint(char.encode())

  def encode(self, text: str) -> np.ndarray:
    """int32[n] ids; characters without tokens are dropped."""
    text = replace_surrogates(text)
    if self._missing is None or self._missing:
      known = {c: not self._is_unknown(c) for c in set(text)}
      if not all(known.values()):
        text = ''.join(c for c in text if known[c])
    encoding = self._tokenizer.encode(text, add_special_tokens=False)
    return np.array(encoding.ids, np.int32)

  def count_unknown(self, text: str) -> dict[str, int]:
    """Characters of `text` without tokens, with their counts."""
    text = replace_surrogates(text)
    unknown = sorted(c for c in set(text) if self._is_unknown(c))
    return {c: text.count(c) for c in unknown}

  def _files(self) -> dict[str, bytes]:
    return {HF_FILE: self.data}

  def _meta(self) -> dict[str, Any]:
    return {'file': HF_FILE}


def _check_lossless_parts(spec: dict[str, Any]) -> None:
  """Raises UserError for parts of a tokenizer that change the text."""
  problem = ''
  steps = spec['pre_tokenizer'] or {}
  for step in steps.get('pretokenizers', [steps]):
    if step.get('add_prefix_space') and step['type'] == 'ByteLevel':
      problem = 'puts a space before the text (add_prefix_space)'
    elif step.get('behavior', 'Isolated').lower() == 'removed':
      problem = 'removes what it splits the text at'
    elif step.get('type') not in (None, 'ByteLevel', 'Split', 'Digits'):
      problem = f'has a pre-tokenizer that may lose text ({step["type"]})'
  if spec['normalizer'] is not None:
    problem = f'changes the text first ({spec["normalizer"]["type"]})'
  if spec['model']['type'] != 'BPE' or spec['model'].get('dropout'):
    problem = f'is not plain BPE but {spec["model"]["type"]}'
  if problem:
    raise UserError(
      f'this tokenizer.json {problem}: only lossless BPE can be read'
    )


def _token_reader(spec: dict[str, Any]) -> Callable[[str], bytes]:
  """The function from a token's text to its bytes, as the decoder has it."""
  decoder: dict[str, Any] = spec['decoder'] or {'type': 'none'}
  steps = [step['type'] for step in decoder.get('decoders', [decoder])]
  if steps == ['ByteLevel']:
    alphabet = byte_alphabet()

    def read(token: str) -> bytes:
      if all(c in alphabet for c in token):
        return bytes(alphabet[c] for c in token)
      return token.encode()

    return read
  if steps in (['Fuse'], ['ByteFallback', 'Fuse']):

    def read(token: str) -> bytes:
      byte = re.fullmatch(r'<0x([0-9A-F]{2})>', token)
      if byte and 'ByteFallback' in steps:
        return bytes([int(byte[1], 16)])
      return token.encode()

    return read
  raise UserError(
    f'this tokenizer.json has the decoder {steps}: allowed are ByteLevel, '
    'Fuse, and ByteFallback with Fuse'
  )


def is_hf_json(meta: Any) -> bool:
  """Whether parsed JSON is a Hugging Face tokenizer."""
  return isinstance(meta, dict) and 'model' in meta and 'added_tokens' in meta


def build_hf(
  texts: Iterable[str],
  vocab_size: int,
  special_tokens: Sequence[str] = (),
  max_bytes: int = TRAIN_BYTES,
) -> HfTokenizer:
  """Trains byte-level BPE.

  Args:
    texts: pieces of text that end at line ends.
    vocab_size: wanted ids, control tokens and 256 bytes included; a small text
      gives fewer.
    special_tokens: extra control tokens; their ids follow that of BOS, 0.
    max_bytes: larger texts are sampled by line.

  Raises:
    UserError: no `tokenizers` library, no text, or vocab_size too small.
  """
  tokenizers = _library()
  names = [
    microgpt_token(n) for n in (BOS, *check_special_tokens(special_tokens))
  ]
  least = len(names) + 256
  if vocab_size < least:
    raise UserError(
      f'cannot train a tokenizer with vocab_size={vocab_size}: the control '
      f'tokens and bytes alone take {least}; try {least + 256} or more'
    )
  lines = training_lines(texts, max_bytes)
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[tokenizers.AddedToken(n, special=True) for n in names],
    initial_alphabet=sorted(byte_alphabet()),
    show_progress=False,
  )
  tokenizer.train_from_iterator(map(replace_surrogates, lines), trainer)
  return HfTokenizer(tokenizer.to_str().encode(), vocab_size)


def read_hf_json(
  path: str | os.PathLike[str], requested_vocab_size: int = 0
) -> HfTokenizer:
  """Reads a tokenizer.json; UserError names the file and the fault."""
  data = read_bytes(path, MAX_FILE_BYTES)
  try:
    return HfTokenizer(data, requested_vocab_size)
  except UserError as e:
    raise UserError(f'{path}: {e}') from e
