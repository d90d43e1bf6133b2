"""Our tokenizers as Hugging Face's tokenizer.json: the same ids for any text.

The format has no character or SentencePiece vocabularies, but byte pair
encoding without `unk` drops unknown characters just as ours do, and its
vocabulary may hold any strings:

  char           no merges, no pre-tokenizer
  randygpt       the merges as they are; newlines stand alone
  sentencepiece  BPE with byte fallback: the merges follow from the scores, and
                 spaces stay spaces
  hf             the tokenizer's own file

Tokenizers that cannot be expressed are refused. Control tokens become `special`
tokens: programs that load the file turn their names inside a text into their
ids unless `split_special_tokens=True` is set; our encoders never do.
"""

import dataclasses
import importlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from gpt.data.sample_text import sample_text
from gpt.errors import UserError
from gpt.tokenizers import (
  CharTokenizer,
  HfTokenizer,
  RandyTokenizer,
  SentencePieceTokenizer,
  Tokenizer,
)
from gpt.tokenizers.base import BOS
from gpt.tokenizers.hf_parts import added_token, bpe_spec

ISOLATED = {'type': 'Split', 'behavior': 'Isolated', 'invert': False}
FUSE = {'type': 'Fuse'}


@dataclasses.dataclass
class Vocabulary:
  """A tokenizer as byte pair encoding.

  Attributes:
    tokens: the text of each id; control tokens have their names.
    control: ids of the control tokens.
    merges: (left, right) texts in the order of priority.
    pre_tokenizer, decoder: parts of tokenizer.json.
    byte_fallback: characters without a token become byte tokens.
  """

  tokens: list[str]
  control: set[int]
  merges: list[tuple[str, str]]
  pre_tokenizer: dict[str, Any] | None
  decoder: dict[str, Any]
  byte_fallback: bool = False


def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
  """Expresses a tokenizer as byte pair encoding.

  Raises:
    UserError: that is impossible; the message gives the reason.
  """
  match tokenizer:
    case CharTokenizer():
      found = _char(tokenizer)
    case RandyTokenizer():
      found = _randy(tokenizer)
    case SentencePieceTokenizer():
      found = _sentencepiece(tokenizer)
    case HfTokenizer():
      found = _hf(tokenizer)
    case _:
      raise _impossible(f'its kind is {tokenizer.kind}')
  names = {id: name for name, id in tokenizer.special_tokens.items()}
  # One token may be BOS and EOS, as in microgpt: its name is BOS.
  names[tokenizer.bos_id] = BOS
  for id, name in names.items():
    found.tokens[id] = name
    found.control.add(id)
  if len(set(found.tokens)) != len(found.tokens):
    twice = next(t for t in found.tokens if found.tokens.count(t) > 1)
    raise _impossible(f'{twice!r} stands for two ids')
  return found


def to_json(
  found: Vocabulary,
  order: Sequence[int] | None = None,
  names: Mapping[int, str] | None = None,
) -> bytes:
  """The bytes of a tokenizer.json.

  Args:
    order: the ids to keep, in the order of their new ids; default: all.
    names: {id: name} of control tokens that get another name.
  """
  order = range(len(found.tokens)) if order is None else order
  names = names or {}
  text = {old: names.get(old, found.tokens[old]) for old in order}
  spec = bpe_spec(
    {text[old]: new for new, old in enumerate(order)},
    [list(pair) for pair in found.merges],
    [
      added_token(new, text[old])
      for new, old in enumerate(order)
      if old in found.control
    ],
    normalizer=None,
    pre_tokenizer=found.pre_tokenizer,
    decoder=found.decoder,
    byte_fallback=found.byte_fallback,
  )
  return json.dumps(spec, ensure_ascii=False, indent=1).encode()


def equivalent(tokenizer: Tokenizer) -> bytes:
  """A tokenizer.json with the ids of `tokenizer`, see `check`.

  Raises:
    UserError: the tokenizer cannot be expressed as one.
  """
  if isinstance(tokenizer, HfTokenizer):
    return tokenizer.data
  data = to_json(vocabulary(tokenizer))
  check(tokenizer, data)
  return data


def check(
  tokenizer: Tokenizer,
  data: bytes,
  new_ids: Mapping[int, int] | None = None,
) -> None:
  """Compares the ids of both on the built-in sample text.

  Without the `tokenizers` library nothing is checked.

  Args:
    data: a tokenizer.json.
    new_ids: {our id: the file's id}; default: the ids are the same.

  Raises:
    UserError: the ids differ.
  """
  try:
    import tokenizers  # noqa: F401
  except ImportError:
    return
  theirs = HfTokenizer(data)
  for line in sample_text()[:20_000].splitlines(keepends=True):
    ids = tokenizer.encode(line).tolist()
    if new_ids is not None:
      ids = [new_ids[i] for i in ids]
    if theirs.encode(line).tolist() != ids:
      raise _impossible(f'{line!r} would get other ids')


def _impossible(reason: str) -> UserError:
  return UserError(
    'this tokenizer cannot be expressed as a Hugging Face tokenizer.json: '
    + reason
  )


def _char(tokenizer: CharTokenizer) -> Vocabulary:
  tokens = [
    tokenizer.token_bytes(i).decode() for i in range(tokenizer.vocab_size)
  ]
  return Vocabulary(tokens, set(), [], None, FUSE)


def _randy(tokenizer: RandyTokenizer) -> Vocabulary:
  ids = {t: i for i, t in enumerate(tokenizer.vocab)}
  merges = sorted(set(tokenizer.merges), key=lambda m: ids[m[0] + m[1]])
  for a, b in merges:
    if max(ids[a], ids[b]) > ids[a + b]:
      raise _impossible(f'the merge {[a, b]} stands before its parts')
  if len({a + b for a, b in merges}) < len(merges):
    raise _impossible('two merges give the same token')
  n_control = tokenizer.vocab_size - len(tokenizer.vocab)
  return Vocabulary(
    [*tokenizer.vocab, *[''] * n_control],
    set(),
    merges,
    {**ISOLATED, 'pattern': {'String': '\n'}},
    FUSE,
  )


def _hf(tokenizer: HfTokenizer) -> Vocabulary:
  spec = json.loads(tokenizer.data)
  added = {t['content']: t['id'] for t in spec['added_tokens']}
  vocab = spec['model']['vocab'] | added
  if any(not t['special'] for t in spec['added_tokens']):
    raise _impossible('it has added tokens that are not special')
  tokens = sorted(vocab, key=lambda token: vocab[token])
  merges = [_pair(merge) for merge in spec['model']['merges']]
  return Vocabulary(
    tokens,
    set(added.values()),
    merges,
    spec['pre_tokenizer'],
    spec['decoder'],
    bool(spec['model'].get('byte_fallback')),
  )


def _pair(merge: str | list[str]) -> tuple[str, str]:
  """A merge as older files ('a b') or newer ones (['a', 'b']) have it."""
  left, right = merge.split(' ') if isinstance(merge, str) else merge
  return left, right


def _sentencepiece(tokenizer: SentencePieceTokenizer) -> Vocabulary:
  # SentencePiece's processor does not distinguish user-defined symbols from
  # other pieces; its protobuf does.
  pb: Any = importlib.import_module('sentencepiece.sentencepiece_model_pb2')
  model = pb.ModelProto.FromString(tokenizer.model)
  if model.trainer_spec.model_type != pb.TrainerSpec.BPE:
    raise _impossible('its SentencePiece model is not BPE')
  kinds = pb.ModelProto.SentencePiece
  tokens, control, symbols, scores = [], set(), [], {}
  for id, entry in enumerate(model.pieces):
    text = entry.piece.replace('\u2581', ' ')
    tokens.append(text)
    if entry.type in (kinds.UNKNOWN, kinds.CONTROL):
      control.add(id)
    elif entry.type == kinds.USER_DEFINED:
      symbols.append(text)
    elif entry.type == kinds.NORMAL:
      scores[text] = entry.score
    elif entry.type == kinds.UNUSED:
      raise _impossible(f'{entry.piece!r} is marked unused')
  if any(len(s) != 1 for s in symbols):
    raise _impossible(f'a symbol of more than one character: {symbols}')
  merges = [
    (score, -cut, text[:cut], text[cut:])
    for text, score in scores.items()
    for cut in range(1, len(text))
    if text[:cut] in scores and text[cut:] in scores
  ]
  # The best score first; two ways to the same piece are equivalent.
  pairs = [(a, b) for *_, a, b in sorted(merges, reverse=True)]
  pattern = '|'.join(f'\\x{{{ord(s):x}}}' for s in symbols)
  split = {**ISOLATED, 'pattern': {'Regex': pattern}} if symbols else None
  decoder = {'type': 'Sequence', 'decoders': [{'type': 'ByteFallback'}, FUSE]}
  return Vocabulary(tokens, control, pairs, split, decoder, True)


def control_names(tokenizer: Tokenizer) -> dict[str, str]:
  """{our name of a control token: its text in the file of `equivalent`}."""
  if not isinstance(tokenizer, HfTokenizer):
    return {name: name for name in tokenizer.special_tokens}
  added = json.loads(tokenizer.data)['added_tokens']
  content = {t['id']: t['content'] for t in added}
  return {name: content[id] for name, id in tokenizer.special_tokens.items()}
