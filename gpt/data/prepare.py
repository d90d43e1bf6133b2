"""`config.data` -> tokenizer, corpus, dataset: whatever the data.format.

It exists so that a run's text and tokenizer are decided in one place: what the
workdir already has is kept, and what differs from it is said or refused.
"""

import copy
import logging
import pathlib
import shutil

import numpy as np

from gpt.data import record
from gpt.data.conversations import iter_texts
from gpt.data.document_dataset import DocumentDataset
from gpt.data.documents import FORMATS as DOCUMENT_FORMATS
from gpt.data.documents import Documents, open_documents
from gpt.data.lines import iter_documents
from gpt.data.sources import Sources, find_sources
from gpt.data.text_dataset import SPLITS, Batch, Corpus, TextDataset
from gpt.data.text_reader import TextStats, iter_pieces
from gpt.data.token_cache import load_or_encode
from gpt.errors import UserError
from gpt.runs import workdir as run
from gpt.tokenizers import Tokenizer, build_tokenizer, load_tokenizer
from gpt.tokenizers.base import EOS, META_FILE
from gpt.tokenizers.chat_format import CHAT_TOKENS

logger = logging.getLogger(__name__)

__all__ = [
  'Batch',
  'Corpus',
  'TextDataset',
  'create_dataset',
  'describe_unknown',
  'drop_leftovers',
  'keep_record',
  'open_corpus',
  'open_data',
  'prepare',
  'prepare_tokenizer',
]

FORMATS = ('text', *DOCUMENT_FORMATS)


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
) -> TextDataset | DocumentDataset:
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
  data_config, workdir, tokenizer=None, special_tokens=()
) -> tuple[Tokenizer, Corpus | Documents]:
  """Everything training needs from `config.data`: tokenizer and corpus.

  A tokenizer in the workdir is loaded and never trained again; otherwise it
  is read from data.tokenizer_path or built from the text, and saved there.

  Args:
    data_config: `config.data` (path, format, tokenizer, tokenizer_path,
      vocab_size, document_separator, document_aware, val_fraction,
      cache_dir).
    workdir: of the run; gets tokenizer/, cache/ and data.json (that of a run
      that has begun is left alone until it trains: keep_record).
    tokenizer: used instead if the workdir has none.
    special_tokens: extra control tokens of a tokenizer that is built; those of
      chat.py come by themselves where data.format is chat.

  Raises:
    UserError: text not found, not readable, empty; a tokenizer that differs
      from what data_config asks for.
  """
  workdir = pathlib.Path(workdir)
  check_format(data_config.format)
  if data_config.format == 'chat':
    special_tokens = (*CHAT_TOKENS, *special_tokens)
  before = record.read(workdir)
  sources = find_sources(data_config.path, prefer=before.get('kind', ''))
  if not sources.size:
    raise UserError(f'the text is empty: {sources.description}')
  begun = run.read_config(workdir) is not None
  if not (before or begun):
    # Says whose the tokenizer is, should this be cut short.
    record.write(workdir, sources.kind, sources.description, '')
  tokenizer = prepare_tokenizer(
    data_config, workdir, sources, tokenizer, special_tokens
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


def drop_leftovers(data_config, workdir, tokenizer=None) -> None:
  """Removes a tokenizer that was made here for another text, or otherwise.

  Args:
    data_config, workdir, tokenizer: as of `prepare`, which is called next; no
      run has begun in the workdir.
  """
  directory = pathlib.Path(workdir) / 'tokenizer'
  before = record.read(workdir)
  if 'text_sha256' not in before:
    return
  if find_sources(data_config.path).sha256() == before['text_sha256']:
    try:
      saved = load_tokenizer(directory)
      return _check_same(saved, data_config, tokenizer, directory)
    except UserError:
      pass
  shutil.rmtree(directory, ignore_errors=True)
  record.drop(workdir)


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
  """Writes down that a run uses this text."""
  record.write(
    workdir, corpus.kind, corpus.description, corpus.info.text_sha256
  )


def prepare_tokenizer(
  data_config, workdir, sources, tokenizer=None, special_tokens=()
) -> Tokenizer:
  """The workdir's tokenizer; if it has none, one is made and saved there."""
  directory = pathlib.Path(workdir) / 'tokenizer'
  if (directory / META_FILE).is_file():
    saved = load_tokenizer(directory)
    _check_same(saved, data_config, tokenizer, directory)
    _check_special(
      saved,
      special_tokens,
      f'the tokenizer in {directory}',
      'a run keeps its tokenizer; use another --workdir',
    )
    return saved
  if tokenizer is None and data_config.tokenizer_path:
    tokenizer = load_tokenizer(data_config.tokenizer_path)
  if tokenizer is not None:
    where = data_config.tokenizer_path or 'the tokenizer given'
    _check_kind(tokenizer, data_config, where)
    _check_special(tokenizer, special_tokens, where, 'give one that has them')
    tokenizer = copy.copy(tokenizer)
    tokenizer.requested_vocab_size = 0  # it was not this run that asked
  else:
    tokenizer = build_tokenizer(
      data_config.tokenizer,
      _texts(data_config, sources),
      data_config.vocab_size,
      special_tokens,
    )
    wanted = data_config.vocab_size
    if tokenizer.kind != 'char' and tokenizer.vocab_size != wanted:
      logger.info(
        f'tokenizer: the text gives {tokenizer.vocab_size:,} tokens, not the '
        f'{wanted:,} asked for'
      )
  tokenizer.save(directory)
  return tokenizer


def _texts(data_config, sources):
  """Yields all text of `sources`, without separators, for a tokenizer."""
  stats = TextStats()
  if data_config.format == 'chat':
    yield from iter_texts(sources, stats)
  elif data_config.format == 'lines':
    yield from iter_documents(sources, stats)
  else:
    for piece in iter_pieces(sources, data_config.document_separator, stats):
      if piece is not None:
        yield piece


def _check_special(tokenizer, names, where, advice) -> None:
  if missing := set(names) - set(tokenizer.special_tokens):
    raise UserError(f'{where} has no {", ".join(sorted(missing))}: {advice}')


def _check_kind(tokenizer, data_config, where) -> None:
  if tokenizer.kind != data_config.tokenizer:
    raise UserError(
      f'{where} is a {tokenizer.kind} tokenizer, but data.tokenizer is '
      f'{data_config.tokenizer}: set --config.data.tokenizer='
      f'{tokenizer.kind}, or give another tokenizer or workdir'
    )


def _check_same(saved, data_config, given, directory) -> None:
  """A run keeps its tokenizer: asking for another one is an error."""
  _check_kind(saved, data_config, directory)
  requested = saved.requested_vocab_size
  if requested and data_config.vocab_size != requested:
    raise UserError(
      f'{directory} was trained with data.vocab_size={requested}, now it is '
      f'{data_config.vocab_size}: a run keeps its tokenizer; set '
      f'--config.data.vocab_size={requested} or use another --workdir'
    )
  if given is None and data_config.tokenizer_path:
    path = pathlib.Path(data_config.tokenizer_path)
    given = load_tokenizer(path) if path.exists() else None
  if given is not None and given.fingerprint != saved.fingerprint:
    raise UserError(
      f'the tokenizer in {directory} is not the one given '
      f'({data_config.tokenizer_path or given.kind}): a run keeps its '
      'tokenizer; use another --workdir'
    )
