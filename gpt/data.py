"""Text -> token arrays -> batch_at(step).

It exists so that training asks for the batch of a step and gets the same one
on every machine, in every process and after every resume: batches are a pure
function of (seed, step), the corpus is a memory map, and there is no state.
"""

import dataclasses
import json
import pathlib

import numpy as np

from gpt.errors import UserError
from gpt.sources import Sources, TextStats, find_sources, iter_pieces
from gpt.token_cache import EncodedInfo, load_or_encode
from gpt.tokenizer import Tokenizer, build_tokenizer, load_tokenizer
from gpt.tokenizer_base import META_FILE, write_atomic

DATA_FILE = 'data.json'
SPLITS = ('train', 'val', 'all')
# Streams of random numbers: the last word of the counter they start from.
TRAIN_STREAM, EVAL_STREAM = 0, 1

Batch = dict[str, np.ndarray]


@dataclasses.dataclass
class Corpus:
  """Tokens of a text and what is known about it.

  tokens: uint16[n] or uint32[n], a read-only memory map; each document but
    the last ends with the EOS id.
  doc_starts: int64[n_docs], the index of each document's first token.
  n_train: tokens[:n_train] train, tokens[n_train:] validate.
  description: where the text comes from, in words.
  """

  tokens: np.ndarray
  doc_starts: np.ndarray
  n_train: int
  description: str
  info: EncodedInfo | None = None

  @property
  def n_val(self) -> int:
    """Number of validation tokens."""
    return len(self.tokens) - self.n_train

  def bounds(self, split: str) -> tuple[int, int]:
    """(first, end) token index of 'train', 'val' or 'all'."""
    n = len(self.tokens)
    if split not in SPLITS:
      raise UserError(
        f'unknown split {split!r}: allowed are {", ".join(SPLITS)}'
      )
    return {'train': (0, self.n_train), 'val': (self.n_train, n),
            'all': (0, n)}[split]


def document_starts(tokens: np.ndarray, eos_id: int) -> np.ndarray:
  """int64[n_docs]: index 0 and each index after an EOS (bounded memory)."""
  starts = [np.zeros(min(1, len(tokens)), np.int64)]
  for i in range(0, len(tokens), 1 << 20):
    starts.append(np.flatnonzero(tokens[i : i + (1 << 20)] == eos_id) + i + 1)
  starts = np.concatenate(starts)
  return starts[starts < len(tokens)]


def open_corpus(
  sources: Sources,
  tokenizer: Tokenizer,
  cache_dir,
  document_separator: str = 'none',
  document_aware: bool = False,
  val_fraction: float = 0.1,
  log=print,
  tidy: bool = False,
) -> Corpus:
  """Encodes `sources` (or finds them encoded) and splits them.

  The first 1 - val_fraction of the tokens train, the rest validates. With
  document_aware the split moves to the nearest start of a document.
  """
  if not 0 <= val_fraction <= 1:
    raise UserError(
      f'data.val_fraction is {val_fraction}: it must be between 0 and 1'
    )
  tokens, info = load_or_encode(
    sources, tokenizer, document_separator, cache_dir, log, tidy
  )
  if repairs := info.stats.repairs():
    log(f'text: {repairs}')
  if info.unknown:
    log(describe_unknown(info.unknown))
  doc_starts = document_starts(tokens, tokenizer.eos_id)
  n_train = int(len(tokens) * (1 - val_fraction))
  inner = doc_starts[1:]
  if document_aware and len(inner) and 0 < val_fraction < 1:
    n_train = int(inner[np.abs(inner - n_train).argmin()])
  return Corpus(tokens, doc_starts, n_train, sources.description, info)


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
  data_config, workdir, tokenizer=None, log=print, special_tokens=()
) -> tuple[Tokenizer, Corpus]:
  """Everything training needs from `config.data`: tokenizer and corpus.

  A tokenizer in the workdir is loaded and never trained again; otherwise it
  is read from data.tokenizer_path or built from the text, and saved there.

  Args:
    data_config: `config.data` (path, format, tokenizer, tokenizer_path,
      vocab_size, document_separator, document_aware, val_fraction,
      cache_dir).
    workdir: of the run; gets tokenizer/, cache/ and data.json.
    tokenizer: used instead if the workdir has none.
    log: called with lines worth telling the user.
    special_tokens: extra control tokens of a tokenizer that is built.

  Raises:
    UserError: text not found, not readable, empty; a tokenizer that differs
      from what data_config asks for.
  """
  workdir = pathlib.Path(workdir)
  if data_config.format != 'text':
    raise UserError(
      f'data.format {data_config.format!r} is unknown here: allowed is text'
    )
  before = _read_record(workdir)
  sources = find_sources(data_config.path, prefer=before.get('kind', ''))
  tokenizer = prepare_tokenizer(
    data_config, workdir, sources, tokenizer, log, special_tokens
  )
  corpus = open_corpus(
    sources,
    tokenizer,
    data_config.cache_dir or workdir / 'cache',
    data_config.document_separator,
    data_config.document_aware,
    data_config.val_fraction,
    log,
    tidy=not data_config.cache_dir,
  )
  record = {'kind': sources.kind, 'description': sources.description,
            'text_sha256': corpus.info.text_sha256}
  if before and before.get('text_sha256') != record['text_sha256']:
    log(
      'the text has changed since this run last used it: '
      f'was {before.get("description")}, is {sources.description}'
    )
  if record != before:
    text = json.dumps(record, indent=1) + '\n'
    write_atomic(workdir / DATA_FILE, text.encode())
  n_docs = len(corpus.doc_starts)
  documents = f', {n_docs:,} documents' if n_docs > 1 else ''
  log(
    f'data: {sources.description}: {corpus.info.stats.bytes:,} bytes, '
    f'{len(corpus.tokens):,} tokens ({corpus.n_train:,} train, '
    f'{corpus.n_val:,} val){documents}'
  )
  log(f'tokenizer: {tokenizer.kind}, {tokenizer.vocab_size:,} tokens')
  return tokenizer, corpus


def _read_record(workdir: pathlib.Path) -> dict:
  try:
    record = json.loads((workdir / DATA_FILE).read_text(encoding='utf-8'))
    return record if isinstance(record, dict) else {}
  except (OSError, ValueError):
    return {}


def prepare_tokenizer(
  data_config, workdir, sources, tokenizer=None, log=print, special_tokens=()
) -> Tokenizer:
  """The workdir's tokenizer; if it has none, one is made and saved there."""
  directory = pathlib.Path(workdir) / 'tokenizer'
  if (directory / META_FILE).is_file():
    saved = load_tokenizer(directory)
    _check_same(saved, data_config, tokenizer, directory)
    return saved
  if tokenizer is None and data_config.tokenizer_path:
    tokenizer = load_tokenizer(data_config.tokenizer_path)
    _check_kind(tokenizer, data_config, data_config.tokenizer_path)
  if tokenizer is None:
    pieces = iter_pieces(sources, data_config.document_separator, TextStats())
    tokenizer = build_tokenizer(
      data_config.tokenizer,
      (piece for piece in pieces if piece is not None),
      data_config.vocab_size,
      special_tokens,
      log,
    )
    wanted = data_config.vocab_size
    if tokenizer.kind != 'char' and tokenizer.vocab_size != wanted:
      log(
        f'tokenizer: the text gives {tokenizer.vocab_size:,} tokens, not the '
        f'{wanted:,} asked for'
      )
  tokenizer.save(directory)
  return tokenizer


def _check_kind(tokenizer, data_config, where) -> None:
  if tokenizer.kind != data_config.tokenizer:
    raise UserError(
      f'{where} holds a {tokenizer.kind} tokenizer, but data.tokenizer is '
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


def random_uniform(seed: int, step: int, stream: int, n: int) -> np.ndarray:
  """float64[n] in [0, 1), a pure function of its arguments.

  Philox is counter-based and its raw output is fixed for good, unlike what
  numpy's Generator methods make of it.
  """
  key = np.array([seed % 2**64, step], np.uint64)
  counter = np.array([0, 0, 0, stream], np.uint64)
  raw = np.random.Philox(key=key, counter=counter).random_raw(n)
  return (raw >> np.uint64(11)) * 2.0**-53


class TextDataset:
  """Batches of windows from a Corpus.

  A window has block_size targets. In stream mode it is any block_size + 1
  tokens in a row. With document_aware it stays inside one document, which is
  preceded by a BOS that is not part of the text (so the first token is a
  target too, and generation can start from BOS); what lies beyond a short
  document has weight 0. Either way all targets of the split are drawn about
  equally often.
  """

  def __init__(
    self, corpus: Corpus, block_size: int, batch_size: int, seed: int,
    tokenizer: Tokenizer, document_aware: bool = False,
    splits=('train', 'val'),
  ):
    """Args as named; `splits` are those that will be used.

    Raises:
      UserError: a split is too short for one window.
    """
    self.corpus = corpus
    self.block_size = block_size
    self.batch_size = batch_size
    self.seed = seed
    self.document_aware = document_aware
    self._bos, self._eos = tokenizer.bos_id, tokenizer.eos_id
    self.bytes_V = np.array(
      [len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)],
      np.int32,
    )
    self._segments: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    self._check_lengths(splits)

  def _check_lengths(self, splits) -> None:
    need = 1 if self.document_aware else self.block_size + 1
    lengths = {}
    for split in splits:
      first, end = self.corpus.bounds(split)
      lengths[split] = end - first
    if any(n < need for n in lengths.values()):
      given = ', '.join(f'{n:,} {split}' for split, n in lengths.items())
      raise UserError(
        f'the text is too short for the window: {given} tokens, but '
        f'block_size={self.block_size} needs at least {need:,} in each. Give '
        'more text, lower --config.model.block_size or change '
        '--config.data.val_fraction'
      )

  def batch_at(self, step: int, rows: slice = slice(None)) -> Batch:
    """The training batch of `step` (0-based), or some of its rows.

    Returns:
      tokens int32[B, T+1], weights float32[B, T] of the targets
      tokens[:, 1:], rows int32[B], the indices in the whole batch.
    """
    draws = random_uniform(self.seed, step, TRAIN_STREAM, 2 * self.batch_size)
    row_ids = np.arange(self.batch_size, dtype=np.int32)[rows]
    return self._gather('train', draws.reshape(-1, 2)[rows], row_ids)

  def window_starts(self, step: int) -> np.ndarray:
    """int64[B]: first tokens of batch_at(step)'s windows (stream mode)."""
    draws = random_uniform(self.seed, step, TRAIN_STREAM, 2 * self.batch_size)
    return self._starts('train', draws.reshape(-1, 2)[:, 0])

  def eval_batches(self, split: str, windows=None, batch_size=None):
    """Yields batches that cover a split, or a fixed random part of it.

    Args:
      split: 'val', 'train' or 'all'.
      windows: None for every target exactly once, in order; a number for
        that many random windows, the same ones every time and for every seed.
      batch_size: rows per batch, default the training batch size. The last
        batch is filled up with rows of weight 0.
    """
    batch_size = batch_size or self.batch_size
    for start, batch in enumerate(self._eval_rows(split, windows, batch_size)):
      del start
      missing = batch_size - len(batch['rows'])
      if missing:
        batch = {
          'tokens': np.pad(batch['tokens'], ((0, missing), (0, 0))),
          'weights': np.pad(batch['weights'], ((0, missing), (0, 0))),
        }
      batch['rows'] = np.arange(batch_size, dtype=np.int32)
      yield batch

  def _eval_rows(self, split, windows, batch_size):
    if windows is not None:
      draws = random_uniform(0, SPLITS.index(split), EVAL_STREAM, 2 * windows)
      draws = draws.reshape(-1, 2)
      for i in range(0, windows, batch_size):
        part = draws[i : i + batch_size]
        yield self._gather(split, part, np.arange(len(part)))
      return
    rows = []
    for row in self._all_windows(split):
      rows.append(row)
      if len(rows) == batch_size:
        yield self._read_rows(rows)
        rows = []
    if rows:
      yield self._read_rows(rows)

  def _all_windows(self, split):
    """(start, end of its text, begins with BOS) of consecutive windows."""
    T = self.block_size
    if not self.document_aware:
      first, end = self.corpus.bounds(split)
      for start in range(first, end - 1, T):
        yield start, end, False
      return
    starts, ends, _ = self._segments_of(split)
    for a, b in zip(starts.tolist(), ends.tolist()):
      for offset in range(0, b - a, T):
        yield (a, b, True) if not offset else (a + offset - 1, b, False)

  def _segments_of(self, split):
    """Documents of a split: starts, ends int64[n]; cumulated draw weights.

    A document is drawn in proportion to the windows it fills (at least one),
    so that its targets are drawn as often as those of any other.
    """
    if split not in self._segments:
      first, end = self.corpus.bounds(split)
      docs = self.corpus.doc_starts
      inner = docs[(docs > first) & (docs < end)]
      starts = np.concatenate([[first], inner]).astype(np.int64)
      ends = np.concatenate([inner, [end]]).astype(np.int64)
      weights = np.maximum(1.0, (ends - starts) / self.block_size)
      self._segments[split] = starts, ends, np.cumsum(weights)
    return self._segments[split]

  def _starts(self, split, uniform):
    first, end = self.corpus.bounds(split)
    n = end - first - self.block_size
    return first + (uniform * n).astype(np.int64)

  def _gather(self, split, draws, row_ids) -> Batch:
    """Batch of the windows that float64[B, 2] draws choose."""
    if not self.document_aware:
      end = self.corpus.bounds(split)[1]
      starts = self._starts(split, draws[:, 0]).tolist()
      rows = [(s, end, False) for s in starts]
    else:
      starts, ends, cumulated = self._segments_of(split)
      chosen = np.searchsorted(
        cumulated, draws[:, 0] * cumulated[-1], side='right'
      )
      chosen = np.minimum(chosen, len(starts) - 1)
      a, b = starts[chosen], ends[chosen]
      n_offsets = np.maximum(1, b - a - self.block_size + 1)
      offsets = (draws[:, 1] * n_offsets).astype(np.int64)
      rows = [
        (int(s), int(e), True) if not o else (int(s + o - 1), int(e), False)
        for s, e, o in zip(a, b, offsets)
      ]
    batch = self._read_rows(rows)
    batch['rows'] = np.asarray(row_ids, np.int32)
    return batch

  def _read_rows(self, rows) -> Batch:
    T = self.block_size
    tokens = np.full((len(rows), T + 1), self._eos, np.int32)
    weights = np.zeros((len(rows), T), np.float32)
    for i, (start, end, bos) in enumerate(rows):
      text = self.corpus.tokens[start : min(start + T + 1 - bos, end)]
      n = len(text) + bos
      if bos:
        tokens[i, 0] = self._bos
      tokens[i, bos:n] = text
      weights[i, : n - 1] = 1
    return {'tokens': tokens, 'weights': weights,
            'rows': np.arange(len(rows), dtype=np.int32)}
