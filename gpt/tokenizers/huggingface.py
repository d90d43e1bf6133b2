"""Hugging Face's tokenizer.json: microgpt's tokenizers and other models'.

The `tokenizers` library (extra: hf) reads these files and trains new ones as
microgpt does: byte-level BPE with the mark `<bos>` at both ends of a document
and control tokens at the ids 0, 1, 2, ... in the order given. Unlike
microgpt's, our vocabularies hold all 256 bytes, so that no text is lost.

Tokenizers of other programs (GPT-2, Llama, SmolLM2, Qwen3, ...) give the ids
that the library gives, with two exceptions: text never becomes a control token,
and characters that Unicode's form NFC spells otherwise (Qwen3) are decoded in
that form. One space is put before a text and removed again in decoding where
SentencePiece does so (Llama 2). text_pieces.py cuts long texts.
"""

import functools
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gpt.errors import MOST_QUOTED, UserError, quoted
from gpt.files import read_bytes
from gpt.tokenizers import hf_parts, text_pieces
from gpt.tokenizers.base import (
  BOS,
  EOS,
  MAX_FILE_BYTES,
  BaseTokenizer,
  check_special_tokens,
  count_of,
  replace_surrogates,
)
from gpt.tokenizers.hf_parts import byte_alphabet
from gpt.tokenizers.sentencepiece import TRAIN_BYTES, training_lines

# In a tokenizer directory tokenizer.json is our own file (with the kind).
HF_FILE = 'hf_tokenizer.json'
BATCH_PIECES = 64
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


def _ids(tokenizer: Any, pieces: list[str]) -> np.ndarray:
  """int32[n] ids of pieces of text; without offsets, which take longer."""
  encoded = tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
  ids = [np.array(one.ids, np.int32) for one in encoded]
  return ids[0] if len(ids) == 1 else np.concatenate(ids)


class HfTokenizer(BaseTokenizer):
  """A tokenizer.json; encode and decode are thread-safe.

  Without `bos` and `eos` it is one of ours or of microgpt: `<bos>` marks
  documents, and the names of control tokens are spelled as ours ('<|user|>').
  With them it is another program's, and the names stay as they are.

  Args:
    data: the file's bytes, kept unchanged.
    requested_vocab_size: see BaseTokenizer.
    bos, eos: the tokens that begin and end a document; one serves for both if
      the other is None.
    vocab_size: rows of the model's embedding; the ids above the tokenizer's
      are never sampled and have no text. 0: as many as the tokenizer has.
    add_bos: whether BOS begins every text; None: as the file says.

  Raises:
    UserError: the `tokenizers` library is missing; `data` is no tokenizer.json,
      is one that loses text, lacks `<bos>` or the named tokens, or has more
      tokens than the model.
  """

  kind = 'hf'

  def __init__(
    self,
    data: bytes,
    requested_vocab_size: int = 0,
    *,
    bos: str | None = None,
    eos: str | None = None,
    vocab_size: int = 0,
    add_bos: bool | None = None,
  ) -> None:
    with hf_parts.no_panic():
      self._read(data, requested_vocab_size, bos, eos, vocab_size, add_bos)

  def _read(
    self,
    data: bytes,
    requested_vocab_size: int,
    bos: str | None,
    eos: str | None,
    vocab_size: int,
    add_bos: bool | None,
  ) -> None:
    tokenizers = _library()
    hf_parts.check_before_reading(data)
    try:
      self._tokenizer = tokenizers.Tokenizer.from_str(data.decode('utf-8'))
      # Before anything is encoded: a few bytes may ask for 10^9 of padding.
      self._tokenizer.no_truncation()
      self._tokenizer.no_padding()
      # The library's own serialization has the fields that older files lack.
      spec = json.loads(self._tokenizer.to_str())
    except Exception as e:  # The library raises bare Exception.
      raise UserError(
        f'not a Hugging Face tokenizer.json: {str(e)[:MOST_QUOTED]}'
      ) from e
    self.data = data
    self.requested_vocab_size = requested_vocab_size
    hf_parts.check_readable(spec)
    self._foreign = {
      'bos': bos,
      'eos': eos,
      'vocab_size': vocab_size,
      'add_bos': add_bos,
    }
    self._is_foreign = bool(bos or eos)
    control = self._control_tokens(spec, bos, eos)
    self.prefix_ids = self._prefix(bos, add_bos)
    self._bytes = self._table(spec, control, vocab_size)
    special = {t['id'] for t in spec['added_tokens'] if t['special']}
    special |= {self.bos_id, self.eos_id}
    used = self._tokenizer.get_vocab(with_added_tokens=True).values()
    unused = set(range(len(self._bytes))) - set(used)
    self.unsampleable_ids = tuple(sorted((special | unused) - {self.eos_id}))
    self.normalizes = hf_parts.normalizes(spec)
    self.strips_space = hf_parts.strips_space(spec)
    self._has_prefix = hf_parts.has_prefix(spec)
    self._text_only(spec)
    self._unknown_token = spec['model'].get('unk_token') is not None
    self._missing = self._missing_bytes(spec)
    self._check_round_trip(control)

  def _control_tokens(
    self, spec: dict[str, Any], bos: str | None, eos: str | None
  ) -> dict[str, int]:
    """Sets bos_id, eos_id and special_tokens; returns {token: id}."""
    added = spec['added_tokens']
    control = {t['content']: t['id'] for t in added if t['special']}
    if not self._is_foreign:
      names = {rgpt_token(content): id for content, id in control.items()}
      if BOS not in names:
        shown = quoted(sorted(control)) if control else 'none'
        raise UserError(
          'this tokenizer.json has no document mark: a special token <bos> (or '
          f'{BOS}) is needed; its special tokens: {shown}'
        )
      self.bos_id = names[BOS]
      self.eos_id = names.get(EOS, self.bos_id)  # microgpt: <bos> at both ends.
      self.special_tokens = {BOS: self.bos_id, EOS: self.eos_id} | names
      return control
    white = {t['content'] for t in hf_parts.added_in_text(spec)}
    control |= {
      t['content']: t['id'] for t in added if t['content'] not in white
    }
    for name in filter(None, (bos, eos)):
      id = self._tokenizer.token_to_id(name)
      if id is None:
        shown = quoted(sorted(control)) if control else 'none'
        raise UserError(
          f'this tokenizer.json has no token {quoted(name)}, which should '
          f'begin or end a text; its added tokens: {shown}'
        )
      control[name] = id
    self.bos_id, self.eos_id = (
      control[str(n)] for n in (bos or eos, eos or bos)
    )
    self.special_tokens = {BOS: self.bos_id, EOS: self.eos_id} | control
    return control

  def _prefix(self, bos: str | None, add_bos: bool | None) -> tuple[int, ...]:
    """Ids before a text: those of the file's template, or BOS."""
    if not self._is_foreign:
      return ()
    if add_bos is not None:
      return (self.bos_id,) if add_bos and bos else ()
    ids = self._tokenizer.encode('a').ids
    inside = self._tokenizer.encode('a', add_special_tokens=False).ids
    starts = range(len(ids) - len(inside) + 1)
    n = next((i for i in starts if ids[i : i + len(inside)] == inside), 0)
    return tuple(ids[:n])

  def _table(
    self, spec: dict[str, Any], control: dict[str, int], rows: int
  ) -> list[bytes]:
    """Bytes of each id."""
    vocab = self._tokenizer.get_vocab(with_added_tokens=True)
    size = max(vocab.values()) + 1
    if not self._is_foreign and sorted(vocab.values()) != list(range(size)):
      raise UserError(
        f'this tokenizer.json gives {len(vocab)} tokens ids that are not '
        f'0 to {len(vocab) - 1}'
      )
    if rows and size > rows:
      raise UserError(
        f'the tokenizer does not fit the model: it has {size:,} tokens, the '
        f"model's embedding {rows:,} rows"
      )
    to_bytes = hf_parts.token_reader(spec)
    added = {t['id']: t for t in spec['added_tokens']}
    marks = {id for id, token in added.items() if not token['special']}
    silent = set(control.values()) - marks
    table = [b''] * max(size, rows)
    for token, id in vocab.items():
      if id not in silent:
        table[id] = (
          added[id]['content'].encode() if id in added else to_bytes(token)
        )
    return table

  def _text_only(self, spec: dict[str, Any]) -> None:
    """Makes names of control tokens inside a text ordinary text."""
    white = hf_parts.added_in_text(spec)
    marks = [t for t in spec['added_tokens'] if not t['special']]
    if self._is_foreign and len(marks) > len(white):
      # The library finds tokens that are not special in every text.
      spec = {**spec, 'added_tokens': white}
      self._tokenizer = _library().Tokenizer.from_str(json.dumps(spec))
    self._tokenizer.encode_special_tokens = True

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
    if self.normalizes:
      probe = unicodedata.normalize('NFC', probe)
    if self.strips_space and not self.decode(ids).startswith(' '):
      probe = probe.removeprefix(' ')  # The space served as the prefix.
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
    return self._encode(self._tokenizer, text)

  def encode_more(self, text: str) -> np.ndarray:
    """int32[n] ids of text that continues another: no space is put before."""
    return self._encode(self._continuing, text)

  def _encode(self, tokenizer: Any, text: str) -> np.ndarray:
    text = replace_surrogates(text)
    if not self._is_foreign and (self._missing is None or self._missing):
      known = {c: not self._is_unknown(c) for c in set(text)}
      if not all(known.values()):
        text = ''.join(c for c in text if known[c])
    first, *others = text_pieces.cut(text)
    found = [_ids(tokenizer, [first])]
    # Several at a time: an encoding takes far more memory than its ids.
    for i in range(0, len(others), BATCH_PIECES):
      found.append(_ids(self._continuing, others[i : i + BATCH_PIECES]))
    return np.concatenate(found)

  @functools.cached_property
  def _continuing(self) -> Any:
    """The library's tokenizer without SentencePiece's prefix."""
    if not self._has_prefix:
      return self._tokenizer
    spec = hf_parts.without_prefix(json.loads(self._tokenizer.to_str()))
    tokenizer = _library().Tokenizer.from_str(json.dumps(spec))
    tokenizer.encode_special_tokens = True
    return tokenizer

  def count_unknown(self, text: str) -> dict[str, int]:
    """Characters of `text` without tokens, with their counts."""
    if self._missing is not None and not self._missing:
      return {}
    text = replace_surrogates(text)
    return count_of(text, {c for c in set(text) if self._is_unknown(c)})

  def _files(self) -> dict[str, bytes]:
    return {HF_FILE: self.data}

  def _meta(self) -> dict[str, Any]:
    foreign = {'foreign': self._foreign} if self._is_foreign else {}
    return {'file': HF_FILE, **foreign}


def is_hf_json(meta: Any) -> bool:
  """Whether parsed JSON is a Hugging Face tokenizer."""
  return isinstance(meta, dict) and 'model' in meta and 'added_tokens' in meta


def marks_documents(spec: Mapping[str, Any]) -> bool:
  """Whether a tokenizer.json has the mark <bos>, as ours and microgpt's do."""
  return any(
    isinstance(token, dict)
    and token.get('special')
    and rgpt_token(str(token.get('content'))) == BOS
    for token in spec['added_tokens'] or ()
  )


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
  path: str | os.PathLike[str], requested_vocab_size: int = 0, **foreign: Any
) -> HfTokenizer:
  """Reads a tokenizer.json; UserError names the file and the fault.

  Args:
    foreign: more arguments of HfTokenizer.
  """
  data = read_bytes(path, MAX_FILE_BYTES)
  try:
    return HfTokenizer(data, requested_vocab_size, **foreign)
  except UserError as e:
    raise UserError(f'{path}: {e}') from e
