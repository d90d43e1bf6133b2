"""The tokens of one block of a corpus: what an encoder process computes."""

from typing import NamedTuple

import numpy as np

from gpt.data.pieces import Before, iter_pieces
from gpt.data.sources import Source, Sources
from gpt.data.text_reader import TextStats
from gpt.data.token_cache import Encoder, encode_pieces
from gpt.tokenizers import Tokenizer


class Task(NamedTuple):
  """Settings shared by all blocks of an encoding.

  Attributes:
    tokenizer: a directory that load_tokenizer reads.
    fingerprint: of that tokenizer.
    separator: data.document_separator; without an encoder.
    encode: the Encoder of documents with structure of their own, or None.
    dtype: of the tokens, as in token_cache.token_dtype.
    end: the value that ends a document.
  """

  tokenizer: str
  fingerprint: str
  separator: str
  encode: Encoder | None
  dtype: str
  end: int


class Encoded(NamedTuple):
  """The tokens of a block: values, and where documents end among them."""

  tokens: np.ndarray
  ends: np.ndarray
  chars: int
  unknown: dict[str, int]
  stats: TextStats


def encode_block(
  task: Task, tokenizer: Tokenizer, source: Source, before: Before
) -> Encoded:
  """The tokens of a block; raises UserError as the reader of its text."""
  stats, unknown = TextStats(), {}
  found, chars = [], 0
  sources = Sources('files', (source,), '')
  if task.encode is not None:
    encoded = task.encode(sources, tokenizer, stats, unknown)
  else:
    pieces = iter_pieces(sources, task.separator, stats, before)
    encoded = encode_pieces(pieces, tokenizer, unknown, before.open)
  for ids, n_chars in encoded:
    found.append(ids)
    chars += n_chars
  dtype = np.dtype(task.dtype)
  tokens = np.concatenate(found or [np.zeros(0)]).astype(dtype)
  ends = np.flatnonzero(tokens == task.end).astype('<u4')
  return Encoded(tokens, ends, chars, unknown, stats)
