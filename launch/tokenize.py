"""Encode text on stdin as a JSON list of token ids, or decode.

python -m launch.tokenize --tokenizer=runs/l < text.txt > ids.json
python -m launch.tokenize --tokenizer=runs/l --decode < ids.json
"""

import json
import sys

from absl import flags

from gpt.data.prepare import describe_unknown
from gpt.errors import UserError
from gpt.files import parse_json
from gpt.tokenizers import load_tokenizer
from launch import cli

TOKENIZER = flags.DEFINE_string(
  'tokenizer',
  '',
  'Workdir of a run, tokenizer directory, RandyGPT vocab.json or '
  'SentencePiece model.',
)
DECODE = flags.DEFINE_bool(
  'decode', False, 'Read a JSON list of token ids, write their text.'
)


def main(_: list[str]) -> None:
  if not TOKENIZER.value:
    raise UserError('--tokenizer=PATH is needed: a workdir or tokenizer file')
  tokenizer = load_tokenizer(TOKENIZER.value)
  # Bytes in and out: text mode would rewrite line ends.
  data = sys.stdin.buffer.read()
  if DECODE.value:
    text = tokenizer.decode(_read_ids(data))
    sys.stdout.buffer.write(text.encode('utf-8'))
    sys.stdout.buffer.flush()
    return
  text = data.decode('utf-8', 'replace')
  try:
    data.decode('utf-8')
  except UnicodeDecodeError as e:
    print(
      f'warning: stdin is not UTF-8 ({e}); invalid parts became U+FFFD',
      file=sys.stderr,
    )
  if unknown := tokenizer.count_unknown(text):
    print(f'warning: {describe_unknown(unknown)}', file=sys.stderr)
  print(json.dumps(tokenizer.encode(text).tolist()))


def _read_ids(data: bytes) -> list[int]:
  ids = parse_json(data, 'stdin')
  if not isinstance(ids, list) or any(type(i) is not int for i in ids):
    raise UserError(
      'stdin must be a JSON list of token ids, such as [5, 12, 7]'
    )
  return ids


if __name__ == '__main__':
  cli.run(main)
