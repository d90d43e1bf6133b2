"""`config.data` -> tokenizer, corpus, dataset, for every data.format.

`prepare` chooses the text and the tokenizer of a run. It keeps what the
workdir already has, and logs or rejects differences.
"""

import contextlib
import logging
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from gpt.data import record
from gpt.data.conversations import cleanup_line
from gpt.data.corpus_tokens import encode_share as encode_part
from gpt.data.corpus_tokens import is_large, load_or_encode
from gpt.data.document_dataset import DocumentDataset
from gpt.data.documents import Documents, encoding_of, open_documents
from gpt.data.sources import Sources
from gpt.data.text_choice import (
  check_format,
  find_text,
  make_tokenizer,
  order,
)
from gpt.data.text_dataset import SPLITS, Corpus, TextDataset
from gpt.data.token_cache import EncodedInfo
from gpt.data.token_files import are_tokens, open_tokens
from gpt.errors import UserError
from gpt.tokenizers import Tokenizer
from gpt.tokenizers.base import EOS

logger = logging.getLogger(__name__)

Dataset = TextDataset | DocumentDataset


def create_dataset(
  config: Any,
  corpus: Corpus | Documents,
  tokenizer: Tokenizer,
  splits: Iterable[str] = ('train', 'val'),
) -> Dataset:
  """The dataset that `config` describes; logs cut and dropped documents.

  Args:
    config: ConfigDict; used are seed, batch_size, model.block_size and data.
    corpus: from prepare or open_data with the same data.format.
    tokenizer: the one that encoded the corpus.
    splits: the splits that will be used.

  Raises:
    UserError: a split is empty or too short.
  """
  if isinstance(corpus, Corpus):
    return TextDataset(
      corpus,
      config.model.block_size,
      config.batch_size,
      config.seed,
      tokenizer,
      config.data.document_aware,
      splits,
      order(config.data),
    )
  dataset = DocumentDataset(
    corpus,
    config.model.block_size,
    config.batch_size,
    config.seed,
    tokenizer,
    skip_long=config.data.skip_long,
    loss_on=config.data.loss_on,
    packing=config.data.packing,
    splits=splits,
  )
  for note in dataset.notes():
    logger.info(note)
  return dataset


def open_data(
  data_config: Any,
  sources: Sources,
  tokenizer: Tokenizer,
  cache_dir: str | os.PathLike,
  tidy: bool = False,
) -> Corpus | Documents:
  """Encodes `sources`, unless the cache has them, and splits the corpus.

  Args:
    data_config: `config.data` (format and val_fraction; for text also
      document_separator and document_aware).
    sources: the text.
    tokenizer: encodes it.
    cache_dir, tidy: see token_cache.load_or_encode.

  Raises:
    UserError: the text cannot be read or has no documents, or a value of
      data_config is not allowed.
  """
  check_format(data_config.format)
  if are_tokens(sources):
    if data_config.format != 'text':
      raise UserError(
        f'data.format={data_config.format} needs text, and '
        f'{sources.items[0].name} holds tokens: set data.format=text'
      )
    return open_tokens(sources, tokenizer, cache_dir, data_config.val_fraction)
  if data_config.format == 'text':
    return open_corpus(
      sources,
      tokenizer,
      cache_dir,
      data_config.document_separator,
      data_config.document_aware,
      data_config.val_fraction,
      tidy,
    )
  documents = open_documents(
    sources,
    tokenizer,
    cache_dir,
    data_config.format,
    data_config.val_fraction,
    tidy,
  )
  if documents.chat:
    logger.info(cleanup_line(documents.info.stats))
  _log_reading(documents.info)
  return documents


def open_corpus(
  sources: Sources,
  tokenizer: Tokenizer,
  cache_dir: str | os.PathLike,
  document_separator: str = 'none',
  document_aware: bool = False,
  val_fraction: float = 0.1,
  tidy: bool = False,
) -> Corpus:
  """Encodes a text, unless the cache has it, and splits it.

  The first 1 - val_fraction of the tokens train, the rest validate. With
  document_aware the boundary moves to the nearest document start, unless that
  would take away more than half of a split.

  Args:
    sources: the text.
    tokenizer: encodes it.
    cache_dir, tidy: see token_cache.load_or_encode.
    document_separator: see pieces.iter_pieces.
    document_aware: whether windows will stay inside documents.
    val_fraction: share of the tokens that validate, 0 to 1.

  Raises:
    UserError: the text cannot be read, or an argument is not allowed.
  """
  if not 0 <= val_fraction <= 1:
    raise UserError(
      f'data.val_fraction is {val_fraction}: it must be between 0 and 1'
    )
  tokens, doc_starts, info = load_or_encode(
    sources, tokenizer, document_separator, cache_dir, tidy
  )
  _log_reading(info)
  if document_separator != 'none' and info.documents < 2:
    logger.info(
      f'the text does not contain data.document_separator '
      f'{document_separator!r}, so it is one document'
    )
  elif document_separator == 'none' and info.stats.eos_marks:
    logger.info(
      f'the text contains {EOS} {info.stats.eos_marks:,} times, encoded as '
      f"ordinary characters; --config.data.document_separator='{EOS}' ends a "
      'document at each'
    )
  n_train = int(len(tokens) * (1 - val_fraction))
  inner = doc_starts[1:]
  if document_aware and len(inner) and 0 < val_fraction < 1:
    nearest = int(inner[np.abs(inner - n_train).argmin()])
    room = min(n_train, len(tokens) - n_train)
    if 2 * abs(nearest - n_train) <= room:
      n_train = nearest
    else:
      logger.info(
        'the training/validation boundary is inside a document: no document '
        'starts near it'
      )
  return Corpus(
    tokens, doc_starts, n_train, sources.description, info, sources.kind
  )


def _log_reading(info: EncodedInfo) -> None:
  """Logs repairs of the text and characters that encoding dropped."""
  if repairs := info.stats.repairs():
    logger.info(f'text: {repairs}')
  if info.unknown:
    logger.info(describe_unknown(info.unknown))


def describe_unknown(unknown: dict[str, int]) -> str:
  """'dropped N characters ...' for the characters that encoding dropped."""
  most = sorted(unknown.items(), key=lambda item: (-item[1], item[0]))[:8]
  shown = ', '.join(f'{c!r} x{n:,}' for c, n in most)
  more = f' and {len(unknown) - 8} others' if len(unknown) > 8 else ''
  return (
    f'dropped {sum(unknown.values()):,} characters that are not in the '
    f'vocabulary: {shown}{more}'
  )


def prepare(
  data_config: Any,
  workdir: str | os.PathLike,
  begun: bool = False,
  tokenizer: Tokenizer | None = None,
) -> tuple[Tokenizer, Corpus | Documents]:
  """The tokenizer and the corpus of a run.

  A run that has begun keeps the tokenizer in its workdir. Before that, the
  tokenizer is loaded from data.tokenizer_path or built from the text, and
  replaces one that was made for another text or other settings.

  Args:
    data_config: `config.data` (path, format, tokenizer, tokenizer_path,
      vocab_size, document_separator, document_aware, val_fraction,
      cache_dir).
    workdir: of the run; gets tokenizer/, cache/ and data.json. A run that has
      begun updates its data.json once it trains: keep_record.
    begun: whether the run's config.json exists.
    tokenizer: used instead of building one if the workdir has none.

  Raises:
    UserError: the text is not found, unreadable or empty; the tokenizer
      differs from what data_config asks for. A run that has not begun leaves
      no record and no tokenizer then.
  """
  workdir = pathlib.Path(workdir)
  sources, recorded = find_text(data_config, workdir, begun, tokenizer)
  with contextlib.ExitStack() as undo:
    tokenizer = make_tokenizer(
      data_config, workdir, sources, bool(recorded or begun), tokenizer, undo
    )
    corpus = open_data(
      data_config,
      sources,
      tokenizer,
      sources.memory or workdir / 'cache',
      tidy=not data_config.cache_dir,
    )
    undo.pop_all()
  sha256 = corpus.info.text_sha256
  if recorded.get('text_sha256', sha256) not in (sha256, ''):
    logger.info(
      'the text has changed since this run last used it: it was '
      f'{recorded.get("description")}, now it is {sources.description}'
    )
  if not begun:
    keep_record(workdir, corpus)
  logger.info(f'data: {sources.description}: {describe_corpus(corpus)}')
  logger.info(f'tokenizer: {tokenizer.kind}, {tokenizer.vocab_size:,} tokens')
  return tokenizer, corpus


def encode_share(
  data_config: Any,
  workdir: str | os.PathLike,
  begun: bool,
  tokenizer: Tokenizer | None,
  share: int,
  shares: int,
  in_turn: contextlib.AbstractContextManager[None],
  wait: bool = True,
) -> None:
  """Encodes one process's share of a large corpus; a small one waits.

  Every process of a run calls it before `prepare`, which then finds all shards.

  Args:
    data_config, workdir, begun, tokenizer: see prepare.
    share, shares: number of the process, from 0, and how many there are.
    in_turn: lets process 0 make the tokenizer before the others look for it.
    wait: wait for the shares of the others.

  Raises:
    UserError: as prepare.
  """
  workdir = pathlib.Path(workdir)
  with in_turn:
    sources, recorded = find_text(data_config, workdir, begun, tokenizer)
    if not is_large(sources):
      return
    with contextlib.ExitStack() as undo:
      known = bool(recorded or begun)
      tokenizer = make_tokenizer(
        data_config, workdir, sources, known, tokenizer, undo
      )
      undo.pop_all()
  assert sources.memory
  name, encode, end = data_config.document_separator, None, None
  if data_config.format != 'text':
    name, encode, end = encoding_of(tokenizer, data_config.format)
  encode_part(
    sources,
    tokenizer,
    name,
    sources.memory,
    encode,
    end,
    share,
    shares,
    wait,
  )


def describe_corpus(corpus: Corpus | Documents) -> str:
  """'N bytes, N tokens ...': the sizes of a corpus and its splits."""
  size = f'{corpus.info.stats.bytes:,} bytes, {len(corpus.tokens):,} tokens'
  train, val = (corpus.size(split) for split in SPLITS[:2])
  if isinstance(corpus, Documents):
    n = f'{len(corpus):,} {corpus.noun}'
    return f'{size}, {n} ({train:,} train, {val:,} val)'
  n = len(corpus.doc_starts)
  documents = f', {n:,} documents' if n > 1 else ''
  return f'{size} ({train:,} train, {val:,} val){documents}'


def keep_record(workdir: str | os.PathLike, corpus: Corpus | Documents) -> None:
  """Records in data.json that the run uses this text."""
  record.write(
    workdir, corpus.kind, corpus.description, corpus.info.text_sha256
  )
