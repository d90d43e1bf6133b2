"""GPT-2's own tokenizer files as a tokenizer.json: a vocabulary and merges.

OpenAI calls them encoder.json and vocab.bpe, transformers vocab.json and
merges.txt.
"""

import json
import pathlib

from gpt.errors import UserError, quoted
from gpt.files import parse_json, read_bytes
from gpt.tokenizers.base import MAX_FILE_BYTES
from gpt.tokenizers.hf_parts import added_token, bpe_spec

# Vocabulary and merges.
PAIRS = (('vocab.json', 'merges.txt'), ('encoder.json', 'vocab.bpe'))
END = '<|endoftext|>'


def find_files(
  directory: pathlib.Path,
) -> tuple[pathlib.Path, pathlib.Path] | None:
  """The two files in a directory, if it has them."""
  for names in PAIRS:
    vocab, merges = (directory / name for name in names)
    if vocab.is_file() and merges.is_file():
      return vocab, merges
  return None


def to_tokenizer_json(vocab: pathlib.Path, merges: pathlib.Path) -> bytes:
  """The bytes of a tokenizer.json.

  Raises:
    UserError: a file cannot be read, or is no such file.
  """
  ids = parse_json(read_bytes(vocab, MAX_FILE_BYTES), vocab)
  if not isinstance(ids, dict):
    raise UserError(
      f'{vocab} holds {quoted(ids)}; allowed: an object {{"token": id, ...}}'
    )
  try:
    text = read_bytes(merges, MAX_FILE_BYTES).decode()
  except UnicodeDecodeError as e:
    raise UserError(f'{merges} is not UTF-8: {e}') from e
  pairs = [
    line.split(' ')
    for line in text.split('\n')
    if line and not line.startswith('#version')
  ]
  if odd := next((pair for pair in pairs if len(pair) != 2), None):
    raise UserError(
      f'{merges} has the line {quoted(" ".join(odd))}; allowed: two tokens'
    )
  bytes_ = {
    'type': 'ByteLevel',
    'add_prefix_space': False,
    'trim_offsets': True,
    'use_regex': True,
  }
  spec = bpe_spec(
    ids,
    pairs,
    [added_token(ids[END], END)] if END in ids else [],
    normalizer=None,
    pre_tokenizer=bytes_,
    decoder=bytes_,
  )
  return json.dumps(spec).encode()
