"""SentencePiece byte-fallback BPE with lossless settings.

The settings are verified to be lossless with SentencePiece 0.2.3, and each one
matters: the identity normaliser keeps control characters, and the newline as a
user-defined symbol makes encoding line by line equal to encoding the whole.
"""

import io
import logging
import os
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import sentencepiece as spm

from gpt.errors import UserError
from gpt.files import read_bytes
from gpt.tokenizers import text_pieces
from gpt.tokenizers.base import (
  BOS,
  EOS,
  MAX_FILE_BYTES,
  BaseTokenizer,
  check_special_tokens,
  iter_lines,
  replace_surrogates,
)

logger = logging.getLogger(__name__)

MODEL_FILE = 'spm.model'
SPACE = '\u2581'  # How SentencePiece writes a space.
# SentencePiece reads U+2581 as a space (its issue 863, "won't fix").
SPACE_PIECES = ('<0xE2>', '<0x96>', '<0x81>')
TRAIN_BYTES = 10_000_000
SLACK = 1.25
MAX_ITEM_CHARS = 100_000  # Items above max_sentence_length vanish silently.
MAX_WORD_CHARS = 100  # To learn from: a merge takes time for a whole word.
LONG_WORD = re.compile(
  rf'\w{{{MAX_WORD_CHARS}}}(?=\w)|[^\w\s]{{{MAX_WORD_CHARS}}}(?=[^\w\s])'
)
BATCH_CHARS = 200_000  # Lists of Python ints are large: encode in batches.
SHORT_CHARS = 4_000  # Encoding a list of lines starts threads: slower below.
BYTE = re.compile('<0x[0-9A-F]{2}>$')
PROBE = ' a\n\n\tb  \u2581e\u0301\U0001f642\x00\r\n12 '


class SentencePieceTokenizer(BaseTokenizer):
  """A trained SentencePiece model; encode and decode are thread-safe.

  Args:
    model: the serialised model.
    requested_vocab_size: see BaseTokenizer.

  Raises:
    UserError: not a SentencePiece model, or one that changes text.
  """

  kind = 'sentencepiece'

  def __init__(self, model: bytes, requested_vocab_size: int = 0) -> None:
    try:
      if not model:
        raise RuntimeError('the file is empty')
      self._sp = sp = spm.SentencePieceProcessor(model_proto=model)
      pieces = [sp.id_to_piece(i) for i in range(sp.vocab_size())]
      if any(sp.is_byte(i) for i, x in enumerate(pieces) if not BYTE.match(x)):
        raise RuntimeError('a byte has another name than <0x00> to <0xFF>')
    except (RuntimeError, UnicodeDecodeError) as e:
      raise UserError(f'not a SentencePiece model: {e}') from e
    self.model = model
    self.requested_vocab_size = requested_vocab_size
    self.bos_id, self.eos_id = sp.bos_id(), sp.eos_id()
    if min(self.bos_id, self.eos_id) < 0:
      raise UserError('this SentencePiece model has no BOS or no EOS id')
    ids = range(sp.vocab_size())
    control = [i for i in ids if sp.is_control(i)]
    hidden = {*control, sp.unk_id(), sp.pad_id()} - {-1}
    self.special_tokens = {BOS: self.bos_id, EOS: self.eos_id} | {
      sp.id_to_piece(i): i
      for i in control
      if i not in (self.bos_id, self.eos_id, sp.pad_id())
    }
    self.unsampleable_ids = tuple(sorted(hidden - {self.eos_id}))
    self._bytes = [self._piece_bytes(i, hidden) for i in ids]
    self._space_ids = [sp.piece_to_id(p) for p in SPACE_PIECES]
    self._check_lossless()

  def _piece_bytes(self, id: int, hidden: set[int]) -> bytes:
    if id in hidden:
      return b''
    piece = self._sp.id_to_piece(id)
    if self._sp.is_byte(id):
      return bytes([int(piece[3:5], 16)])
    return piece.replace(SPACE, ' ').encode()

  def _check_lossless(self) -> None:
    ids = self.encode(PROBE).tolist()
    lines = [self._sp.encode(s) for s in ('a\n', 'b')]
    if self.decode(ids) != PROBE or self._sp.encode('a\nb') != sum(lines, []):
      raise UserError(
        'this SentencePiece model does not reproduce the text it encodes '
        '(because of its normaliser, dummy prefix or missing byte fallback); '
        'train one with data.tokenizer=sentencepiece'
      )

  def encode(self, text: str) -> np.ndarray:
    """int32[n] ids; control tokens are never produced from text."""
    out: list[np.ndarray] = []
    for i, part in enumerate(replace_surrogates(text).split(SPACE)):
      if i:
        out.append(np.array(self._space_ids, np.int32))
      if len(part) < SHORT_CHARS:
        out.append(np.array(self._sp.encode(part), np.int32))
      else:
        out += [self._encode_lines(batch) for batch in _line_batches(part)]
    return out[0] if len(out) == 1 else np.concatenate(out)

  def _encode_lines(self, lines: list[str]) -> np.ndarray:
    encoded = self._sp.encode(lines, num_threads=_threads())
    ids = [i for line in encoded for i in line]
    return np.array(ids, np.int32)

  def _files(self) -> dict[str, bytes]:
    return {MODEL_FILE: self.model}

  def _meta(self) -> dict[str, Any]:
    return {'model': MODEL_FILE}


def _threads() -> int:
  """Threads of SentencePiece for a list of lines; -1: one per core."""
  return int(os.environ.get('RGPT_TOKENIZER_THREADS', -1))


def _line_batches(text: str) -> Iterator[list[str]]:
  """Lists of lines (newline kept) of about BATCH_CHARS characters each.

  The ids of the lines are those of the whole text, and SentencePiece encodes
  them several times faster than one long string. Longer lines are cut as
  text_pieces.py describes: SentencePiece takes 60 bytes for a character.
  """
  batch, size = [], 0
  for line in iter_lines(text):
    for piece in text_pieces.cut(line) if len(line) > BATCH_CHARS else (line,):
      batch.append(piece)
      size += len(piece)
      if size >= BATCH_CHARS:
        yield batch
        batch, size = [], 0
  if batch:
    yield batch


def sample_lines(
  texts: Iterable[str], max_bytes: int, seed: int = 0
) -> tuple[list[str], float]:
  """A reproducible uniform sample of lines of at most `max_bytes`.

  One pass in bounded memory: each line draws a number in [0, 1) and stays while
  that is below a threshold, which falls when the lines exceed the limit by
  SLACK. SentencePiece's own sampling is not reproducible.

  Returns:
    (lines in their order, about the fraction of lines kept).
  """
  rng = random.Random(seed)
  kept: list[tuple[float, int, str]] = []
  held, threshold = 0, 1.0
  for text in texts:
    for line in iter_lines(text):
      for start in range(0, len(line), MAX_ITEM_CHARS):
        for item in line[start : start + MAX_ITEM_CHARS].split(SPACE):
          draw = rng.random()
          if not item.strip('\n') or draw >= threshold:
            continue
          size = len(item.encode('utf-8', 'replace'))
          kept.append((draw, size, item))
          held += size
          if held > SLACK * max_bytes:
            kept, threshold = _lowest(kept, max_bytes)
            held = sum(k[1] for k in kept)
  if held > max_bytes:
    kept, threshold = _lowest(kept, max_bytes)
  return [k[2] for k in kept], threshold


def _lowest(
  drawn: list[tuple[float, int, str]], max_bytes: int
) -> tuple[list[tuple[float, int, str]], float]:
  """The lines with the lowest draws that fit, at least one; the threshold."""
  order = sorted(drawn)
  sizes = np.cumsum([size for _, size, _ in order])
  n = max(1, int(np.searchsorted(sizes, max_bytes, 'right')))
  if n == len(order):
    return drawn, 1.0
  threshold = order[n][0]
  return [line for line in drawn if line[0] < threshold], threshold


def training_lines(texts: Iterable[str], max_bytes: int) -> list[str]:
  """The lines to train a tokenizer on; logs if they are a sample.

  Words of more than MAX_WORD_CHARS characters are cut.

  Raises:
    UserError: no text.
  """
  lines, fraction = sample_lines(texts, max_bytes)
  if not lines:
    raise UserError('cannot train a tokenizer: the text is empty')
  if fraction < 1:
    logger.info(
      f'tokenizer: training on a random {fraction:.4g} of the lines (at most '
      f'{max_bytes / 1e6:g} MB)'
    )
  return [part for line in lines for part in _without_long_words(line)]


def _without_long_words(line: str) -> Iterator[str]:
  start = 0
  if len(line) > MAX_WORD_CHARS:
    for word in LONG_WORD.finditer(line):
      yield line[start : word.end()]
      start = word.end()
  yield line[start:]


def build_sentencepiece(
  texts: Iterable[str],
  vocab_size: int,
  special_tokens: Sequence[str] = (),
  max_bytes: int = TRAIN_BYTES,
) -> SentencePieceTokenizer:
  """Trains byte-fallback BPE.

  Args:
    texts: pieces of text that end at line ends.
    vocab_size: wanted ids, control tokens and 256 bytes included; a small text
      gives fewer.
    special_tokens: extra control tokens, e.g. '<|user|>'.
    max_bytes: larger texts are sampled by line.

  Raises:
    UserError: no text, or vocab_size too small for bytes and characters.
  """
  names = check_special_tokens(special_tokens)
  lines = training_lines(texts, max_bytes)
  model = io.BytesIO()
  try:
    spm.SentencePieceTrainer.train(
      sentence_iterator=iter([replace_surrogates(s) for s in lines]),
      model_writer=model,
      model_type='bpe',
      vocab_size=vocab_size,
      byte_fallback=True,
      character_coverage=0.9995,
      normalization_rule_name='identity',
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      allow_whitespace_only_pieces=True,
      split_digits=True,
      max_sentence_length=1 << 20,
      hard_vocab_limit=False,
      num_threads=1,
      input_sentence_size=0,
      minloglevel=2,
      pad_id=0,
      bos_id=1,
      eos_id=2,
      unk_id=3,
      # In text with almost no spaces U+2581 would not be a piece, and a space
      # would become its bytes.
      required_chars=SPACE,
      control_symbols=list(names),
      user_defined_symbols=['\n', '\t', '\r'],
    )
  except RuntimeError as e:
    least = 4 + len(names) + 3 + 256 + 1
    raise UserError(
      f'cannot train a tokenizer with vocab_size={vocab_size}: {e}. Its '
      f'{least} control tokens and bytes and every frequent character of the '
      f'text need an id; try vocab_size={least + 256} or more'
    ) from e
  return SentencePieceTokenizer(model.getvalue(), vocab_size)


def read_sentencepiece(
  path: str | os.PathLike[str], requested_vocab_size: int = 0
) -> SentencePieceTokenizer:
  """Reads a SentencePiece model; UserError names the file and the fault."""
  data = read_bytes(path, MAX_FILE_BYTES)
  try:
    return SentencePieceTokenizer(data, requested_vocab_size)
  except UserError as e:
    raise UserError(f'{path}: {e}') from e
