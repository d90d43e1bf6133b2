"""A run keeps the tokenizer it began with, and what has changed is said."""

import pytest

from gpt.data import prepare
from gpt.errors import UserError
from gpt.tokenizers import CharTokenizer, build_tokenizer, load_tokenizer
from tests.support import data_tools
from tests.support.data_tools import TEXT, config, write
from tests.support.logs import log_lines

own_world = data_tools.own_world  # Around every test.


def test_prepare_logs_what_it_uses(tmp_path):
  path = write(tmp_path / 'mine.txt', TEXT.replace('\n', '\r\n'))
  with log_lines() as said:
    prepare.prepare(config(path), tmp_path / 'run')
  text = '\n'.join(said)
  assert 'mine.txt' in text and 'CRLF' in text and 'char' in text


def test_tokenizer_of_a_workdir_is_kept(tmp_path):
  path = write(tmp_path / 'a.txt', TEXT)
  args = config(path, tokenizer='sentencepiece'), tmp_path / 'run'
  first, _ = prepare.prepare(*args)
  write(tmp_path / 'a.txt', TEXT[5000:] + 'new words\u00e9 ' * 500)
  with log_lines() as said:
    again, corpus = prepare.prepare(*args, begun=True)
  assert again.fingerprint == first.fingerprint
  assert (
    corpus.tokens.tolist()
    == first.encode(TEXT[5000:] + 'new words\u00e9 ' * 500).tolist()
  )
  assert 'the text has changed' in '\n'.join(said)


def test_unknown_characters_of_new_text_are_reported(tmp_path):
  path = write(tmp_path / 'a.txt', TEXT)
  prepare.prepare(config(path), tmp_path / 'run')
  write(tmp_path / 'a.txt', TEXT + '\u00e9\u00e9\u00df')
  for _ in range(2):  # encoded, then from the cache
    with log_lines() as said:
      prepare.prepare(config(path), tmp_path / 'run', begun=True)
    assert 'dropped 3 characters' in '\n'.join(said)
    assert "'\u00e9' x2" in '\n'.join(said)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'tokenizer': 'char'}, 'set --config.data.tokenizer=sentencepiece'),
    ({'vocab_size': 500}, r'vocab_size=400, now it is 500'),
    ({'tokenizer_path': 'other'}, 'not the one given'),
  ],
)
def test_another_tokenizer_in_a_workdir_is_refused(changes, message, tmp_path):
  args = {'path': 'sample', 'tokenizer': 'sentencepiece'}
  prepare.prepare(config(**args), tmp_path / 'run')
  build_tokenizer('sentencepiece', ['other\n' * 9], 300).save('other')
  with pytest.raises(UserError, match=message):
    prepare.prepare(config(**{**args, **changes}), tmp_path / 'run', begun=True)


def test_missing_control_tokens_of_a_saved_tokenizer_are_named(tmp_path):
  prepare.prepare(config(), tmp_path / 'run')
  with pytest.raises(UserError, match=r'has no <\|assistant\|>'):
    prepare.prepare(config(format='chat'), tmp_path / 'run', begun=True)


def test_tokenizer_path_is_used_and_resumes(tmp_path):
  tokenizer = build_tokenizer('sentencepiece', [TEXT], 350)
  tokenizer.save('elsewhere')
  args = (
    config(
      tokenizer='sentencepiece', tokenizer_path='elsewhere', vocab_size=999
    ),
    tmp_path / 'run',
  )
  for begun in (False, True):
    used, _ = prepare.prepare(*args, begun=begun)
    assert used.fingerprint == tokenizer.fingerprint
  saved = load_tokenizer(tmp_path / 'run')
  assert saved.fingerprint == tokenizer.fingerprint


def test_tokenizer_path_of_another_kind_is_refused(tmp_path):
  CharTokenizer('abc').save('chars')
  with pytest.raises(UserError, match='--config.data.tokenizer=char'):
    prepare.prepare(
      config(tokenizer='sentencepiece', tokenizer_path='chars'),
      tmp_path / 'run',
    )


def test_empty_text_is_an_error(tmp_path):
  with pytest.raises(UserError, match='is empty: .*a.txt'):
    prepare.prepare(config(write(tmp_path / 'a.txt', '')), tmp_path / 'run')


@pytest.mark.parametrize('fraction', [-0.1, 1.5])
def test_impossible_val_fraction_is_an_error(fraction, tmp_path):
  with pytest.raises(UserError, match='between 0 and 1'):
    prepare.prepare(config(val_fraction=fraction), tmp_path / 'run')
