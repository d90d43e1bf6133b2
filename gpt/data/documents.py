"""Lines and conversations as documents.

Unlike a text, documents are not one stream: each starts with BOS, has an end,
and is held out as a whole. document_dataset.py makes batches of them.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

import numpy as np

from gpt.data import conversations, records, templated
from gpt.data.corpus_tokens import load_or_encode
from gpt.data.sources import Sources
from gpt.data.text_dataset import SPLITS, random_uniform
from gpt.data.text_reader import TextStats, iter_whole_lines
from gpt.data.token_cache import (
  Encoded,
  EncodedInfo,
  Encoder,
  encode_pieces,
)
from gpt.data.token_shards import TokenShards
from gpt.errors import UserError
from gpt.tokenizers import Tokenizer
from gpt.tokenizers.chat_format import END_TURN, USER

LINES_NAME = 'format=lines'  # Part of the token cache's fingerprint.
# Random stream; text_dataset.py uses 0 and 1.
SPLIT_STREAM = 2
# A document in a batch: its number, its row and its columns.
Place = tuple[int, int, slice]


@dataclasses.dataclass
class Documents:
  """A corpus of documents: tokens, boundaries and the validation split.

  Attributes:
    tokens: uint16[n] or uint32[n], read-only; an EOS id follows each document.
    starts, ends: int64[n_docs]; an end is one past the EOS.
    held_out: bool[n_docs], the validation documents.
    opening, closing: the ids before a document and in place of its EOS.
    chat: whether the documents are conversations.
    is_assistant: of conversations, marks the tokens of int[B, L] that the
      assistant writes: bool[B, L].
    description: where the text comes from, in words.
    info: facts about the encoding.
    kind: as in gpt.data.sources.Sources.
  """

  tokens: np.ndarray | TokenShards
  starts: np.ndarray
  ends: np.ndarray
  held_out: np.ndarray
  opening: int
  closing: int
  chat: bool
  description: str
  info: EncodedInfo
  kind: str = 'files'
  is_assistant: Callable[[np.ndarray], np.ndarray] | None = None

  def __len__(self) -> int:
    return len(self.starts)

  @property
  def noun(self) -> str:
    """'conversations' or 'documents', for messages."""
    return 'conversations' if self.chat else 'documents'

  @property
  def lengths(self) -> np.ndarray:
    """int64[n_docs], tokens including the opening and closing ones."""
    return self.ends - self.starts + 1

  def size(self, split: str) -> int:
    """Number of documents in 'train', 'val' or 'all'."""
    return len(self.chosen(split))

  def read(self, i: int) -> np.ndarray:
    """int32[n]: the opening token, the document, the closing token."""
    text = self.tokens[self.starts[i] : self.ends[i] - 1]
    whole = [[self.opening], text, [self.closing]]
    return np.concatenate(whole, dtype=np.int32)

  def assistant(self, i: int) -> np.ndarray:
    """bool[n]: the tokens of `read(i)` that the assistant writes."""
    assert self.is_assistant is not None
    return self.is_assistant(self.read(i)[None])[0]

  def assistant_in(
    self, tokens_BL: np.ndarray, places: Sequence[Place]
  ) -> np.ndarray:
    """bool[B, L]: the tokens of a batch that the assistant writes.

    Args:
      tokens_BL: int[B, L].
      places: of the documents in it, which are cut if they are longer.
    """
    del places  # The control tokens show it, for a whole batch at once.
    assert self.is_assistant is not None
    return self.is_assistant(tokens_BL)

  def chosen(self, split: str) -> np.ndarray:
    """int64[n], indices of the documents in 'train', 'val' or 'all'."""
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


@dataclasses.dataclass
class TemplatedDocuments(Documents):
  """Conversations in the form of a chat template; see templated.py.

  Attributes:
    vocab_size: of the tokenizer.
  """

  vocab_size: int = 0

  @property
  def lengths(self) -> np.ndarray:
    """int64[n_docs], in tokens."""
    return self.ends - self.starts - 1

  def _values(self, i: int) -> np.ndarray:
    return np.asarray(self.tokens[self.starts[i] : self.ends[i] - 1], np.int64)

  def read(self, i: int) -> np.ndarray:
    """int32[n]: the conversation."""
    return (self._values(i) % self.vocab_size).astype(np.int32)

  def assistant(self, i: int) -> np.ndarray:
    """bool[n]: the tokens of `read(i)` that the assistant writes."""
    return self._values(i) >= self.vocab_size

  def assistant_in(
    self, tokens_BL: np.ndarray, places: Sequence[Place]
  ) -> np.ndarray:
    """As Documents.assistant_in."""
    written_BL = np.zeros(tokens_BL.shape, bool)
    for i, row, columns in places:
      length = columns.stop - columns.start
      written_BL[row, columns] = self.assistant(i)[:length]
    return written_BL

  def question(self, i: int) -> np.ndarray:
    """int32[n]: what stands before the first token of the assistant."""
    written = self.assistant(i)
    end = int(written.argmax()) if written.any() else len(written)
    return self.read(i)[:end]


def iter_lines_as_documents(
  sources: Sources, stats: TextStats
) -> Iterator[str]:
  """Yields each nonblank line or record, without surrounding white space.

  Raises:
    UserError: a file cannot be read.
  """
  for source in sources.items:
    if source.are_records:
      texts = records.iter_texts(source, stats)
    else:
      texts = (line for _, line in iter_whole_lines(source, stats))
    for text in texts:
      if document := text.strip():
        yield document


def encode_lines(
  sources: Sources,
  tokenizer: Tokenizer,
  stats: TextStats,
  unknown: dict[str, int],
) -> Encoded:
  """The Encoder of token_cache.load_or_encode for lines."""
  pieces = (
    piece
    for document in iter_lines_as_documents(sources, stats)
    for piece in (document, None)
  )
  return encode_pieces(pieces, tokenizer, unknown)


# data.format -> (name in the token cache's fingerprint, Encoder).
FORMATS = {
  'lines': (LINES_NAME, encode_lines),
  'chat': (conversations.NAME, conversations.encode),
}


def hold_out(keys: Iterable[Hashable], fraction: float) -> np.ndarray:
  """Selects the validation documents, the same ones for every seed.

  Documents with equal keys share a split, so no duplicate of a training
  document validates.

  Args:
    keys: one for each of n documents.
    fraction: of the distinct keys to hold out, rounded; strictly between 0 and
      1 and with at least two keys, each split gets at least one.

  Returns:
    bool[n], true for validation.

  Raises:
    UserError: `fraction` is not between 0 and 1.
  """
  if not 0 <= fraction <= 1:
    raise UserError(
      f'data.val_fraction is {fraction}: it must be between 0 and 1'
    )
  numbers: dict[Hashable, int] = {}
  group = np.array([numbers.setdefault(k, len(numbers)) for k in keys], int)
  n = len(numbers)
  n_val = round(fraction * n)
  if n > 1 and 0 < fraction < 1:
    n_val = min(max(n_val, 1), n - 1)
  chosen = np.zeros(n, bool)
  chosen[np.argsort(random_uniform(0, 0, SPLIT_STREAM, n))[:n_val]] = True
  return chosen[group]


def encoding_of(
  tokenizer: Tokenizer, format: str
) -> tuple[str, Encoder, int | None]:
  """`separator`, `encode` and `end` of corpus_tokens.load_or_encode.

  Args:
    format: 'lines' or 'chat'.
  """
  if format == 'chat' and tokenizer.chat_template:
    end = templated.end_value(tokenizer)
    return templated.name(tokenizer), templated.encode, end
  return *FORMATS[format], None


def open_documents(
  sources: Sources,
  tokenizer: Tokenizer,
  cache_dir: str | os.PathLike,
  format: str,
  val_fraction: float,
  tidy: bool = False,
) -> Documents:
  """Encodes `sources`, unless the cache has them, and holds out documents.

  Identical lines share a split, as do conversations with the same first user
  turn.

  Args:
    sources: the text.
    tokenizer: must have a chat template or our chat tokens for 'chat'.
    cache_dir, tidy: see token_cache.load_or_encode.
    format: 'lines' or 'chat'.
    val_fraction: of the documents to hold out, 0 to 1.

  Raises:
    UserError: the text has no documents or cannot be read; `val_fraction` is
      out of range.
  """
  name, encode, end = encoding_of(tokenizer, format)
  chat, by_template = format == 'chat', end is not None
  tokens, starts, info = load_or_encode(
    sources, tokenizer, name, cache_dir, tidy, encode, end
  )
  if not len(starts):
    what = 'conversation with an assistant turn' if chat else 'document'
    raise UserError(f'no {what} in {sources.description}')
  ends = np.append(starts[1:], len(tokens))
  make = Documents
  if by_template:
    make = functools.partial(
      TemplatedDocuments, vocab_size=tokenizer.vocab_size
    )
  documents = make(
    tokens,
    starts,
    ends,
    np.zeros(len(starts), bool),
    tokenizer.bos_id,
    tokenizer.bos_id if chat else tokenizer.eos_id,
    chat,
    sources.description,
    info,
    sources.kind,
  )
  if isinstance(documents, TemplatedDocuments):
    keys = [_hash(documents.question(i)) for i in range(len(documents))]
  elif chat:
    documents.is_assistant = conversations.AssistantTokens(tokenizer)
    special = tokenizer.special_tokens
    user_turn = special[USER], special[END_TURN]
    keys = [
      _hash(_turn(tokens[a:b], *user_turn))
      for a, b in zip(starts.tolist(), ends.tolist())
    ]
  else:
    keys = [_hash(tokens[a:b]) for a, b in zip(starts.tolist(), ends.tolist())]
  documents.held_out = hold_out(keys, val_fraction)
  return documents


def _turn(tokens: np.ndarray, start: int, end: int) -> np.ndarray:
  """The first turn that begins with `start`, up to `end`."""
  tokens = tokens[int(np.argmax(tokens == start)) :]
  return tokens[: int(np.argmax(tokens == end))]


def _hash(tokens: np.ndarray) -> bytes:
  return hashlib.blake2b(tokens.tobytes(), digest_size=16).digest()
