"""GGUF's tokenizer metadata <-> our tokenizers.

Model `gpt2` is byte-level BPE: tokens, types, merges, and the name of the rule
that cuts text into words (`pre`). Model `llama` is SentencePiece: pieces and
scores, from which the merges follow. Character vocabularies are byte-level BPE
whose merges join the UTF-8 bytes of each character.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpt.errors import UserError, quoted
from gpt.formats import huggingface
from gpt.formats.gguf import words
from gpt.tokenizers import (
  CharTokenizer,
  HfTokenizer,
  SentencePieceTokenizer,
  Tokenizer,
  hf_parts,
  sentencepiece_json,
)
from gpt.tokenizers.base import BOS, EOS
from gpt.tokenizers.chat_format import (
  has_chat_tokens,
  is_chat_tokenizer,
  stop_ids,
)
from gpt.tokenizers.hf_parts import bpe_spec, byte_alphabet
from gpt.tokenizers.sentencepiece import SPACE
from gpt.tokenizers.sentencepiece_json import (
  BYTE,
  CONTROL,
  NORMAL,
  UNKNOWN,
  UNUSED,
  USER_DEFINED,
)

TYPES = (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE)
OUR_BOS = (BOS, '<bos>')  # Our tokenizers and microgpt's.


class Metadata:
  """The entries 'tokenizer.*', each of its type; errors name the file."""

  def __init__(self, path: pathlib.Path, metadata: Mapping[str, Any]) -> None:
    self.path, self._metadata = path, metadata
    self.architecture = metadata.get('general.architecture')

  def wrong(self, problem: str) -> UserError:
    """The error about a tokenizer that cannot be used."""
    return UserError(f'{self.path}: the tokenizer {problem}')

  def get(self, key: str, kind: type, default: Any) -> Any:
    """tokenizer.KEY, which must be a `kind` if it is there."""
    value = self._metadata.get(f'tokenizer.{key}')
    if value is None:
      return default
    if type(value) is not kind:
      raise self.wrong(f'has tokenizer.{key} = {str(value)[:80]}')
    return value

  def strings(self, key: str) -> list[str]:
    """An array of strings; [] if there is none."""
    value = self.get(key, list, [])
    return value

  def numbers(self, key: str, count: int) -> np.ndarray | None:
    """An array of `count` numbers; None if there is none."""
    value = self.get(key, np.ndarray, None)
    if value is not None and len(value) != count:
      raise self.wrong(f'has {count} tokens, but {len(value)} in {key}')
    return value

  def id(self, name: str, count: int) -> int:
    """tokenizer.ggml.NAME_token_id, below `count`; -1 if there is none."""
    id = self.get(f'ggml.{name}_token_id', int, -1)
    if not -1 <= id < count:
      raise self.wrong(f'has {count} tokens and {name}_token_id {id}')
    return id


# --- reading


def chat_template(
  path: pathlib.Path, metadata: Mapping[str, Any], tokenizer: Tokenizer
) -> str:
  """The Jinja chat template; '' if there is none, or if it is our format's."""
  entries = Metadata(path, metadata)
  found = entries.get('chat_template', str, '')
  if found and has_chat_tokens(tokenizer):
    tokens = entries.strings('ggml.tokens')
    names = {n: tokens[id] for n, id in tokenizer.special_tokens.items()}
    return '' if found == huggingface.chat_template(names) else found
  return found


def read_tokenizer(
  path: pathlib.Path, metadata: Mapping[str, Any]
) -> Tokenizer:
  """The tokenizer of a GGUF file; its size is that of the token list.

  Raises:
    UserError: a model or rule that rgpt lacks, by its name; inconsistent lists.
  """
  entries = Metadata(path, metadata)
  model = entries.get('ggml.model', str, '')
  tokens = entries.strings('ggml.tokens')
  if not tokens:
    raise entries.wrong('has no tokens (tokenizer.ggml.tokens)')
  if len(set(tokens)) != len(tokens):
    raise entries.wrong('has a token twice')
  given = entries.numbers('ggml.token_type', len(tokens))
  types = [NORMAL] * len(tokens) if given is None else given.tolist()
  if unknown := set(types) - {*TYPES}:
    raise entries.wrong(f'has tokens of the unknown types {sorted(unknown)}')
  if model == 'gpt2':
    found = _read_char(tokens, types)
    if found is not None:
      return found
    data, always_bos = _read_byte_level(entries, tokens, types)
  elif model == 'llama':
    data, always_bos = _read_sentencepiece(entries, tokens, types), True
  else:
    raise entries.wrong(
      f'is of the model {quoted(model)}, which rgpt lacks; known are gpt2 '
      'and llama'
    )
  bos, eos = (entries.id(name, len(tokens)) for name in ('bos', 'eos'))
  try:
    if bos >= 0 and tokens[bos] in OUR_BOS:
      return HfTokenizer(data)
    return HfTokenizer(
      data,
      bos=tokens[bos] if bos >= 0 else None,
      eos=tokens[eos] if eos >= 0 else None,
      vocab_size=len(tokens),
      add_bos=entries.get('ggml.add_bos_token', bool, always_bos),
    )
  except UserError as e:
    raise UserError(f'{path}: {e}') from e


def _read_byte_level(
  entries: Metadata, tokens: list[str], types: list[int]
) -> tuple[bytes, bool]:
  """(tokenizer.json, llama.cpp's default of add_bos_token)."""
  name = entries.get('ggml.pre', str, '')
  if not name and entries.architecture == 'gpt2':
    name = 'gpt-2'  # Files older than the key.
  rule = words.rule(name)
  if rule is None:
    raise entries.wrong(
      f'cuts text into words by the rule {quoted(name)} (tokenizer.ggml.pre), '
      f'which rgpt lacks; known are {", ".join(words.names())}'
    )
  known, merges = set(tokens), []
  for merge in entries.strings('ggml.merges'):
    left, _, right = merge[1:].partition(' ')
    left = merge[:1] + left
    # A merge that gives no token has no effect; files without merges need one.
    if known.issuperset((left, right, left + right)):
      merges.append([left, right])
  added = [
    hf_parts.added_token(id, tokens[id], type != USER_DEFINED)
    for id, type in enumerate(types)
    if type in (CONTROL, UNKNOWN, USER_DEFINED)
  ]
  # Added tokens behind all others stay out of the model, as in Llama 3's file,
  # where a word that is a token is taken whole.
  last = max((i for i, type in enumerate(types) if type == NORMAL), default=-1)
  vocab = {
    token: id
    for id, (token, type) in enumerate(zip(tokens, types))
    if type != UNUSED and id <= last
  }
  spec = bpe_spec(
    vocab,
    merges,
    added,
    normalizer=rule.normalizer,
    pre_tokenizer=rule.pre_tokenizer,
    decoder=words.BYTE_LEVEL,
    ignore_merges=rule.ignore_merges,
  )
  return json.dumps(spec, ensure_ascii=False).encode(), rule.ignore_merges


def _read_sentencepiece(
  entries: Metadata, tokens: list[str], types: list[int]
) -> bytes:
  scores = entries.numbers('ggml.scores', len(tokens))
  if scores is None:
    raise entries.wrong('has no scores (tokenizer.ggml.scores)')
  unknown = entries.id('unknown', len(tokens))
  if unknown < 0 and UNKNOWN in types:
    unknown = types.index(UNKNOWN)
  pieces = sentencepiece_json.Pieces(
    tokens,
    scores.astype(float).tolist(),
    types,
    bos=-1,
    eos=-1,
    unknown=unknown,
    dummy_prefix=entries.get('ggml.add_space_prefix', bool, True),
  )
  return sentencepiece_json.to_tokenizer_json(pieces)


def _read_char(tokens: list[str], types: list[int]) -> CharTokenizer | None:
  """The character vocabulary that `_char` wrote; None if it is none."""
  n = types.count(NORMAL)
  layout = [CONTROL] * 2 + [NORMAL] * n + [CONTROL] * (len(types) - n - 2)
  if tokens[:2] != [BOS, EOS] or types != layout or not n:
    return None
  alphabet = byte_alphabet()
  try:
    chars = [
      bytes(alphabet[c] for c in token).decode() for token in tokens[2 : 2 + n]
    ]
  except (KeyError, UnicodeDecodeError):
    return None
  if any(len(c) != 1 for c in chars) or chars != sorted(chars):
    return None
  return CharTokenizer(chars, tokens[2 + n :])


# --- writing


def tokenizer_keys(tokenizer: Tokenizer) -> dict[str, Any]:
  """The metadata from which llama.cpp makes a tokenizer with the same ids.

  It names the tokens that begin and end a text and a reply, and holds the chat
  template: the tokenizer's own, or one for our format of conversations.

  Raises:
    UserError: llama.cpp has no such tokenizer.
  """
  match tokenizer:
    case CharTokenizer():
      keys = _char(tokenizer)
    case SentencePieceTokenizer():
      keys = _pieces(_proto_pieces(tokenizer))
      for name, id in reversed(tokenizer.special_tokens.items()):
        keys['ggml.tokens'][id] = name
    case HfTokenizer():
      keys = _hf(tokenizer)
    case _:
      raise _impossible(
        f'it has none for tokenizers of the kind {tokenizer.kind}'
      )
  tokens = keys['ggml.tokens']
  if len(set(tokens)) != len(tokens):
    raise _impossible('two ids have the same text')
  keys |= {
    'ggml.bos_token_id': tokenizer.bos_id,
    'ggml.eos_token_id': tokenizer.eos_id,
    'ggml.add_bos_token': tokenizer.prefix_ids == (tokenizer.bos_id,),
    'ggml.add_eos_token': False,
  }
  if is_chat_tokenizer(tokenizer):
    keys['ggml.eot_token_id'] = stop_ids(tokenizer)[0]
    names = {n: tokens[id] for n, id in tokenizer.special_tokens.items()}
    keys['chat_template'] = huggingface.template_text(tokenizer, names)
  return {f'tokenizer.{key}': value for key, value in keys.items()}


def _impossible(reason: str) -> UserError:
  return UserError(f'llama.cpp cannot have this tokenizer: {reason}')


def _char(tokenizer: CharTokenizer) -> dict[str, Any]:
  byte_chars = {byte: char for char, byte in byte_alphabet().items()}
  names = {id: name for name, id in tokenizer.special_tokens.items()}
  tokens, types, merges = [], [], {}
  for id in range(tokenizer.vocab_size):
    text = ''.join(byte_chars[b] for b in tokenizer.token_bytes(id))
    for cut in range(1, len(text)):
      merges[f'{text[:cut]} {text[cut]}'] = None
    tokens.append(names.get(id, text))
    types.append(CONTROL if id in names else NORMAL)
  return _bpe_keys('gpt-2', tokens, types, list(merges))


def _bpe_keys(
  pre: str, tokens: list[str], types: list[int], merges: list[str]
) -> dict[str, Any]:
  return {
    'ggml.model': 'gpt2',
    'ggml.pre': pre,
    'ggml.tokens': tokens,
    'ggml.token_type': types,
    # An empty list is refused; control tokens never meet inside a text.
    'ggml.merges': merges or [f'{tokens[0]} {tokens[1]}'],
  }


def _hf(tokenizer: HfTokenizer) -> dict[str, Any]:
  spec = json.loads(tokenizer.data)
  size = tokenizer.vocab_size
  tokens = [f'[PAD{id}]' for id in range(size)]
  types = [UNUSED] * size
  for token, id in spec['model']['vocab'].items():
    tokens[id], types[id] = token, NORMAL
  for token in spec['added_tokens']:
    id = token['id']
    tokens[id] = token['content']
    types[id] = CONTROL if token['special'] else USER_DEFINED
  for id in (tokenizer.bos_id, tokenizer.eos_id):
    types[id] = CONTROL
  merges = [
    tuple(m.split(' ', 1)) if isinstance(m, str) else tuple(m)
    for m in spec['model']['merges']
  ]
  if not spec['model'].get('byte_fallback'):
    name = words.name_of(spec)
    if name is None:
      raise _impossible(
        'its tokenizer.json cuts text into words by a rule without a name: '
        + json.dumps(spec.get('pre_tokenizer'))[:200]
      )
    return _bpe_keys(name, tokens, types, [f'{a} {b}' for a, b in merges])
  if spec.get('pre_tokenizer') or SPACE not in ''.join(tokens):
    raise _impossible("its tokenizer.json is not SentencePiece's")
  # Earlier merges have better scores; what no merge gives has the worst.
  scores = dict.fromkeys(tokens, -float(len(merges)))
  for rank, (left, right) in reversed([*enumerate(merges)]):
    scores[left + right] = -float(rank)
  unknown = spec['model'].get('unk_token')
  for id, token in enumerate(tokens):
    if types[id] == NORMAL and _is_byte(token):
      types[id] = BYTE
    elif token == unknown:
      types[id] = UNKNOWN
  return _pieces(
    sentencepiece_json.Pieces(
      tokens,
      [scores[token] for token in tokens],
      types,
      tokenizer.bos_id,
      tokenizer.eos_id,
      tokens.index(unknown) if unknown in tokens else -1,
      hf_parts.has_prefix({'normalizer': None, 'pre_tokenizer': None} | spec),
    )
  )


def _is_byte(token: str) -> bool:
  return len(token) == 6 and token.startswith('<0x') and token.endswith('>')


def _proto_pieces(
  tokenizer: SentencePieceTokenizer,
) -> sentencepiece_json.Pieces:
  try:
    return sentencepiece_json.read_pieces(tokenizer.model)
  except UserError as e:
    raise _impossible(str(e)) from e


def _pieces(pieces: sentencepiece_json.Pieces) -> dict[str, Any]:
  keys = {
    'ggml.model': 'llama',
    'ggml.pre': 'default',
    'ggml.tokens': list(pieces.texts),
    'ggml.scores': list(map(float, pieces.scores)),
    'ggml.token_type': list(pieces.types),
    'ggml.add_space_prefix': pieces.dummy_prefix,
  }
  if pieces.unknown >= 0:
    keys['ggml.unknown_token_id'] = pieces.unknown
  return keys
