"""RandyGPT's vocab.json, used by models trained there.

Lines are encoded separately and joined by the id of the newline. Inside a line
merges apply as randy_merges.py says.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from gpt.errors import UserError, quoted
from gpt.fields import read_fields
from gpt.tokenizers.base import (
  BOS,
  EOS,
  MAX_FILE_BYTES,
  MAX_VOCAB,
  BaseTokenizer,
  check_special_tokens,
  count_of,
)
from gpt.tokenizers.randy_merges import Merges

VOCAB_FILE = 'vocab.json'
# A line is merged in pieces of as many characters, at least, cut where no merge
# reaches across; at most in such.
PIECE, MOST = 1 << 19, 1 << 20


class RandyTokenizer(BaseTokenizer):
  """BPE over characters, read from RandyGPT's vocab.json.

  Args:
    vocab: all tokens in id order; 0 is '<|bos|>' and 1 is '<|eos|>'.
    merges: pairs of tokens whose concatenation is a token.
    special_tokens: extra control tokens. Their ids follow the vocabulary, and
      their names are stored in tokenizer.json, not in vocab.json.

  Raises:
    UserError: not a RandyGPT vocabulary.
  """

  kind = 'randygpt'
  bos_id = 0
  eos_id = 1

  def __init__(
    self,
    vocab: Iterable[str],
    merges: Iterable[Sequence[str]],
    special_tokens: Sequence[str] = (),
  ) -> None:
    self.vocab = list(vocab)
    self.merges = [(a, b) for a, b in merges]
    if self.vocab[:2] != [BOS, EOS]:
      raise UserError(
        f'not a RandyGPT vocabulary: it must begin with {BOS!r} (id 0) and '
        f'{EOS!r} (id 1), this one begins with {quoted(self.vocab[:2])}'
      )
    id_of: dict[str, int] = {}
    for i, token in enumerate(self.vocab[2:], start=2):
      id_of.setdefault(token, i)
    self._char_ids = {t: i for t, i in id_of.items() if len(t) == 1}
    merged: dict[tuple[int, int], int] = {}
    for a, b in self.merges:
      for token in (a, b, a + b):
        if token not in id_of:
          raise UserError(
            f'broken RandyGPT vocabulary: the merge {quoted([a, b])} needs the '
            f'token {quoted(token)}, which is not in "vocab"'
          )
      merged.setdefault((id_of[a], id_of[b]), id_of[a + b])
    ends = ((a[-1:], b[:1]) for a, b in self.merges)
    self._joints = {tuple(map(self._char_ids.get, pair)) for pair in ends}
    self._merges = Merges(merged)
    names = check_special_tokens(special_tokens)
    n = len(self.vocab)
    self.special_tokens = {BOS: 0, EOS: 1} | {
      name: n + i for i, name in enumerate(names)
    }
    self.unsampleable_ids = (0, *range(n, n + len(names)))
    try:
      self._bytes = [b'', b''] + [t.encode() for t in self.vocab[2:]]
    except UnicodeEncodeError as e:
      raise UserError(f'broken RandyGPT vocabulary: {e}') from e
    self._bytes += [b''] * len(names)

  def encode(self, text: str) -> np.ndarray:
    """int32[n] ids; characters outside the vocabulary are dropped."""
    newline = self._char_ids.get('\n')
    ids: list[int] = []
    for i, line in enumerate(text.split('\n')):
      if i and newline is not None:
        ids.append(newline)
      known = [self._char_ids[c] for c in line if c in self._char_ids]
      for piece in self._pieces(known):
        ids += self._merges.apply(piece)
    return np.array(ids, np.int32)

  def _pieces(self, chars: list[int]) -> Iterator[list[int]]:
    """Ids of characters in pieces that merge as they do together.

    Only a cut after MOST characters that all may merge can change ids.
    """
    start = 0
    while len(chars) - start > PIECE:
      most = min(start + MOST, len(chars))
      cuts = range(start + PIECE, most)
      joints = self._joints
      end = next(
        (i for i in cuts if (chars[i - 1], chars[i]) not in joints), most
      )
      yield chars[start:end]
      start = end
    yield chars[start:]

  def count_unknown(self, text: str) -> dict[str, int]:
    """Characters of `text` outside the vocabulary, with their counts."""
    return count_of(text, set(text) - self._char_ids.keys())

  def vocab_json(self) -> bytes:
    """The bytes of a vocab.json as RandyGPT writes it (compact, UTF-8)."""
    data = {'vocab': self.vocab, 'merges': [list(m) for m in self.merges]}
    return json.dumps(data, ensure_ascii=False, separators=(',', ':')).encode(
      'utf-8'
    )

  def _files(self) -> dict[str, bytes]:
    return {VOCAB_FILE: self.vocab_json()}

  def _meta(self) -> dict:
    return {'special_tokens': list(self.special_tokens)[2:]}


def read_vocab_json(
  path: str | os.PathLike[str], special_tokens: Sequence[str] = ()
) -> RandyTokenizer:
  """Reads RandyGPT's vocab.json; UserError names the file and the fault."""
  fields = read_fields(path, max_bytes=MAX_FILE_BYTES)
  try:
    vocab = fields.items('vocab', of=str, most=MAX_VOCAB)
    merges = fields.items('merges', of=list, most=MAX_VOCAB)
  except UserError as e:
    raise UserError(
      f'{path} is not a RandyGPT vocabulary, which is {{"vocab": [token, ...], '
      f'"merges": [[left, right], ...]}}: {e}'
    ) from e
  for i, merge in enumerate(merges):
    if len(merge) != 2 or not all(isinstance(t, str) for t in merge):
      raise UserError(
        f'{path}: merges[{i}] is {quoted(merge)}; allowed: two strings'
      )
  try:
    return RandyTokenizer(vocab, merges, special_tokens)
  except UserError as e:
    raise UserError(f'{path}: {e}') from e
