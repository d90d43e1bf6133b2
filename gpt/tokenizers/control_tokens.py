"""Control tokens under names that nobody can guess.

A rendered chat template is one string in which the template's control tokens
stand beside texts of users. To tell them apart, the template writes each
control token under a name that holds a random number, and a copy of the
tokenizer knows control tokens by these names only. A text with '<|im_end|>' in
it is then plain text, whatever the template does with it; all else is encoded
as the tokenizer encodes it, in one piece from one control token to the next.
"""

import dataclasses
import functools
import json
import re
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpt.errors import UserError
from gpt.tokenizers import HfTokenizer, Tokenizer
from gpt.tokenizers.hf_parts import added_token

# Private-use characters: no normalizer changes them.
OPEN, CLOSE = '\ue0f0', '\ue0f1'
# Texts between control tokens that are kept encoded: the turns of a long
# conversation, but no document that somebody pastes.
CACHED_SEGMENTS = 512
CACHED_CHARS = 4000


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Token ids, and the characters of the text each one stands for.

  Attributes:
    ids: int32[n].
    starts, ends: int32[n], of each token in the text; an end is one past it.
  """

  ids: np.ndarray
  starts: np.ndarray
  ends: np.ndarray


class ControlTokens:
  """The control tokens of a tokenizer, and the encoding of text with them.

  Attributes:
    special: {content: id} of the control tokens that no text may become.
    marks: {content: id} of tokens that a model's own text holds, such as
      <think>, but a user's must not imitate.
  """

  def __init__(self, tokenizer: Tokenizer) -> None:
    self._tokenizer = tokenizer
    self.special = dict(tokenizer.special_tokens)
    self.marks: dict[str, int] = {}
    self._hf: Any = None
    self.nonce = secrets.token_hex(8)
    if isinstance(tokenizer, HfTokenizer):
      ends = tokenizer.bos_id, tokenizer.eos_id  # Whatever the file says.
      for token in json.loads(tokenizer.data)['added_tokens']:
        if token['special'] or token['id'] in ends:
          self.special[token['content']] = token['id']
        elif not token['content'].isspace():
          self.marks[token['content']] = token['id']
      # Some readers count marks among the control tokens.
      for content in self.marks:
        self.special.pop(content, None)
      hidden = {*self.special.values(), *self.marks.values()}
      names = {id: self.name(id) for id in hidden}
      self._hf = _renamed(tokenizer, names)
    self.contents = {id: c for c, id in (self.marks | self.special).items()}
    # After `contents`: a token's text in its file, if it has several names.
    self._name = re.compile(f'{OPEN}{self.nonce}\\.([0-9a-f]+){CLOSE}')
    self._cached = functools.lru_cache(CACHED_SEGMENTS)(self._encode_segment)

  def name(self, id: int) -> str:
    """The unguessable name of a control token."""
    return f'{OPEN}{self.nonce}.{id:x}{CLOSE}'

  def sign(self, letter: str) -> str:
    """Another unguessable text; `letter` is no hexadecimal digit."""
    return f'{OPEN}{self.nonce}.{letter}{CLOSE}'

  def with_names(self, text: str, contents: Mapping[str, int]) -> str:
    """`text` with unguessable names in place of these control tokens."""
    pattern = _any_of(tuple(contents))
    return pattern.sub(lambda m: self.name(contents[m[0]]), text)

  def with_contents(self, text: str) -> str:
    """`text` with the tokens' own texts in place of unguessable names."""
    return self._name.sub(lambda m: self.contents[int(m[1], 16)], text)

  def find(self, text: str, ids: set[int], start: int = 0) -> tuple[int, int]:
    """(id, index after it) of the first of these tokens; (-1, -1) if none."""
    for match in self._name.finditer(text, start):
      if (id := int(match[1], 16)) in ids:
        return id, match.end()
    return -1, -1

  def before_name(self, text: str, index: int) -> int:
    """`index`, or where the name that it is inside of begins."""
    start = text.rfind(f'{OPEN}{self.nonce}', 0, index)
    inside = start >= 0 and text.find(CLOSE, start) >= index
    return start if inside else index

  def encode(self, text: str) -> Encoded:
    """Encodes text whose control tokens have unguessable names."""
    parts = self._name.split(text)
    before, at = -1, 0
    found = [np.zeros((0, 3), np.int32)]  # Rows of id, start, end.
    for i in range(0, len(parts), 2):
      after = int(parts[i + 1], 16) if i + 1 < len(parts) else -1
      if parts[i]:
        short = len(parts[i]) <= CACHED_CHARS
        encode = self._cached if short else self._encode_segment
        found.append(
          encode(before, parts[i], after) + np.array([0, at, at], np.int32)
        )
        at += len(parts[i])
      if after >= 0:
        end = at + len(self.name(after))
        found.append(np.array([[after, at, end]], np.int32))
        at, before = end, after
    return Encoded(*np.concatenate(found).T)

  def _encode_segment(self, before: int, text: str, after: int) -> np.ndarray:
    """int32[n, 3]: the text between two control tokens (-1: none)."""
    unknown = self._tokenizer.count_unknown(text)
    if not unknown:
      return self._encode_known(before, text, after)
    kept = [i for i, c in enumerate(text) if c not in unknown]
    known = ''.join(text[i] for i in kept)
    ids, starts, ends = self._encode_known(before, known, after).T
    start_of = np.array([*kept, len(text)], np.int32)
    end_of = np.array([0, *(i + 1 for i in kept)], np.int32)
    return np.column_stack([ids, start_of[starts], end_of[ends]])

  def _encode_known(self, before: int, text: str, after: int) -> np.ndarray:
    if self._hf is None:
      ids = self._tokenizer.encode(text).tolist()
      return _with_spans(self._tokenizer, ids, text)
    # The neighbours decide about a prefix space, and may strip spaces.
    head = self.name(before) if before >= 0 else ''
    tail = self.name(after) if after >= 0 else ''
    encoding = self._hf.encode(head + text + tail, add_special_tokens=False)
    inner = slice(bool(head), len(encoding.ids) - bool(tail))
    spans = np.array(encoding.offsets[inner], np.int32).reshape(-1, 2)
    ids = np.array(encoding.ids[inner], np.int32)
    return np.column_stack([ids, spans - np.int32(len(head))])


@functools.lru_cache(64)
def _any_of(texts: tuple[str, ...]) -> re.Pattern[str]:
  """Matches one of `texts`, the longest first; nothing if there is none."""
  longest = sorted(filter(None, texts), key=len, reverse=True)
  return re.compile('|'.join(map(re.escape, longest)) or r'(?!)')


def broken(text: str, contents: Mapping[str, int], sign: str) -> str:
  """`text` with `sign` inside of each of these tokens that it spells."""
  pattern = _any_of(tuple(contents))
  return pattern.sub(lambda m: m[0][0] + sign + m[0][1:], text)


def _renamed(tokenizer: HfTokenizer, names: Mapping[int, str]) -> Any:
  """The `tokenizers` object of a tokenizer.json with other token names.

  Merges that would make one of these tokens from text are left out.
  """
  import tokenizers

  library = tokenizers.Tokenizer.from_str(tokenizer.data.decode('utf-8'))
  spec = json.loads(library.to_str())
  model = spec['model']
  vocab: dict[str, int] = model['vocab']
  old = {token for token, id in vocab.items() if id in names}
  model['vocab'] = {names.get(i, t): i for t, i in model['vocab'].items()}
  model['merges'] = [
    pair
    for pair in model['merges']
    if not old.intersection((*pair, ''.join(pair)))
  ]
  if model.get('unk_token') in old:
    model['unk_token'] = names[vocab[model['unk_token']]]
  for token in spec['added_tokens']:
    if token['id'] in names:
      token['content'] = names[token['id']]
  known = {token['id'] for token in spec['added_tokens']}
  spec['added_tokens'] += [
    added_token(id, name) for id, name in names.items() if id not in known
  ]
  spec['added_tokens'].sort(key=lambda token: token['id'])
  spec['truncation'] = spec['padding'] = None
  renamed = tokenizers.Tokenizer.from_str(json.dumps(spec))
  for id, name in names.items():
    if renamed.encode(name, add_special_tokens=False).ids != [id]:
      raise UserError(
        f'this tokenizer.json cannot be used for chat: token {id} is lost when '
        'the control tokens are renamed'
      )
  return renamed


def _with_spans(tokenizer: Tokenizer, ids: list[int], text: str) -> np.ndarray:
  """int32[n, 3]: ids and their characters, from the numbers of bytes."""
  data = text.encode()
  # Index of the character that each byte belongs to.
  starts = (np.frombuffer(data, np.uint8) & 0xC0) != 0x80
  char = np.append(np.cumsum(starts) - 1, len(text))
  ends = np.cumsum([len(tokenizer.token_bytes(id)) for id in ids], dtype=int)
  ends = np.minimum(ends, len(data))
  begins = np.append(0, ends)[: len(ids)]
  last = np.where(ends > begins, char[ends - 1] + 1, char[begins])
  rows = np.array(ids, np.int32), char[begins], last
  return np.column_stack(rows).astype(np.int32)
