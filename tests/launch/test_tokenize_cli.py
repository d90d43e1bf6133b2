"""launch.tokenize: stdin to ids and back, byte for byte, errors with code 2."""

import json
import pathlib
import subprocess
import sys

import pytest

from gpt.data.sample_text import sample_text
from gpt.tokenizers import CharTokenizer, build_tokenizer

ROOT = pathlib.Path(__file__).parents[2]


def run(*args, stdin=b''):
  """(exit code, stdout bytes, stderr text) of launch.tokenize."""
  done = subprocess.run(
    [sys.executable, '-m', 'launch.tokenize', *args],
    cwd=ROOT,
    input=stdin,
    capture_output=True,
    timeout=120,
  )
  return done.returncode, done.stdout, done.stderr.decode()


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A workdir with a SentencePiece tokenizer."""
  path = tmp_path_factory.mktemp('run')
  text = sample_text()[:20_000]
  build_tokenizer('sentencepiece', [text], 400).save(path / 'tokenizer')
  return path


def test_encode_then_decode_gives_back_every_byte(workdir):
  text = ' a\r\n\u2581\x00\t\U0001f642 Mara the baker<|eos|>\n\n'.encode()
  code, ids, err = run(f'--tokenizer={workdir}', stdin=text)
  assert (code, err) == (0, '')
  assert all(type(i) is int for i in json.loads(ids))
  code, back, err = run(f'--tokenizer={workdir}', '--decode', stdin=ids)
  assert (code, back, err) == (0, text, '')


def test_empty_input_is_an_empty_list(workdir):
  assert run(f'--tokenizer={workdir}') == (0, b'[]\n', '')


def test_dropped_and_invalid_characters_are_said(tmp_path):
  CharTokenizer('abc').save(tmp_path)
  code, ids, err = run(f'--tokenizer={tmp_path}', stdin=b'ab\xffz')
  assert (code, json.loads(ids)) == (0, [2, 3])
  assert 'not UTF-8' in err and "'z' x1" in err


@pytest.mark.parametrize(
  'stdin, message',
  [
    (b'[1, 99999]', '99999'),
    (b'[1,', 'not JSON'),
    (b'{"a": 1}', 'JSON list'),
    (b'[1.5]', 'JSON list'),
  ],
)
def test_bad_ids_are_one_line_errors(workdir, stdin, message):
  code, out, err = run(f'--tokenizer={workdir}', '--decode', stdin=stdin)
  assert (code, out) == (2, b'')
  assert err.startswith('error: ') and message in err
  assert 'Traceback' not in err


def test_missing_tokenizer_is_an_error(tmp_path):
  assert run()[0] == 2
  code, _, err = run(f'--tokenizer={tmp_path}/nothing')
  assert code == 2 and 'no such tokenizer' in err
