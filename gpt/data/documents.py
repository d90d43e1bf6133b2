"""Documents: names, lines and conversations, as tokens.

Documents are not a stream: each begins with BOS, ends, and is held out whole or
not at all. document_dataset.py makes batches of them.
"""

import dataclasses
import hashlib
from collections.abc import Iterator

import numpy as np

from gpt.data import conversations
from gpt.data.sources import Sources
from gpt.data.text_dataset import SPLITS, random_uniform
from gpt.data.text_reader import TextStats, iter_whole_lines
from gpt.data.token_cache import EncodedInfo, encode_pieces, load_or_encode
from gpt.errors import UserError
from gpt.tokenizers.chat_format import END_TURN, USER

LINES_NAME = 'format=lines'  # Part of the token cache's fingerprint.
# A stream of random numbers, beside those of dataset.py.
SPLIT_STREAM = 2


@dataclasses.dataclass
class Documents:
  """Tokens of documents and what is known about them.

  tokens: uint16[n] or uint32[n], read-only; each document, then the EOS id.
  starts: int64[n_docs]; ends: int64[n_docs], each one past the EOS.
  held_out: bool[n_docs], documents for validation.
  opening, closing: the ids in front of a document and in place of its EOS.
  chat: whether they are conversations.
  description: where the text comes from, in words.
  kind: of gpt.data.sources.Sources.
  """

  tokens: np.ndarray
  starts: np.ndarray
  ends: np.ndarray
  held_out: np.ndarray
  opening: int
  closing: int
  chat: bool
  description: str
  info: EncodedInfo
  kind: str = 'files'

  def __len__(self) -> int:
    return len(self.starts)

  @property
  def noun(self) -> str:
    """What they are called in messages."""
    return 'conversations' if self.chat else 'documents'

  @property
  def lengths(self) -> np.ndarray:
    """int64[n_docs] tokens, the opening and closing ones included."""
    return self.ends - self.starts + 1

  def size(self, split: str) -> int:
    """Documents in 'train', 'val' or 'all'."""
    return len(self.chosen(split))

  def read(self, i: int) -> np.ndarray:
    """int32[n]: the opening token, the document, the closing token."""
    text = self.tokens[self.starts[i] : self.ends[i] - 1]
    whole = [[self.opening], text, [self.closing]]
    return np.concatenate(whole, dtype=np.int32)

  def chosen(self, split: str) -> np.ndarray:
    """int64[n] indices of the documents of 'train', 'val' or 'all'."""
    if split not in SPLITS:
      raise UserError(
        f'unknown split {split!r}: allowed are {", ".join(SPLITS)}'
      )
    which = {
      'train': ~self.held_out,
      'val': self.held_out,
      'all': np.ones(len(self), bool),
    }[split]
    return np.flatnonzero(which)


def iter_lines_as_documents(
  sources: Sources, stats: TextStats
) -> Iterator[str]:
  """Yields each line that is not blank, without surrounding white space.

  Raises:
    UserError: a file cannot be read.
  """
  for source in sources.items:
    for _, line in iter_whole_lines(source, stats):
      if document := line.strip():
        yield document


def encode_lines(sources, tokenizer, stats, unknown):
  """For token_cache.load_or_encode: each document, then the EOS id."""
  pieces = (
    piece
    for document in iter_lines_as_documents(sources, stats)
    for piece in (document, None)
  )
  return encode_pieces(pieces, tokenizer, unknown)


# data.format -> (name in the token cache's fingerprint, encoder).
FORMATS = {
  'lines': (LINES_NAME, encode_lines),
  'chat': (conversations.NAME, conversations.encode),
}


def hold_out(keys, fraction: float) -> np.ndarray:
  """bool[n]: which documents validate; the same ones for every seed.

  Documents of equal keys go the same way, so that none that was trained on is
  called held out.

  Args:
    keys: n hashable values.
    fraction: of the distinct keys, rounded; with two or more of them and a
      fraction between 0 and 1, at least one and not all.
  """
  if not 0 <= fraction <= 1:
    raise UserError(
      f'data.val_fraction is {fraction}: it must be between 0 and 1'
    )
  numbers: dict = {}
  group = np.array([numbers.setdefault(k, len(numbers)) for k in keys], int)
  n = len(numbers)
  n_val = round(fraction * n)
  if n > 1 and 0 < fraction < 1:
    n_val = min(max(n_val, 1), n - 1)
  chosen = np.zeros(n, bool)
  chosen[np.argsort(random_uniform(0, 0, SPLIT_STREAM, n))[:n_val]] = True
  return chosen[group]


def open_documents(
  sources,
  tokenizer,
  cache_dir,
  format: str,
  val_fraction: float,
  tidy: bool = False,
) -> Documents:
  """Encodes `sources` (or finds them encoded) and holds some of them out.

  Conversations with the same first turn of the user are held out together.

  Args:
    format: 'lines' or 'chat'.
    val_fraction: of the documents.
    tidy: see load_or_encode.

  Raises:
    UserError: no documents; a tokenizer without chat tokens.
  """
  name, encode = FORMATS[format]
  tokens, starts, info = load_or_encode(
    sources, tokenizer, name, cache_dir, tidy, encode
  )
  chat = format == 'chat'
  if not len(starts):
    what = 'conversation with an assistant turn' if chat else 'document'
    raise UserError(f'no {what} in {sources.description}')
  ends = np.append(starts[1:], len(tokens))
  special = tokenizer.special_tokens
  user_turn = [special[USER], special[END_TURN]] if chat else []
  keys = [
    _key(tokens[a:b], user_turn) for a, b in zip(starts.tolist(), ends.tolist())
  ]
  return Documents(
    tokens,
    starts,
    ends,
    hold_out(keys, val_fraction),
    tokenizer.bos_id,
    tokenizer.bos_id if chat else tokenizer.eos_id,
    chat,
    sources.description,
    info,
    sources.kind,
  )


def _key(tokens: np.ndarray, turn: list[int]) -> bytes:
  """A hash of the tokens, or of those between the first two ids of `turn`."""
  if turn:
    start, end = turn
    tokens = tokens[int(np.argmax(tokens == start)) :]
    tokens = tokens[: int(np.argmax(tokens == end))]
  return hashlib.blake2b(tokens.tobytes(), digest_size=16).digest()
