"""Our tokenizers as Hugging Face's tokenizer.json: the same ids for any text.

Nothing there corresponds to a character or SentencePiece vocabulary as such,
but byte pair encoding without `unk` drops unknown characters just as ours do,
and its vocabulary may hold any strings:

  char           no merges, no pre-tokenizer
  randygpt       the merges as they are; newlines stand alone
  sentencepiece  BPE with byte fallback: the merges follow from the scores, and
                 spaces stay spaces
  hf             the file that the tokenizer is

What cannot be expressed is refused. The control tokens are `special` tokens
there: programs that load the file turn their names in a text into their ids
unless told not to (`split_special_tokens=True`), ours never does.
"""

import dataclasses
import json
import struct

from gpt.data.sample_text import sample_text
from gpt.errors import UserError
from gpt.tokenizers.base import BOS
from gpt.tokenizers.huggingface import HfTokenizer

ISOLATED = {'type': 'Split', 'behavior': 'Isolated', 'invert': False}
FUSE = {'type': 'Fuse'}
# SentencePiece's ModelProto.SentencePiece.Type, and TrainerSpec.ModelType.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BPE_MODEL = 2


@dataclasses.dataclass
class Vocabulary:
  """A tokenizer as byte pair encoding.

  tokens: the text of every id; of control tokens their name.
  control: their ids.
  merges: (left, right) texts, the most urgent first.
  pre_tokenizer, decoder: parts of tokenizer.json.
  """

  tokens: list[str]
  control: set[int]
  merges: list[tuple[str, str]]
  pre_tokenizer: dict | None
  decoder: dict
  byte_fallback: bool = False


def vocabulary(tokenizer) -> Vocabulary:
  """The tokenizer as byte pair encoding.

  Raises:
    UserError: it cannot be expressed; says why.
  """
  describe = {
    'char': _char,
    'randygpt': _randy,
    'sentencepiece': _sentencepiece,
    'hf': _hf,
  }[tokenizer.kind]
  found = describe(tokenizer)
  names = {id: name for name, id in tokenizer.special_tokens.items()}
  # Where one token is both, as in microgpt, it is the beginning.
  names[tokenizer.bos_id] = BOS
  for id, name in names.items():
    found.tokens[id] = name
    found.control.add(id)
  if len(set(found.tokens)) != len(found.tokens):
    twice = next(t for t in found.tokens if found.tokens.count(t) > 1)
    raise _impossible(f'{twice!r} stands for two ids')
  return found


def to_json(found: Vocabulary, order=None, names=None) -> bytes:
  """A tokenizer.json.

  Args:
    order: the ids to keep, in the order of their new ids; default: all.
    names: {id: other name} of control tokens.
  """
  order = range(len(found.tokens)) if order is None else order
  names = names or {}
  text = {old: names.get(old, found.tokens[old]) for old in order}
  spec = {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': [
      {
        'id': new,
        'content': text[old],
        'single_word': False,
        'lstrip': False,
        'rstrip': False,
        'normalized': False,
        'special': True,
      }
      for new, old in enumerate(order)
      if old in found.control
    ],
    'normalizer': None,
    'pre_tokenizer': found.pre_tokenizer,
    'post_processor': None,
    'decoder': found.decoder,
    'model': {
      'type': 'BPE',
      'dropout': None,
      'unk_token': None,
      'continuing_subword_prefix': None,
      'end_of_word_suffix': None,
      'fuse_unk': False,
      'byte_fallback': found.byte_fallback,
      'ignore_merges': False,
      'vocab': {text[old]: new for new, old in enumerate(order)},
      'merges': [list(pair) for pair in found.merges],
    },
  }
  return json.dumps(spec, ensure_ascii=False, indent=1).encode()


def equivalent(tokenizer) -> bytes:
  """The tokenizer.json with the ids of `tokenizer`, checked where possible.

  Raises:
    UserError: there is none.
  """
  if tokenizer.kind == 'hf':
    return tokenizer.data
  data = to_json(vocabulary(tokenizer))
  check(tokenizer, data)
  return data


def check(tokenizer, data: bytes, new_ids=None) -> None:
  """Compares both on the built-in sample, if the library is installed.

  Args:
    new_ids: {our id: the file's id}, where they differ.
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


def _char(tokenizer) -> Vocabulary:
  tokens = [
    tokenizer.token_bytes(i).decode() for i in range(tokenizer.vocab_size)
  ]
  return Vocabulary(tokens, set(), [], None, FUSE)


def _randy(tokenizer) -> Vocabulary:
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


def _hf(tokenizer) -> Vocabulary:
  spec = json.loads(tokenizer.data)
  added = {t['content']: t['id'] for t in spec['added_tokens']}
  vocab = spec['model']['vocab'] | added
  if any(not t['special'] for t in spec['added_tokens']):
    raise _impossible('it has added tokens that are not special')
  tokens = sorted(vocab, key=vocab.get)
  merges = [
    tuple(m.split(' ')) if isinstance(m, str) else tuple(m)
    for m in spec['model']['merges']
  ]
  return Vocabulary(
    tokens,
    set(added.values()),
    merges,
    spec['pre_tokenizer'],
    spec['decoder'],
    bool(spec['model'].get('byte_fallback')),
  )


def _sentencepiece(tokenizer) -> Vocabulary:
  model_type, pieces = parse_model(tokenizer.model)
  if model_type != BPE_MODEL:
    raise _impossible('its SentencePiece model is not BPE')
  tokens, control, symbols, scores = [], set(), [], {}
  for id, (piece, score, kind) in enumerate(pieces):
    text = piece.replace('\u2581', ' ')
    tokens.append(text)
    if kind in (UNKNOWN, CONTROL):
      control.add(id)
    elif kind == USER_DEFINED:
      symbols.append(text)
    elif kind == NORMAL:
      scores[text] = score
    elif kind == UNUSED:
      raise _impossible(f'{piece!r} is marked unused')
  if any(len(s) != 1 for s in symbols):
    raise _impossible(f'a symbol of more than one character: {symbols}')
  merges = [
    (score, -cut, text[:cut], text[cut:])
    for text, score in scores.items()
    for cut in range(1, len(text))
    if text[:cut] in scores and text[cut:] in scores
  ]
  # The best score first; of two ways to the same piece either will do.
  merges = [(a, b) for *_, a, b in sorted(merges, reverse=True)]
  pattern = '|'.join(f'\\x{{{ord(s):x}}}' for s in symbols)
  split = {**ISOLATED, 'pattern': {'Regex': pattern}} if symbols else None
  decoder = {'type': 'Sequence', 'decoders': [{'type': 'ByteFallback'}, FUSE]}
  return Vocabulary(tokens, control, merges, split, decoder, True)


def parse_model(model: bytes) -> tuple[int, list[tuple[str, float, int]]]:
  """(model type, [(piece, score, kind)]) of a serialised SentencePiece model.

  Its Python API does not tell user-defined symbols from other pieces.
  """
  pieces, model_type = [], 1
  for field, value in _fields(model):
    if field == 1:
      piece = {1: b'', 2: b'\0' * 4, 3: NORMAL, **dict(_fields(value))}
      (score,) = struct.unpack('<f', piece[2])
      pieces.append((piece[1].decode(), score, piece[3]))
    elif field == 2:
      model_type = dict(_fields(value)).get(3, model_type)
  return model_type, pieces


def _fields(data: bytes):
  """(number, value) of a protobuf message; int, or bytes."""
  i = 0

  def varint() -> int:
    nonlocal i
    value = shift = 0
    while True:
      byte = data[i]
      i += 1
      value |= (byte & 127) << shift
      shift += 7
      if byte < 128:
        return value

  while i < len(data):
    key = varint()
    wire = key & 7
    if wire == 0:
      yield key >> 3, varint()
      continue
    size = varint() if wire == 2 else {1: 8, 5: 4}[wire]
    yield key >> 3, data[i : i + size]
    i += size


def control_names(tokenizer) -> dict[str, str]:
  """Our name of each control token -> its text in `equivalent`."""
  if tokenizer.kind != 'hf':
    return {name: name for name in tokenizer.special_tokens}
  added = json.loads(tokenizer.data)['added_tokens']
  content = {t['id']: t['content'] for t in added}
  return {name: content[id] for name, id in tokenizer.special_tokens.items()}
