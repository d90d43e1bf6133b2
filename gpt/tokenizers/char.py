"""Characters with RandyGPT's ids: 0 BOS, 1 EOS, then the sorted characters."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gpt.errors import UserError
from gpt.tokenizers.base import (
  BOS,
  EOS,
  BaseTokenizer,
  check_special_tokens,
  count_of,
)


class CharTokenizer(BaseTokenizer):
  """One id per character; characters outside the vocabulary are dropped.

  Extra control tokens follow the characters, whose ids are RandyGPT's.

  Args:
    chars: the characters of the vocabulary, in any order.
    special_tokens: names of extra control tokens.
  """

  kind = 'char'
  bos_id = 0
  eos_id = 1

  def __init__(
    self, chars: Iterable[str], special_tokens: Sequence[str] = ()
  ) -> None:
    self.chars = sorted(set(chars))
    if any(len(c) != 1 for c in self.chars):
      raise UserError('a character vocabulary holds single characters only')
    if not self.chars:
      raise UserError(
        'cannot build a character vocabulary: the text has no characters'
      )
    names = check_special_tokens(special_tokens)
    first_special = 2 + len(self.chars)
    self.special_tokens = {BOS: 0, EOS: 1} | {
      name: first_special + i for i, name in enumerate(names)
    }
    self.unsampleable_ids = (
      0,
      *range(first_special, first_special + len(names)),
    )
    self._bytes = [b'', b''] + [c.encode() for c in self.chars]
    self._bytes += [b''] * len(names)
    codes = np.array([ord(c) for c in self.chars])
    # One entry past the largest code catches every larger character.
    self._ids = np.full(codes.max() + 2, -1, np.int32)
    self._ids[codes] = np.arange(2, first_special)
    self._known = frozenset(self.chars)

  def encode(self, text: str) -> np.ndarray:
    """int32[n] ids of the known characters; others are dropped."""
    codes = np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), '<u4')
    ids = self._ids[np.minimum(codes, len(self._ids) - 1)]
    return ids[ids >= 0]

  def count_unknown(self, text: str) -> dict[str, int]:
    """Characters of `text` outside the vocabulary, with their counts."""
    return count_of(text, set(text) - self._known)

  def _meta(self) -> dict[str, Any]:
    names = list(self.special_tokens)[2:]
    return {'chars': self.chars, 'special_tokens': names}


def build_char(
  texts: Iterable[str], special_tokens: Sequence[str] = ()
) -> CharTokenizer:
  """The tokenizer of all characters in `texts`."""
  chars: set[str] = set()
  for text in texts:
    chars.update(text)
  # Lone surrogates (a badly decoded file) have no UTF-8 form.
  chars = {c for c in chars if not '\ud800' <= c <= '\udfff'}
  return CharTokenizer(chars, special_tokens)
