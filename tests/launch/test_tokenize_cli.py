"""launch.tokenize: stdin to ids and back, byte for byte, errors with code 2."""

import json

import pytest

from gpt.data.sample_text import sample_text
from gpt.tokenizers import CharTokenizer, build_tokenizer
from tests.support.commands import assert_refused, run_all

PRELOAD = ('launch.cli', 'gpt.tokenizers', 'gpt.data.prepare')


def tokenize(*commands):
  """[Done] of launch.tokenize for each (stdin, *arguments)."""
  return run_all(
    [['launch.tokenize', *args] for _, *args in commands],
    stdin=[stdin for stdin, *_ in commands],
    preload=PRELOAD,
  )


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A workdir with a SentencePiece tokenizer."""
  path = tmp_path_factory.mktemp('run')
  text = sample_text()[:20_000]
  build_tokenizer('sentencepiece', [text], 400).save(path / 'tokenizer')
  return path


def test_encode_then_decode_gives_back_every_byte(workdir):
  text = ' a\r\n\u2581\x00\t\U0001f642 Mara the baker<|eos|>\n\n'
  flag = f'--tokenizer={workdir}'
  encoded, nothing = tokenize((text.encode(), flag), (b'', flag))
  assert (encoded.code, encoded.err) == (0, '')
  assert all(type(i) is int for i in json.loads(encoded.out))
  assert (nothing.code, nothing.out, nothing.err) == (0, '[]\n', '')
  (decoded,) = tokenize((encoded.out.encode(), flag, '--decode'))
  assert (decoded.code, decoded.out, decoded.err) == (0, text, '')


def test_dropped_and_invalid_characters_are_reported(tmp_path):
  CharTokenizer('abc').save(tmp_path)
  (done,) = tokenize((b'ab\xffz', f'--tokenizer={tmp_path}'))
  assert (done.code, json.loads(done.out)) == (0, [2, 3])
  assert 'not UTF-8' in done.err and "'z' x1" in done.err


def test_mistakes_are_one_line_errors(workdir, tmp_path):
  decode = f'--tokenizer={workdir}', '--decode'
  cases = {
    '99999': (b'[1, 99999]', *decode),
    'not JSON': (b'[1,', *decode),
    'JSON list of token ids': (b'{"a": 1}', *decode),
    'JSON list': (b'[1.5]', *decode),
    '--tokenizer=PATH is needed': (b'',),
    'no such tokenizer': (b'', f'--tokenizer={tmp_path}/nothing'),
  }
  for done, message in zip(tokenize(*cases.values()), cases):
    assert_refused(done, message)
    assert done.out == ''
