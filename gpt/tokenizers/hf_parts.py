"""The parts of a tokenizer.json: what they do to text, and which are readable.

A `spec` is the file's JSON as the `tokenizers` library writes it, which has the
fields that older files lack.
"""

import contextlib
import copy
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

from gpt.errors import UserError, quoted
from gpt.fields import Fields
from gpt.files import parse_json
from gpt.tokenizers.sentencepiece import SPACE

Spec = dict[str, Any]
SPARE_IDS = 1 << 16  # Ids without a token that a vocabulary may have.


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


def steps(part: Spec | None, key: str) -> list[Spec]:
  """The steps of a normalizer, pre-tokenizer or decoder, flattened.

  Args:
    key: the list of a Sequence: 'normalizers', 'pretokenizers', 'decoders'.
  """
  if part is None:
    return []
  if part['type'] != 'Sequence':
    return [part]
  return [inner for step in part[key] for inner in steps(step, key)]


def normalizers(spec: Spec) -> list[Spec]:
  """The steps of the normalizer."""
  return steps(spec['normalizer'], 'normalizers')


@contextlib.contextmanager
def no_panic() -> Iterator[None]:
  """Turns a panic of the library, which is no Exception, into a UserError."""
  try:
    yield
  except BaseException as e:
    if type(e).__name__ != 'PanicException':
      raise
    raise UserError(
      f'the `tokenizers` library fails on this tokenizer.json: {quoted(str(e))}'
    ) from e


def check_before_reading(data: bytes) -> None:
  """Raises UserError for a file that the library must not see.

  It makes a table that reaches to the highest id, and it panics at marks of
  parts of words, which no lossless BPE has.
  """
  spec = Fields(parse_json(data, 'tokenizer.json'), 'tokenizer.json')
  model = spec.mapping('model')
  for name in ('continuing_subword_prefix', 'end_of_word_suffix'):
    if model.text(name, ''):
      raise model.fault(name, 'none')
  vocab = model.values.get('vocab')
  vocab = Fields(vocab if isinstance(vocab, dict) else {}, 'tokenizer.json')
  added = spec.items('added_tokens', (), of=dict)
  most = len(vocab.values) + len(added) + SPARE_IDS
  for token in vocab.values:
    vocab.integer(token, 0, most)
  for i, token in enumerate(added):
    Fields(token, f'tokenizer.json: added_tokens[{i}]').integer('id', 0, most)


def check_readable(spec: Spec) -> None:
  """Raises UserError for parts that lose text.

  NFC is allowed: it changes how a character is spelled, not which it is. So
  are the space SentencePiece puts before a text, and its mark for spaces.
  """
  problem = ''
  for step in steps(spec['pre_tokenizer'], 'pretokenizers'):
    kind = step['type']
    if step.get('add_prefix_space') and kind == 'ByteLevel':
      problem = 'puts a space before the text (add_prefix_space)'
    elif step.get('behavior', 'Isolated').lower() == 'removed':
      problem = 'removes what it splits the text at'
    elif kind not in ('ByteLevel', 'Split', 'Digits', 'Metaspace'):
      problem = f'has a pre-tokenizer that may lose text ({kind})'
  for step in normalizers(spec):
    if step['type'] != 'NFC' and not (_prefixes(step) or _marks_spaces(step)):
      problem = f'changes the text first ({step["type"]})'
  if spec['model']['type'] != 'BPE' or spec['model'].get('dropout'):
    problem = f'is not plain BPE but {spec["model"]["type"]}'
  if problem:
    raise UserError(
      f'this tokenizer.json {problem}: only lossless BPE can be read'
    )


def _prefixes(step: Spec) -> bool:
  """Whether a step puts SentencePiece's dummy prefix before a text."""
  if step['type'] == 'Metaspace':
    return step.get('prepend_scheme', 'always') != 'never'
  return step['type'] == 'Prepend' and step['prepend'] == SPACE


def _marks_spaces(step: Spec) -> bool:
  return (
    step['type'] == 'Replace'
    and step['pattern'] == {'String': ' '}
    and step['content'] == SPACE
  )


def normalizes(spec: Spec) -> bool:
  """Whether text is brought to Unicode's form NFC before it is encoded."""
  return any(step['type'] == 'NFC' for step in normalizers(spec))


def has_prefix(spec: Spec) -> bool:
  """Whether a space is put before each text."""
  before = steps(spec['pre_tokenizer'], 'pretokenizers')
  return any(map(_prefixes, [*normalizers(spec), *before]))


def without_prefix(spec: Spec) -> Spec:
  """A copy that encodes text as the continuation of another text."""
  spec = copy.copy(spec)
  kept = [step for step in normalizers(spec) if not _prefixes(step)]
  spec['normalizer'] = {'type': 'Sequence', 'normalizers': kept}
  before = [
    step | {'prepend_scheme': 'never'} if step['type'] == 'Metaspace' else step
    for step in steps(spec['pre_tokenizer'], 'pretokenizers')
  ]
  if before:
    spec['pre_tokenizer'] = {'type': 'Sequence', 'pretokenizers': before}
  return spec


def strips_space(spec: Spec) -> bool:
  """Whether decoding removes one space from the beginning of the text."""
  return any(
    _prefixes(step)
    if step['type'] == 'Metaspace'
    else step['type'] == 'Strip' and step['start'] == 1
    for step in steps(spec['decoder'], 'decoders')
  )


def token_reader(spec: Spec) -> Callable[[str], bytes]:
  """The function from a token's text to its bytes, as the decoder has it.

  Raises:
    UserError: a decoder that cannot be read.
  """
  found = steps(spec['decoder'], 'decoders')
  kinds = [step['type'] for step in found]
  if kinds == ['ByteLevel']:
    return _byte_level
  allowed = {'Fuse', 'ByteFallback', 'Replace', 'Strip', 'Metaspace'}
  if not found or not allowed >= set(kinds) or not all(map(_is_plain, found)):
    raise UserError(
      f'this tokenizer.json has the decoder {kinds or "none"}: allowed are '
      "ByteLevel, and SentencePiece's (Replace or Metaspace, ByteFallback, "
      'Fuse, Strip)'
    )
  marks_spaces = 'Replace' in kinds or 'Metaspace' in kinds
  byte_fallback = 'ByteFallback' in kinds

  def read(token: str) -> bytes:
    byte = re.fullmatch(r'<0x([0-9A-F]{2})>', token)
    if byte and byte_fallback:
      return bytes([int(byte[1], 16)])
    return (token.replace(SPACE, ' ') if marks_spaces else token).encode()

  return read


def _is_plain(step: Spec) -> bool:
  """Whether a step of the decoder does only what `token_reader` does."""
  match step['type']:
    case 'Replace':
      return step['pattern'] == {'String': SPACE} and step['content'] == ' '
    case 'Metaspace':
      return step['replacement'] == SPACE
    case 'Strip':
      return (
        step['content'] == ' ' and step['start'] in (0, 1) and not step['stop']
      )
  return True


def _byte_level(token: str) -> bytes:
  alphabet = byte_alphabet()
  if all(c in alphabet for c in token):
    return bytes(alphabet[c] for c in token)
  return token.encode()


def added_token(id: int, content: str, special: bool = True) -> Spec:
  """An entry of added_tokens: the content, wherever a text holds it."""
  return {
    'id': id,
    'content': content,
    'single_word': False,
    'lstrip': False,
    'rstrip': False,
    'normalized': False,
    'special': special,
  }


def bpe_spec(
  vocab: dict[str, int],
  merges: list,
  added: list[Spec],
  *,
  normalizer: Spec | None,
  pre_tokenizer: Spec | None,
  decoder: Spec,
  byte_fallback: bool = False,
  ignore_merges: bool = False,
) -> Spec:
  """The tokenizer.json of a BPE without dropout, as a dict."""
  return {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': added,
    'normalizer': normalizer,
    'pre_tokenizer': pre_tokenizer,
    'post_processor': None,
    'decoder': decoder,
    'model': {
      'type': 'BPE',
      'dropout': None,
      'unk_token': None,
      'continuing_subword_prefix': None,
      'end_of_word_suffix': None,
      'fuse_unk': False,
      'byte_fallback': byte_fallback,
      'ignore_merges': ignore_merges,
      'vocab': vocab,
      'merges': merges,
    },
  }


def added_in_text(spec: Spec) -> list[Spec]:
  """The added tokens that are text: runs of white space.

  Some vocabularies have them; other added tokens that are not `special`
  (<think>, <tool_call>) are marks, which text must not imitate.
  """
  return [
    token
    for token in spec['added_tokens']
    if not token['special'] and token['content'].isspace()
  ]
