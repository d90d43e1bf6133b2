"""What a plan has to know of a text, from samples of it.

Reading a text of any size takes about a second: its length is known from the
files, and the rest is measured on pieces spread evenly over it.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gpt import logs
from gpt.data import conversations, records, text_sample
from gpt.data.raw_blocks import is_packed
from gpt.data.sources import Source, Sources, find_sources
from gpt.data.text_reader import TextStats, iter_text
from gpt.data.token_files import are_tokens
from gpt.errors import UserError
from gpt.planning import entropy
from gpt.planning.entropy import Entropy
from gpt.tokenizers import Tokenizer, build_tokenizer, load_tokenizer
from gpt.tokenizers.chat_format import as_turns

# Bytes of the samples of the training split and of the held-out one, and the
# pieces they are read in.
SAMPLE, HELD_OUT, PIECES = 1 << 20, 1 << 17, 16
# A vocabulary of so many tokens needs a text of so many bytes.
VOCABULARIES = {
  512: 300_000,
  1000: 500_000,
  2000: 1_500_000,
  4000: 4_000_000,
  8000: 20_000_000,
  16000: 200_000_000,
}
CHARACTERS = 'char'
# Documents (lines, conversations) fit the context up to this quantile.
LONG = 0.9


@dataclasses.dataclass(frozen=True)
class Text:
  """A text, in numbers; bytes are those of its content in UTF-8.

  Attributes:
    description: where it comes from, in words.
    format: 'text', 'lines' or 'chat', as data.format.
    bytes: of the whole text; of conversations, what is said in them.
    share_read: the part of the files that is content: 1 for plain text, less
      for JSON Lines, more for compressed files.
    share_trained: the part of the content that has a loss: what the assistant
      says, in conversations.
    distinct_bytes, distinct_characters: in the samples.
    entropy: what byte n-grams find in it.
    bytes_per_token: {vocabulary: bytes of a token}; 0 stands for characters.
    tokenizer: 'char', 'sentencepiece', or the kind of one that was given.
    characters: the vocabulary of characters, control tokens included.
    documents: how many lines or conversations there are, about; 0 for text.
    long_document: bytes of a long one; 0 for text.
    opening: a few words of the text, for a sample's prompt.
  """

  description: str
  format: str
  bytes: int
  share_read: float
  share_trained: float
  distinct_bytes: int
  distinct_characters: int
  entropy: Entropy
  bytes_per_token: dict[int, float]
  tokenizer: str = ''
  characters: int = 0
  documents: int = 0
  long_document: int = 0
  opening: str = ''


def measure(given: dict[str, Any]) -> Text:
  """Reads samples of the text that a config names.

  Args:
    given: flat keys of the config that have a value; of these, data.* count.

  Raises:
    UserError: the text is not found, empty, unreadable or too short.
  """
  path, field = given['data.path'], given.get('data.text_field', '')
  format = given.get('data.format')
  files = find_sources(path, '', format or 'text', field)
  if not files.size:
    raise UserError(f'the text is empty: {files.description}')
  if not format and (format := detect_format(files)) != 'text':
    files = find_sources(path, '', format, field)
  sources, scale = plain(files, format)
  val_fraction = given.get('data.val_fraction') or 0.1
  if format == 'text':
    train, held_out = _split_bytes(sources, val_fraction)
    documents, share, trained = [], 1.0, 1.0
  else:
    documents, share, trained = _documents(sources, format)
    train, held_out = _split_documents(documents)
  text = train.decode('utf-8', 'ignore')
  found = entropy.measure(
    np.frombuffer(train, np.uint8), np.frombuffer(held_out, np.uint8)
  )
  size = int(sources.size * share * scale)
  distinct = len(set(text))
  vocabularies, kind = _vocabularies(given, size, text, held_out, distinct)
  lengths = [len(x) for x in documents]
  total = sum(lengths)
  return Text(
    description=sources.description,
    format=format,
    bytes=size,
    share_read=size / files.size,
    share_trained=1.0 if given.get('data.loss_on') == 'all' else trained,
    distinct_bytes=int(np.unique(np.frombuffer(train, np.uint8)).size),
    distinct_characters=distinct,
    entropy=found,
    bytes_per_token=vocabularies,
    tokenizer=kind,
    characters=distinct + 2 + 3 * (format == 'chat'),
    documents=round(size * len(documents) / total) if total else 0,
    long_document=int(np.quantile(lengths, LONG)) if lengths else 0,
    opening=_opening(format, documents, text),
  )


def plain(sources: Sources, format: str) -> tuple[Sources, float]:
  """The text of files as bytes that a sample can be taken of.

  Args:
    format: 'text', 'lines' or 'chat'; of the last two, each line is one.

  Returns:
    (the sources; how many times as much there is). Plain text stays in its
    files. Records and compressed files are read, or blocks from all over them
    (text_sample.py).

  Raises:
    UserError: a file is no text, or damaged.
  """
  if are_tokens(sources):
    raise UserError(
      f'{sources.description} holds token ids, and a budget plans for a text: '
      'give the text, or --config.total_steps without a budget'
    )
  items = sources.items
  if not any(item.are_records or is_packed(item) for item in items):
    next(iter_text(items[0], TextStats()), None)  # Refuses what is no text.
    return sources, 1.0
  sampled = text_sample.sample(sources, whole_lines=format != 'text')
  every = 1 if sampled is sources else text_sample.every(sources)
  content = ''.join(_content_of(sampled, format)).encode('utf-8', 'replace')
  whole = Source(items[0].name, data=content)
  return dataclasses.replace(sources, items=(whole,)), every


def _content_of(sources: Sources, format: str) -> Iterator[str]:
  """The text; if lines are documents, with a line for each record."""
  for item in sources.items:
    if not item.are_records:
      yield from iter_text(item, TextStats())
    elif format == 'chat':
      for _, value in records.iter_values(item, TextStats()):
        yield f'{json.dumps(value, default=str)}\n'
    else:
      for text in records.iter_texts(item, TextStats()):
        yield f'{text if format == "text" else " ".join(text.split())}\n'


def detect_format(sources: Sources) -> str:
  """'chat' if the first line is a conversation in JSON, else 'text'."""
  with sources.items[0].open() as f:
    first = f.readline(1 << 20).strip()
  if not first.startswith(b'['):
    return 'text'
  try:
    conversations.parse(first.decode('utf-8', 'replace'), 1)
  except UserError:
    return 'text'
  return 'chat'


def read_pieces(
  sources: Sources, start: int, end: int, size: int
) -> list[bytes]:
  """PIECES of sources[start:end], `size` bytes together, spread evenly.

  All of it, as one piece, if it is no longer.
  """
  if end - start <= size:
    return [_read(sources, start, end)]
  piece = size // PIECES
  starts = np.linspace(start, end - piece, PIECES).astype(int).tolist()
  return [_read(sources, at, at + piece) for at in starts]


def _read(sources: Sources, start: int, end: int) -> bytes:
  """Bytes start .. end of the sources, as if they were one file."""
  found, offset = [], 0
  for item in sources.items:
    first, last = max(start - offset, 0), min(end - offset, item.size)
    if first < last:
      with item.open() as f:
        f.seek(first)
        found.append(f.read(last - first))
    offset += item.size
  return b''.join(found)


def _split_bytes(sources: Sources, val_fraction: float) -> tuple[bytes, bytes]:
  """Samples of the training split and of the held-out end of a text."""
  size = sources.size
  at = int(size * (1 - val_fraction))
  train = read_pieces(sources, 0, at, SAMPLE)
  held_out = read_pieces(sources, at, size, HELD_OUT)
  return b''.join(train), b''.join(held_out)


def _documents(
  sources: Sources, format: str
) -> tuple[list[bytes], float, float]:
  """Sampled lines or conversations.

  Returns:
    (their content, the texts of a conversation joined by newlines; bytes of
    content per byte read; the part of the content that has a loss).

  Raises:
    UserError: the first lines are no conversations, or there are none.
  """
  found: list[bytes] = []
  read = trained = 0
  pieces = read_pieces(sources, 0, sources.size, SAMPLE + HELD_OUT)
  for i, piece in enumerate(pieces):
    lines = piece.split(b'\n')
    # A piece from the middle begins and ends within a line.
    lines = lines[i > 0 : len(lines) - (i + 1 < len(pieces))]
    for number, line in enumerate(lines, 1):
      content, said = _content(line, format, number, strict=i == 0)
      if content:
        found.append(content)
        read += len(line) + 1
        trained += said
  if not found:
    raise UserError(
      f'{sources.description} holds no '
      f'{"conversations" if format == "chat" else "lines"} to learn from'
    )
  size = sum(map(len, found))
  return found, min(1.0, size / read), min(1.0, trained / size)


def _content(
  line: bytes, format: str, number: int, strict: bool
) -> tuple[bytes, int]:
  """(content of a line, number of its bytes that have a loss)."""
  text = line.decode('utf-8', 'replace').strip()
  if format != 'chat' or not text:
    return text.encode(), len(text.encode())
  try:
    messages = conversations.parse(text, number)
  except UserError:
    if strict:
      raise
    return b'', 0
  messages = conversations.clean(messages, TextStats())
  turns = as_turns(messages)
  texts = [x for _, texts in turns for x in texts]
  answers = [x for role, texts in turns if role == 'assistant' for x in texts]
  content, said = (
    '\n'.join(x).encode('utf-8', 'replace') for x in (texts, answers)
  )
  return content, len(said)


def _split_documents(documents: Sequence[bytes]) -> tuple[bytes, bytes]:
  """Nine of ten documents to count, and the others, which are held out."""
  train = [x for i, x in enumerate(documents) if i % 10]
  held_out = [x for i, x in enumerate(documents) if i % 10 == 0]
  return b'\n'.join(train), b'\n'.join(held_out)[:HELD_OUT]


def _vocabularies(
  given: dict[str, Any], size: int, text: str, held_out: bytes, distinct: int
) -> tuple[dict[int, float], str]:
  """({vocabulary: bytes per token}, kind of tokenizer).

  Every vocabulary that suits a text of `size` bytes is trained on the sample;
  a tokenizer, a kind or a size that was given is the only one.
  """
  scored = held_out.decode('utf-8', 'ignore') or text
  if path := given.get('data.tokenizer_path'):
    tokenizer = load_tokenizer(path)
    kind = given.get('data.tokenizer') or tokenizer.kind
    return {tokenizer.vocab_size: _density(tokenizer, scored)}, kind
  kind = given.get('data.tokenizer') or ''
  chosen = given.get('data.vocab_size')
  wanted: list[int] = []
  if kind != CHARACTERS:
    wanted = [chosen] if chosen else list(_suitable(size, distinct))
  if kind not in ('', CHARACTERS) and not wanted:
    wanted = list(_suitable(max(VOCABULARIES.values()), distinct))[:1]
    if not wanted:
      raise UserError(
        f'the text has {distinct:,} different characters, too many for the '
        f'vocabularies that are planned for (up to {max(VOCABULARIES):,}): '
        'give --config.data.vocab_size'
      )
  found = {}
  if kind == CHARACTERS or not (kind or chosen):
    found[0] = len(scored.encode()) / max(1, len(scored))
  with logs.quiet():
    for vocab in wanted:
      texts = [text]
      tokenizer = build_tokenizer(kind or 'sentencepiece', texts, vocab, ())
      found[tokenizer.vocab_size] = _density(tokenizer, scored)
  return found, kind


def _suitable(size: int, distinct: int) -> Iterator[int]:
  """Vocabularies for a text of `size` bytes and so many characters."""
  for vocab, least in VOCABULARIES.items():
    # 256 bytes and every character have tokens of their own.
    if size >= least and vocab > 300 + 1.5 * distinct:
      yield vocab


def _density(tokenizer: Tokenizer, text: str) -> float:
  """UTF-8 bytes of a token."""
  return len(text.encode()) / max(1, len(tokenizer.encode(text)))


def _opening(format: str, documents: Sequence[bytes], text: str) -> str:
  """A prompt for the sample: a first message, or the first words."""
  if format == 'lines':
    return ''
  if format == 'chat':
    return documents[0].split(b'\n')[0].decode('utf-8', 'replace')[:200]
  words = text.lstrip().split('\n')[0][:40]
  return words.rsplit(' ', 1)[0] if len(words) == 40 else words
