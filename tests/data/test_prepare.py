"""A run keeps its tokenizer, and changes of the text are logged."""

import pytest

from gpt.data import prepare
from gpt.errors import UserError
from gpt.tokenizers import CharTokenizer, build_tokenizer, load_tokenizer
from tests.support import data_tools
from tests.support.data_tools import TEXT, data_config, write
from tests.support.logs import log_lines

isolated = data_tools.isolated  # Used by every test.


def test_prepare_logs_text_repairs_and_tokenizer(tmp_path):
  path = write(tmp_path / 'mine.txt', TEXT.replace('\n', '\r\n'))
  with log_lines() as lines:
    prepare.prepare(data_config(path), tmp_path / 'run')
  text = '\n'.join(lines)
  assert 'mine.txt' in text and 'CRLF' in text and 'char' in text


def test_a_run_keeps_its_tokenizer_when_the_text_changes(tmp_path):
  path = write(tmp_path / 'a.txt', TEXT)
  args = data_config(path, tokenizer='sentencepiece'), tmp_path / 'run'
  first, _ = prepare.prepare(*args)
  write(tmp_path / 'a.txt', TEXT[5000:] + 'new words\u00e9 ' * 500)
  with log_lines() as lines:
    again, corpus = prepare.prepare(*args, begun=True)
  assert again.fingerprint == first.fingerprint
  assert (
    corpus.tokens.tolist()
    == first.encode(TEXT[5000:] + 'new words\u00e9 ' * 500).tolist()
  )
  assert 'the text has changed' in '\n'.join(lines)


def test_unknown_characters_of_new_text_are_reported(tmp_path):
  path = write(tmp_path / 'a.txt', TEXT)
  prepare.prepare(data_config(path), tmp_path / 'run')
  write(tmp_path / 'a.txt', TEXT + '\u00e9\u00e9\u00df')
  for _ in range(2):  # Encoded, then read from the cache.
    with log_lines() as lines:
      prepare.prepare(data_config(path), tmp_path / 'run', begun=True)
    assert 'dropped 3 characters' in '\n'.join(lines)
    assert "'\u00e9' x2" in '\n'.join(lines)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'tokenizer': 'char'}, 'set --config.data.tokenizer=sentencepiece'),
    ({'vocab_size': 500}, r'vocab_size=400, not 500'),
    ({'tokenizer_path': 'other'}, 'differs from the given one'),
  ],
)
def test_a_different_tokenizer_than_the_saved_one_is_rejected(
  changes, message, tmp_path
):
  args = {'path': 'sample', 'tokenizer': 'sentencepiece'}
  prepare.prepare(data_config(**args), tmp_path / 'run')
  build_tokenizer('sentencepiece', ['other\n' * 9], 300).save('other')
  with pytest.raises(UserError, match=message):
    prepare.prepare(
      data_config(**{**args, **changes}), tmp_path / 'run', begun=True
    )


def test_a_saved_tokenizer_without_chat_tokens_is_rejected(tmp_path):
  prepare.prepare(data_config(), tmp_path / 'run')
  with pytest.raises(UserError, match=r'has no <\|assistant\|>'):
    prepare.prepare(data_config(format='chat'), tmp_path / 'run', begun=True)


def test_tokenizer_path_is_used_again_on_resume(tmp_path):
  tokenizer = build_tokenizer('sentencepiece', [TEXT], 350)
  tokenizer.save('elsewhere')
  args = (
    data_config(
      tokenizer='sentencepiece', tokenizer_path='elsewhere', vocab_size=999
    ),
    tmp_path / 'run',
  )
  for begun in (False, True):
    used, _ = prepare.prepare(*args, begun=begun)
    assert used.fingerprint == tokenizer.fingerprint
  saved = load_tokenizer(tmp_path / 'run')
  assert saved.fingerprint == tokenizer.fingerprint


def test_a_tokenizer_path_of_the_wrong_kind_is_rejected(tmp_path):
  CharTokenizer('abc').save('chars')
  with pytest.raises(UserError, match='--config.data.tokenizer=char'):
    prepare.prepare(
      data_config(tokenizer='sentencepiece', tokenizer_path='chars'),
      tmp_path / 'run',
    )


def test_an_empty_text_is_rejected(tmp_path):
  with pytest.raises(UserError, match='is empty: .*a.txt'):
    prepare.prepare(
      data_config(write(tmp_path / 'a.txt', '')), tmp_path / 'run'
    )


@pytest.mark.parametrize('fraction', [-0.1, 1.5])
def test_a_val_fraction_out_of_range_is_rejected(fraction, tmp_path):
  with pytest.raises(UserError, match='between 0 and 1'):
    prepare.prepare(data_config(val_fraction=fraction), tmp_path / 'run')


@pytest.mark.parametrize('tokenizer', ['char', 'hf'])
def test_text_that_cannot_be_used_leaves_nothing(tmp_path, tokenizer):
  pytest.importorskip('tokenizers')
  path = write(tmp_path / 'a.txt', 'short\n' * 400 + 'x' * 5_000_000)
  args = {'tokenizer': tokenizer, 'format': 'lines', 'vocab_size': 300}
  with pytest.raises(UserError, match='line 401 has more than'):
    prepare.prepare(data_config(path, **args), tmp_path / 'run')
  assert not [p for p in (tmp_path / 'run').rglob('*') if p.is_file()]
