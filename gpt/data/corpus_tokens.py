"""The tokens of a corpus: one file for a small text, shards for a large one.

The tokens are the same, whichever way they are stored.
"""

import os
import pathlib
import shutil

import numpy as np

from gpt.data import shard_encoding, token_cache
from gpt.data.sources import Sources
from gpt.data.token_cache import EncodedInfo, Encoder
from gpt.data.token_files import are_tokens
from gpt.data.token_shards import TokenShards
from gpt.errors import UserError
from gpt.tokenizers import Tokenizer

# Bytes of files; starting processes takes longer than encoding less.
SHARDS_FROM = 48 << 20
TRIES = 3  # A damaged shard is found when all are complete.


def load_or_encode(
  sources: Sources,
  tokenizer: Tokenizer,
  separator: str,
  directory: str | os.PathLike,
  tidy: bool = False,
  encode: Encoder | None = None,
  end: int | None = None,
) -> tuple[np.ndarray | TokenShards, np.ndarray, EncodedInfo]:
  """The tokens of `sources`, from the cache or newly encoded.

  Args, results and errors: see token_cache.load_or_encode. The tokens of a
  large text are TokenShards.
  """
  directory = pathlib.Path(directory)
  corpus = _corpus(sources, tokenizer, separator, directory, encode, end)
  base = token_cache.base_of(directory, corpus.fingerprint)
  if not is_large(sources) or base.with_suffix('.json').exists():
    return token_cache.load_or_encode(
      sources, tokenizer, separator, directory, tidy, encode, end
    )
  found = shard_encoding.load(corpus, sources.sha256)
  for _ in range(TRIES):
    if found is not None:
      break
    encode_share(sources, tokenizer, separator, directory, encode, end)
    if sources.have_changed():
      shutil.rmtree(corpus.directory, ignore_errors=True)
      raise UserError(
        f'{sources.description} changed while it was being encoded: try again '
        'once nothing writes to it'
      )
    found = shard_encoding.load(corpus, sources.sha256)
  if found is None:
    raise UserError(
      f'the shards in {corpus.directory} are damaged as soon as they are '
      'written: set --config.data.cache_dir to another disk'
    )
  tokens, ends, info = found
  if tidy:
    token_cache.remove_others(directory, corpus.directory)
  starts = np.concatenate([[0], ends + 1]).astype(np.int64)
  return tokens, starts[starts < info.n_tokens], info


def is_large(sources: Sources) -> bool:
  """Whether a text is encoded into shards."""
  return sources.size >= SHARDS_FROM and not are_tokens(sources)


def encode_share(
  sources: Sources,
  tokenizer: Tokenizer,
  separator: str,
  directory: str | os.PathLike,
  encode: Encoder | None = None,
  end: int | None = None,
  share: int = 0,
  shares: int = 1,
  wait: bool = False,
) -> None:
  """Encodes one process's share of a large text.

  Args:
    sources, ...: see load_or_encode.
    share, shares: number of the process, from 0, and how many there are.
    wait: wait for the shares of the others.

  Raises:
    UserError: the text cannot be read, or the directory cannot be written to.
  """
  corpus = _corpus(
    sources, tokenizer, separator, pathlib.Path(directory), encode, end
  )
  try:
    shard_encoding.encode(corpus, share, shares)
    if wait:
      shard_encoding.wait(corpus)
  except OSError as e:
    raise UserError(
      f'cannot write the token cache in {directory}: {e.strerror}; free '
      'some space or set --config.data.cache_dir to another directory'
    ) from e


def _corpus(
  sources: Sources,
  tokenizer: Tokenizer,
  separator: str,
  directory: pathlib.Path,
  encode: Encoder | None,
  end: int | None,
) -> shard_encoding.Corpus:
  largest = tokenizer.vocab_size - 1 if end is None else end
  fingerprint = token_cache.corpus_fingerprint(
    sources.sha256, tokenizer, separator, largest
  )
  return shard_encoding.Corpus(
    sources,
    tokenizer,
    'none' if encode else separator,
    encode,
    token_cache.token_dtype(largest + 1),
    tokenizer.eos_id if end is None else end,
    fingerprint,
    directory / f'corpus-{fingerprint[:16]}',
  )
