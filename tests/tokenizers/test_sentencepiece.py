"""SentencePiece tokenizers are lossless for any training text.

Its known faults (U+2581, long lines dropped silently) each have a test here.
"""

import re
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.data.sample_text import sample_text
from gpt.errors import UserError
from gpt.tokenizers import (
  SentencePieceTokenizer,
  build_tokenizer,
  load_tokenizer,
  sentencepiece,
)
from gpt.tokenizers.sentencepiece import build_sentencepiece, sample_lines
from tests.support.tokenizer_tools import TEXT, train_spm

# Text that has broken some tokenizer somewhere.
EDGE_CASES = [
  '',
  ' ',
  '  ',
  '\n',
  '\n\n\n',
  '\t\t',
  'a\r\nb\rc',
  '\x00',
  '\ufeffx',
  ''.join(map(chr, range(32))),
  '\u2581',
  'a\u2581\u2581 b',
  '\u2581\n\u2581',
  'e\u0301',
  '\u00a0\u200b\u2028',
  '\U0001f469\u200d\U0001f52c\U0001f1e9',
  '\ufffd\uffff\U0010ffff',
  '<|user|></s><unk><0x41><s>',
  '<|eos|><|bos|>',
  ' \u2047 ',
  '0123456789',
  '   leading and trailing   ',
  '漢字\u05e9\u05dc',
]
relaxed = settings(deadline=None, max_examples=150)


@pytest.fixture(scope='module')
def spm():
  return train_spm()


@pytest.mark.parametrize('text', EDGE_CASES, ids=range(len(EDGE_CASES)))
def test_spm_reproduces_edge_cases(spm, text):
  assert spm.decode(spm.encode(text)) == text


@relaxed
@given(text=TEXT)
def test_spm_is_lossless_over_unicode(spm, text):
  ids = spm.encode(text)
  assert spm.decode(ids) == text
  assert not set(ids.tolist()) & set(spm.special_tokens.values())


@relaxed
@given(lines=st.lists(TEXT))
def test_spm_by_line_equals_whole(spm, lines):
  lines = [line + '\n' for line in lines]
  parts = [spm.encode(line) for line in lines]
  whole = spm.encode(''.join(lines))
  assert whole.tolist() == [i for part in parts for i in part.tolist()]


@settings(deadline=None, max_examples=40)
@given(learned=TEXT, text=TEXT)
def test_spm_of_any_text_is_lossless_on_any_other(learned, text):
  # A model that has seen no space used to give U+2581 for one.
  tokenizer = build_tokenizer('sentencepiece', ['x', learned], 400)
  assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
  'learned', [['emma\nolivia\nava\n'], ['漢字' * 5000, 'a b']]
)
def test_spm_of_text_with_few_spaces_keeps_spaces(learned):
  tokenizer = build_tokenizer('sentencepiece', learned, 300)
  assert tokenizer.decode(tokenizer.encode(' a  b▁ ')) == ' a  b▁ '


def test_spm_batches_of_lines_equal_the_plain_processor(spm):
  text = sample_text()  # several times the size of one batch
  assert spm.encode(text).tolist() == spm._sp.encode(text)


def test_spm_pieces_do_not_cross_newlines(spm):
  pieces = [spm.token_bytes(i) for i in range(spm.vocab_size)]
  assert [p for p in pieces if b'\n' in p and p != b'\n'] == []


def test_spm_digits_and_line_ends_are_separate_tokens():
  text = '1234 1234\t12\r\n' * 50
  tokenizer = build_tokenizer('sentencepiece', [text], 400)
  pieces = [tokenizer.token_bytes(i).decode() for i in tokenizer.encode(text)]
  assert set('1234\t\r\n') <= set(pieces)
  assert all(len(p) == 1 for p in pieces if p.strip())


def test_spm_replaces_lone_surrogates(spm):
  assert spm.decode(spm.encode('a\ud800b')) == 'a\ufffdb'


def test_spm_vocabulary_is_limited_by_the_text():
  small = build_tokenizer('sentencepiece', ['some words\n'] * 5, 5000)
  assert small.vocab_size < 400
  assert small.requested_vocab_size == 5000


def test_spm_error_for_a_small_vocabulary_names_the_minimum():
  with pytest.raises(UserError, match=r'vocab_size=200.*try vocab_size='):
    build_tokenizer('sentencepiece', [sample_text()[:5000]], 200)


@pytest.mark.parametrize('texts', [[], [''], ['\n\n']])
def test_spm_of_no_text_is_an_error(texts):
  with pytest.raises(UserError, match='empty'):
    build_tokenizer('sentencepiece', texts, 500)


def test_spm_training_is_deterministic():
  models = [
    build_sentencepiece([sample_text()[:50_000]], 400, max_bytes=20_000).model
    for _ in range(2)
  ]
  assert models[0] == models[1]


def test_spm_training_text_is_bounded_and_spread_over_the_corpus():
  text = ''.join(f'line {i:05d}\n' for i in range(10_000))
  lines, fraction = sample_lines([text[:40_000], text[40_000:]], 20_000)
  assert 19_000 <= sum(map(len, lines)) <= 20_000
  assert fraction == pytest.approx(len(lines) / 10_000, rel=0.02)
  numbers = [int(line[5:]) for line in lines]
  assert numbers == sorted(numbers)
  assert 4000 < np.mean(numbers) < 6000


def test_spm_learns_from_lines_longer_than_its_limit():
  # SentencePiece drops items above max_sentence_length without a word.
  tokenizer = build_sentencepiece(['abcdefgh ' * 200_000], 300)
  assert b'abcdefgh' in [
    tokenizer.token_bytes(i) for i in range(300) if i < tokenizer.vocab_size
  ]


@given(
  st.lists(st.sampled_from(['a', '\u4e2d', '=', '.', ' ', '\t', '\n'])).map(
    lambda parts: ''.join(part * 70 for part in parts)
  )
)
def test_long_words_are_cut_in_training(line):
  parts = list(sentencepiece._without_long_words(line))
  assert ''.join(parts) == line
  long = re.compile(r'\w{101}|[^\w\s]{101}')
  assert not any(long.search(part) for part in parts)


def test_a_word_of_a_million_characters_loses_nothing(spm):
  text = 'word' * 250_000 + ' and more'
  assert spm.decode(spm.encode(text)) == text


def test_spm_is_thread_safe(spm):
  lines = sample_text().split('\n')[:400]
  expected = [spm.encode(line).tolist() for line in lines]
  failures = []

  def work():
    for line, ids in zip(lines, expected):
      if spm.encode(line).tolist() != ids or spm.decode(ids) != line:
        failures.append(line)

  threads = [threading.Thread(target=work) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not failures


def test_spm_model_that_loses_text_is_refused(tmp_path):
  import io

  import sentencepiece

  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(sample_text()[:20_000].split('\n')),
    model_writer=model,
    vocab_size=300,
    minloglevel=2,
  )
  path = tmp_path / 'foreign.model'
  path.write_bytes(model.getvalue())
  with pytest.raises(UserError, match='does not reproduce'):
    load_tokenizer(path)


def test_spm_model_files_load_as_tokenizers(tmp_path, spm):
  spm.save(tmp_path)
  loaded = load_tokenizer(tmp_path / 'spm.model')
  assert isinstance(loaded, SentencePieceTokenizer)
  assert loaded.fingerprint == spm.fingerprint
