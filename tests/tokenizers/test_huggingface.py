"""Hugging Face's tokenizer.json: reading, training, text as plain text."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.data.sample_text import sample_text
from gpt.errors import UserError
from gpt.tokenizers import (
  BOS,
  EOS,
  StreamDecoder,
  build_tokenizer,
  load_tokenizer,
)
from gpt.tokenizers.chat_format import (
  CHAT_TOKENS,
  build_prompt,
  is_chat_tokenizer,
)
from gpt.tokenizers.huggingface import HfTokenizer

tokenizers = pytest.importorskip('tokenizers')
TEXT = sample_text()[:40_000]
MICROGPT = ('<bos>', '<user>', '<assistant>', '<end_turn>')
texts = st.text(
  st.one_of(
    st.sampled_from(list(' \n\t\r\u2581\x00\U0001f642ab1.<|>')),
    st.characters(exclude_categories=['Cs']),
  ),
  max_size=60,
)


def train(text, names=MICROGPT, vocab_size=320, **pre) -> dict:
  """A tokenizer.json as microgpt trains it: only the bytes of the text."""
  t = tokenizers.Tokenizer(tokenizers.models.BPE())
  t.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    **{'add_prefix_space': False, **pre}
  )
  t.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocab_size,
    show_progress=False,
    special_tokens=[tokenizers.AddedToken(n, special=True) for n in names],
  )
  t.train_from_iterator(text.splitlines(keepends=True), trainer)
  return json.loads(t.to_str())


def read(spec: dict) -> HfTokenizer:
  return HfTokenizer(json.dumps(spec).encode())


@pytest.fixture(scope='module')
def ours():
  return build_tokenizer('hf', [TEXT], 600, CHAT_TOKENS)


@pytest.fixture(scope='module')
def theirs():
  return train(TEXT.replace('z', ''))


def test_control_tokens_have_microgpts_ids(ours):
  assert ours.special_tokens == {
    BOS: 0,
    EOS: 0,
    '<|user|>': 1,
    '<|assistant|>': 2,
    '<|end_turn|>': 3,
  }
  assert (ours.bos_id, ours.eos_id) == (0, 0)
  # <bos> ends a document, so it must stay possible.
  assert ours.unsampleable_ids == (1, 2, 3)
  vocab = json.loads(ours.data)['model']['vocab']
  assert [vocab[name] for name in MICROGPT] == [0, 1, 2, 3]
  plain = build_tokenizer('hf', [TEXT], 300)
  assert plain.special_tokens == {BOS: 0, EOS: 0}
  assert not is_chat_tokenizer(plain)


def test_a_chat_prompt_equals_microgpts(ours):
  said = [{'role': 'user', 'content': 'hi <user>'}]
  ids, dropped = build_prompt(said, ours, 100)
  text = ours.encode('hi <user>').tolist()
  assert ids == [0, 1, *text, 3, 2] and dropped == 0
  assert not {0, 1, 2, 3} & set(text)


@settings(deadline=None, max_examples=100)
@given(text=texts)
def test_round_trip_of_any_text(ours, text):
  ids = ours.encode(text)
  assert ids.dtype == np.int32
  assert ours.decode(ids) == text
  assert ours.count_unknown(text) == {}
  stream = StreamDecoder(ours)
  pieces = [stream.feed(i) for i in ids.tolist()]
  assert ''.join(pieces) + stream.flush() == text


def test_encoding_equals_the_librarys(ours):
  library = tokenizers.Tokenizer.from_str(ours.data.decode())
  for text in TEXT.split('\n\n')[:50]:
    ids = library.encode(text, add_special_tokens=False).ids
    assert ours.encode(text).tolist() == ids
    assert ours.decode(ids) == library.decode(ids)
  assert len(ours.encode(TEXT)) < 0.6 * len(TEXT)


def test_control_tokens_never_come_from_text(ours):
  text = '<bos><user>a<|user|><end_turn>'
  assert not {0, 1, 2, 3} & set(ours.encode(text).tolist())
  assert ours.decode(ours.encode(text)) == text
  assert ours.decode([0, 1, 2, 3]) == ''


def test_training_is_reproducible(ours):
  again = build_tokenizer('hf', [TEXT], 600, CHAT_TOKENS)
  assert again.data == ours.data
  other = build_tokenizer('hf', [TEXT], 599, CHAT_TOKENS)
  assert other.fingerprint != ours.fingerprint


def test_saving_and_loading_changes_nothing(ours, tmp_path):
  ours.save(tmp_path / 'tokenizer')
  loaded = load_tokenizer(tmp_path)
  assert loaded.fingerprint == ours.fingerprint
  assert loaded.requested_vocab_size == 600


def test_a_tokenizer_json_is_read_from_a_file_or_directory(theirs, tmp_path):
  (tmp_path / 'tokenizer.json').write_text(json.dumps(theirs))
  (tmp_path / 'bpe.json').write_text(json.dumps(theirs))
  by_directory = load_tokenizer(tmp_path)
  for path in (tmp_path / 'tokenizer.json', tmp_path / 'bpe.json'):
    assert load_tokenizer(path).fingerprint == by_directory.fingerprint
  assert is_chat_tokenizer(by_directory)


def test_characters_outside_the_vocabulary_are_dropped_and_counted(theirs):
  tokenizer = read(theirs)
  text = 'zebra \u00e9\u00e9 \ud800 az'
  assert tokenizer.decode(tokenizer.encode(text)) == 'ebra   a'
  unknown = {'z': 2, '\u00e9': 2, '\ufffd': 1}
  assert tokenizer.count_unknown(text) == unknown


@pytest.mark.parametrize(
  'change, message',
  [
    ({'normalizer': {'type': 'Lowercase'}}, 'changes the text first'),
    ({'added_tokens': []}, 'no document mark: a special token <bos>'),
    (
      {'decoder': {'type': 'WordPiece', 'prefix': '##', 'cleanup': True}},
      'the decoder',
    ),
    (
      {'model': {'type': 'WordLevel', 'vocab': {'<bos>': 0}, 'unk_token': 'x'}},
      'not plain BPE but WordLevel',
    ),
    ({'pre_tokenizer': {'type': 'WhitespaceSplit'}}, 'may lose text'),
    ({'model': {}}, 'not a Hugging Face tokenizer.json'),
  ],
)
def test_files_that_lose_text_are_refused(theirs, change, message):
  with pytest.raises(UserError, match=message):
    read({**theirs, **change})


def test_a_prefix_space_is_refused():
  with pytest.raises(UserError, match='add_prefix_space'):
    read(train(TEXT, add_prefix_space=True))


def test_impossible_training_is_explained():
  with pytest.raises(UserError, match='alone take 260; try 516 or more'):
    build_tokenizer('hf', [TEXT], 259, CHAT_TOKENS)
  with pytest.raises(UserError, match='the text is empty'):
    build_tokenizer('hf', ['\n'], 300)


def test_a_missing_library_error_names_the_extra(ours, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tokenizers', None)
  with pytest.raises(UserError, match=r"pip install 'rgpt\[hf\]'"):
    HfTokenizer(ours.data)


@pytest.mark.parametrize(
  'name', ['continuing_subword_prefix', 'end_of_word_suffix']
)
def test_marks_of_parts_of_words_never_reach_the_library(theirs, name):
  """It panics at them, which is no Exception."""
  theirs = {**theirs, 'model': {**theirs['model'], name: 'x' * 12}}
  with pytest.raises(UserError, match=f'{name} is .*; allowed: none'):
    read(theirs)


def test_a_panic_of_the_library_is_explained(theirs, monkeypatch):
  class PanicException(BaseException):
    pass

  class Panicking:
    @staticmethod
    def from_str(text):
      raise PanicException('range end index 12')

  monkeypatch.setattr(tokenizers, 'Tokenizer', Panicking)
  with pytest.raises(UserError, match='fails on .*: .range end index 12'):
    read(theirs)
