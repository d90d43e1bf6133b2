"""`config.data` -> tokenizer, corpus, dataset, for every data.format.

A run's text and tokenizer are decided here: what the workdir already has is
kept, and a difference is logged or rejected.
"""

import logging
import pathlib
import shutil

import numpy as np

from gpt.data import record
from gpt.data.conversations import cleanup_line
from gpt.data.document_dataset import DocumentDataset
from gpt.data.documents import FORMATS as DOCUMENT_FORMATS
from gpt.data.documents import Documents, open_documents
from gpt.data.sources import Sources, find_sources
from gpt.data.text_dataset import SPLITS, Corpus, TextDataset
from gpt.data.token_cache import load_or_encode
from gpt.data.tokenizer_choice import check_same, prepare_tokenizer
from gpt.errors import UserError
from gpt.tokenizers import Tokenizer, load_tokenizer
from gpt.tokenizers.base import EOS

logger = logging.getLogger(__name__)

FORMATS = ('text', *DOCUMENT_FORMATS)
Dataset = TextDataset | DocumentDataset


def check_format(format: str) -> None:
  """Raises UserError unless this is one of FORMATS."""
  if format not in FORMATS:
    raise UserError(
      f'data.format {format!r} is not known; allowed: {", ".join(FORMATS)}'
    )


def create_dataset(
  config,
  corpus: Corpus | Documents,
  tokenizer,
  splits=('train', 'val'),
) -> Dataset:
  """Batches of a corpus, as `config` wants them.

  Args:
    config: ConfigDict; used are seed, batch_size, model.block_size and data.
    corpus: from prepare or open_data, of the same data.format.
    splits: those that will be used.

  Raises:
    UserError: a split is too short, or empty.
  """
  args = corpus, config.model.block_size, config.batch_size, config.seed
  if config.data.format == 'text':
    return TextDataset(*args, tokenizer, config.data.document_aware, splits)
  return DocumentDataset(
    *args,
    tokenizer,
    skip_long=config.data.skip_long,
    loss_on=config.data.loss_on,
    packing=config.data.packing,
    splits=splits,
  )


def open_data(
  data_config,
  sources: Sources,
  tokenizer: Tokenizer,
  cache_dir,
  tidy: bool = False,
) -> Corpus | Documents:
  """Encodes `sources` (or finds them encoded) and splits them.

  Args:
    data_config: `config.data` (format; for text document_separator and
      document_aware; val_fraction).
    cache_dir, tidy: see token_cache.load_or_encode.
  """
  check_format(data_config.format)
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
  cache_dir,
  document_separator: str = 'none',
  document_aware: bool = False,
  val_fraction: float = 0.1,
  tidy: bool = False,
) -> Corpus:
  """Encodes `sources` (or finds them encoded) and splits them.

  The first 1 - val_fraction of the tokens train, the rest validates. With
  document_aware the split moves to the nearest start of a document, unless
  that would take half of a split away.
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
      f'data.document_separator {document_separator!r} is not in the text: it '
      'is one document'
    )
  elif document_separator == 'none' and info.stats.eos_marks:
    logger.info(
      f'the text has {EOS} {info.stats.eos_marks:,} times, which are letters '
      f"like others; --config.data.document_separator='{EOS}' ends documents "
      'there'
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
        'the split into training and validation goes through a document: none '
        'begins near it'
      )
  return Corpus(
    tokens, doc_starts, n_train, sources.description, info, sources.kind
  )


def _log_reading(info) -> None:
  """Says what reading and encoding had to change."""
  if repairs := info.stats.repairs():
    logger.info(f'text: {repairs}')
  if info.unknown:
    logger.info(describe_unknown(info.unknown))


def describe_unknown(unknown: dict[str, int]) -> str:
  """'dropped N characters ...' for what encode() could not represent."""
  most = sorted(unknown.items(), key=lambda item: (-item[1], item[0]))[:8]
  shown = ', '.join(f'{c!r} x{n:,}' for c, n in most)
  more = f' and {len(unknown) - 8} others' if len(unknown) > 8 else ''
  return (
    f'dropped {sum(unknown.values()):,} characters that are not in the '
    f'vocabulary: {shown}{more}'
  )


def prepare(
  data_config,
  workdir,
  begun: bool = False,
  tokenizer: Tokenizer | None = None,
) -> tuple[Tokenizer, Corpus | Documents]:
  """Tokenizer and corpus for training, from `config.data` and the workdir.

  A tokenizer in the workdir of a run that has begun is loaded and never
  trained again; otherwise it is read from data.tokenizer_path or built from
  the text, and saved there. Before a run has begun, a tokenizer made for other
  text or other settings is replaced.

  Args:
    data_config: `config.data` (path, format, tokenizer, tokenizer_path,
      vocab_size, document_separator, document_aware, val_fraction,
      cache_dir).
    workdir: of the run; gets tokenizer/, cache/ and data.json. The data.json
      of a run that has begun stays until it trains: keep_record.
    begun: whether the run's config.json exists.
    tokenizer: used instead if the workdir has none.

  Raises:
    UserError: text not found, unreadable or empty; a tokenizer that differs
      from what data_config asks for.
  """
  workdir = pathlib.Path(workdir)
  check_format(data_config.format)
  before = record.read(workdir)
  sources = find_sources(
    data_config.path, prefer=before.get('kind', '') if begun else ''
  )
  if not sources.size:
    raise UserError(f'the text is empty: {sources.description}')
  if not begun:
    before = _drop_leftovers(data_config, workdir, before, sources, tokenizer)
  if not (before or begun):
    # Recorded first, so that an interrupted start can be cleaned up.
    record.write(workdir, sources.kind, sources.description, '')
  tokenizer = prepare_tokenizer(
    data_config, workdir / 'tokenizer', sources, tokenizer
  )
  corpus = open_data(
    data_config,
    sources,
    tokenizer,
    data_config.cache_dir or workdir / 'cache',
    tidy=not data_config.cache_dir,
  )
  sha256 = corpus.info.text_sha256
  if before.get('text_sha256', sha256) not in (sha256, ''):
    logger.info(
      'the text has changed since this run last used it: '
      f'was {before.get("description")}, is {sources.description}'
    )
  if not begun:
    keep_record(workdir, corpus)
  logger.info(f'data: {sources.description}: {describe(corpus)}')
  logger.info(f'tokenizer: {tokenizer.kind}, {tokenizer.vocab_size:,} tokens')
  return tokenizer, corpus


def _drop_leftovers(
  data_config,
  workdir: pathlib.Path,
  before: dict,
  sources: Sources,
  tokenizer: Tokenizer | None,
) -> dict:
  """Removes a tokenizer made here for other text or settings.

  Returns:
    The record that still holds: `before`, or {} if it was dropped.
  """
  if 'text_sha256' not in before:
    return before
  directory = workdir / 'tokenizer'
  if sources.sha256 == before['text_sha256']:
    try:
      saved = load_tokenizer(directory)
      check_same(saved, data_config, tokenizer, directory)
      return before
    except UserError:
      pass
  shutil.rmtree(directory, ignore_errors=True)
  record.drop(workdir)
  return {}


def describe(corpus: Corpus | Documents) -> str:
  """The sizes of a corpus and its splits, in words."""
  size = f'{corpus.info.stats.bytes:,} bytes, {len(corpus.tokens):,} tokens'
  train, val = (corpus.size(split) for split in SPLITS[:2])
  if isinstance(corpus, Documents):
    n = f'{len(corpus):,} {corpus.noun}'
    return f'{size}, {n} ({train:,} train, {val:,} val)'
  n = len(corpus.doc_starts)
  documents = f', {n:,} documents' if n > 1 else ''
  return f'{size} ({train:,} train, {val:,} val){documents}'


def keep_record(workdir, corpus: Corpus | Documents) -> None:
  """Records in data.json that a run uses this text."""
  record.write(
    workdir, corpus.kind, corpus.description, corpus.info.text_sha256
  )
