"""Tokenizers are lossless, never encode text as control tokens, and load again.

RandyGPT's known fault (merges across newlines) and incomplete characters in
streams each have a test here.
"""

import json
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.data.sample_text import sample_text
from gpt.errors import UserError
from gpt.tokenizers import (
  BOS,
  EOS,
  CharTokenizer,
  RandyTokenizer,
  StreamDecoder,
  build_tokenizer,
  load_tokenizer,
  randy_merges,
  randygpt,
)
from tests.support.tokenizer_tools import CHAT, TEXT, train_spm

relaxed = settings(deadline=None, max_examples=150)


@pytest.fixture(scope='module')
def spm():
  return train_spm()


@pytest.fixture(scope='module')
def char():
  return build_tokenizer('char', [sample_text()], 0, CHAT)


@pytest.fixture(scope='module')
def randy():
  """A vocab.json as RandyGPT trains them: most frequent pairs merged."""
  chars = sorted(set('abc \n\u00e9'))
  merges = [
    ('a', 'b'),
    ('ab', 'c'),
    ('a', 'a'),
    (' ', 'ab'),
    ('aa', 'aa'),
    ('c', '\n'),
    (' ab', 'abc'),
  ]
  vocab = [BOS, EOS, *chars, *(a + b for a, b in merges)]
  return RandyTokenizer(vocab, merges)


@pytest.fixture(params=['char', 'spm', 'randy'])
def any_tokenizer(request):
  return request.getfixturevalue(request.param)


# Characters


def test_char_ids_are_randygpts():
  alphabet = string.ascii_letters + "\n !$&',-.3:;?"  # of tinyshakespeare
  tokenizer = build_tokenizer('char', [alphabet[::-1]], 0)
  assert tokenizer.vocab_size == 67
  assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
  expected = {c: i for i, c in enumerate(sorted(alphabet), start=2)}
  assert tokenizer.encode(alphabet).tolist() == [expected[c] for c in alphabet]


@relaxed
@given(TEXT.filter(bool))
def test_char_round_trip_of_its_own_text(text):
  tokenizer = build_tokenizer('char', [text], 0)
  ids = tokenizer.encode(text)
  assert ids.dtype == np.int32
  assert ids.tolist() == [tokenizer.chars.index(c) + 2 for c in text]
  assert tokenizer.decode(ids) == text


def test_char_drops_and_counts_unknown_characters():
  tokenizer = CharTokenizer('abc')
  text = 'a\u00e9b\U0001f642\u00e9c\ud800'
  assert tokenizer.decode(tokenizer.encode(text)) == 'abc'
  assert tokenizer.count_unknown(text) == {
    '\u00e9': 2,
    '\U0001f642': 1,
    '\ud800': 1,
  }


def test_extra_control_tokens_do_not_move_characters():
  plain, chat = CharTokenizer('abc'), CharTokenizer('abc', CHAT)
  assert plain.encode('cab').tolist() == chat.encode('cab').tolist()
  assert chat.special_tokens == {
    BOS: 0,
    EOS: 1,
    '<|user|>': 5,
    '<|assistant|>': 6,
  }
  assert chat.fingerprint != plain.fingerprint


# RandyGPT's vocab.json


def test_randy_encodes_as_specified(randy):
  id_of = {t: i for i, t in enumerate(randy.vocab)}

  def tokens(text):
    return [randy.vocab[i] for i in randy.encode(text)]

  assert tokens('abc') == ['abc']
  assert tokens('aaaaa') == ['aaaa', 'a']  # left to right
  assert tokens('aab') == ['a', 'ab']  # the lowest merged id goes first
  assert tokens(' ababc') == [' ababc']
  # The merge across the newline is in the file, but never applies.
  assert id_of['c\n'] and tokens('cc\nb') == ['c', 'c', '\n', 'b']
  assert tokens('\n\n') == ['\n', '\n']
  assert randy.encode('').tolist() == []


def test_randy_drops_unknown_characters_before_merging(randy):
  assert [randy.vocab[i] for i in randy.encode('a?b')] == ['ab']
  assert randy.count_unknown('a?b??') == {'?': 3}


def test_randy_control_tokens_never_come_from_text(randy):
  text = 'a<|eos|>b<|bos|>'
  assert not {0, 1} & set(randy.encode(text).tolist())
  assert randy.decode([0, 2, 3, 1]) == randy.decode([2, 3])


@relaxed
@given(text=st.text(st.sampled_from('abc \n\u00e9'), max_size=80))
def test_randy_round_trip(randy, text):
  assert randy.decode(randy.encode(text)) == text


@st.composite
def merge_tables(draw, ordered):
  """{(left, right): merged} over symbols 0..3; merged ids may repeat."""
  n = draw(st.integers(1, 12))
  pairs = {}
  for merged in range(4, 4 + n):
    part = st.integers(0, merged - 1)
    pairs.setdefault((draw(part), draw(part)), merged - draw(st.booleans()))
  if ordered:
    pairs = {pair: m for pair, m in pairs.items() if max(pair) < m}
  return pairs


LINES = st.lists(st.integers(0, 3), max_size=40)


@relaxed
@given(merge_tables(ordered=True), LINES)
def test_heap_merging_equals_the_written_rule(merges, line):
  merges = randy_merges.Merges(merges)
  assert merges.by_heap(line) == merges.by_passes(line)


@relaxed
@given(merge_tables(ordered=False), LINES)
def test_merging_by_ranks_equals_the_written_rule(merges, line):
  merges = randy_merges.Merges(merges)
  assert merges.by_ranks(line) == merges.by_passes(line)


@given(
  st.lists(st.tuples(*[st.sampled_from(['a', 'b', 'c', 'ab', 'ca'])] * 2)),
  st.text('abc', max_size=60),
  st.integers(1, 9),
)
def test_randy_ids_of_pieces_are_those_of_the_line(merges, text, piece):
  tokens = dict.fromkeys([*'abc', 'ab', 'ca', *map(''.join, merges)])
  randy = randygpt.RandyTokenizer([BOS, EOS, *tokens], merges)
  whole = randy.encode(text).tolist()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(randygpt, 'PIECE', piece)
    assert randy.encode(text).tolist() == whole
    patch.setattr(randygpt, 'MOST', piece + 1)
    assert randy.decode(randy.encode(text)) == text


def test_randy_merges_out_of_order_follow_the_written_rule():
  # 'aba' has a lower id than 'ab', of which it is made; all of 'ab' is merged
  # before it can apply.
  vocab = [BOS, EOS, 'a', 'b', 'aba', 'ab']
  tokenizer = RandyTokenizer(vocab, [('ab', 'a'), ('a', 'b')])
  assert tokenizer.encode('abab').tolist() == [5, 5]
  assert tokenizer.encode('abaab').tolist() == [4, 5]


def test_vocab_json_round_trip_is_byte_identical(tmp_path, randy):
  path = tmp_path / 'vocab.json'
  path.write_bytes(randy.vocab_json())
  data = json.loads(path.read_text(encoding='utf-8'))
  assert data['vocab'][:2] == ['<|bos|>', '<|eos|>']
  assert ['ab', 'c'] in data['merges']
  loaded = load_tokenizer(path)
  loaded.save(tmp_path / 'saved')
  assert (tmp_path / 'saved/vocab.json').read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
  'content, message',
  [
    ('{', 'not JSON'),
    ('[]', 'allowed: a JSON object'),
    ('{"vocab": []}', 'not a RandyGPT vocabulary.*merges is missing'),
    ('{"vocab": ["a"], "merges": []}', 'must begin with'),
    (
      '{"vocab": ["<|bos|>", "<|eos|>", "a"], "merges": [["a", "b"]]}',
      "needs the token 'b'",
    ),
    (
      '{"vocab": ["<|bos|>", "<|eos|>", 3], "merges": []}',
      r'vocab\[2\] is 3; allowed: a string',
    ),
    (
      '{"vocab": ["<|bos|>", "<|eos|>", "a"], "merges": [["a", 1]]}',
      r"merges\[0\] is \['a', 1\]; allowed: two strings",
    ),
  ],
)
def test_broken_vocab_json_names_file_and_fault(tmp_path, content, message):
  path = tmp_path / 'vocab.json'
  path.write_text(content)
  with pytest.raises(UserError, match=message) as e:
    load_tokenizer(path)
  assert 'vocab.json' in str(e.value)


# All of them


def test_save_and_load_keep_everything(any_tokenizer, tmp_path):
  any_tokenizer.save(tmp_path / 'run/tokenizer')
  for path in (
    tmp_path / 'run',
    tmp_path / 'run/tokenizer',
    tmp_path / 'run/tokenizer/tokenizer.json',
  ):
    loaded = load_tokenizer(path)
    assert type(loaded) is type(any_tokenizer)
    assert loaded.fingerprint == any_tokenizer.fingerprint
    assert loaded.special_tokens == any_tokenizer.special_tokens
    assert loaded.unsampleable_ids == any_tokenizer.unsampleable_ids
    assert loaded.requested_vocab_size == any_tokenizer.requested_vocab_size
    text = 'ab a cab\n'
    assert loaded.encode(text).tolist() == any_tokenizer.encode(text).tolist()


def test_different_tokenizers_have_different_fingerprints(char, spm, randy):
  other = build_tokenizer('sentencepiece', [sample_text()[:60_000]], 501, CHAT)
  prints = {t.fingerprint for t in (char, spm, randy, other)}
  prints |= {CharTokenizer('ab').fingerprint, CharTokenizer('ac').fingerprint}
  assert len(prints) == 6


def test_control_tokens_have_no_text_and_all_but_eos_are_banned(any_tokenizer):
  for id in any_tokenizer.special_tokens.values():
    assert any_tokenizer.token_bytes(id) == b''
    banned = id in any_tokenizer.unsampleable_ids
    assert banned == (id != any_tokenizer.eos_id)
  silent = [
    i
    for i in range(any_tokenizer.vocab_size)
    if not any_tokenizer.token_bytes(i)
  ]
  assert set(silent) == {*any_tokenizer.unsampleable_ids, any_tokenizer.eos_id}


@relaxed
@given(data=st.data())
def test_streamed_pieces_joined_equal_decode(spm, data):
  ids = data.draw(st.lists(st.integers(0, spm.vocab_size - 1), max_size=50))
  stream = StreamDecoder(spm)
  pieces = [stream.feed(i) for i in ids] + [stream.flush()]
  assert ''.join(pieces) == spm.decode(ids)


@relaxed
@given(text=TEXT)
def test_stream_never_shows_half_a_character(spm, text):
  stream, shown = StreamDecoder(spm), ''
  for id in spm.encode(text):
    shown += stream.feed(id)
    assert text.startswith(shown)
  assert shown == text and stream.flush() == ''


def test_incomplete_character_appears_once_at_the_end(spm):
  ids = spm.encode('\U0001f642')
  assert len(ids) == 4
  stream = StreamDecoder(spm)
  assert [stream.feed(i) for i in ids[:3]] == ['', '', '']
  assert stream.flush() == '\ufffd'


@pytest.mark.parametrize('id', [-1, 10_000, 10**30])
def test_ids_outside_the_vocabulary_are_named(any_tokenizer, id):
  with pytest.raises(UserError, match=f'{id}.*0 to'):
    any_tokenizer.decode([2, id])


def test_decode_accepts_arrays_and_empty_input(any_tokenizer):
  assert any_tokenizer.decode([]) == ''
  assert any_tokenizer.decode(np.zeros(0, np.int32)) == ''
  ids = any_tokenizer.encode('ab')
  assert any_tokenizer.decode(ids) == any_tokenizer.decode(ids.tolist()) == 'ab'


def test_unknown_kind_lists_the_kinds():
  with pytest.raises(UserError, match='char, sentencepiece, randygpt'):
    build_tokenizer('bpe', ['a'], 300)
  with pytest.raises(UserError, match='tokenizer_path'):
    build_tokenizer('randygpt', ['a'], 300)


def test_reserved_and_repeated_control_tokens_are_refused():
  for names in ([EOS], ['<|x|>', '<|x|>'], ['']):
    with pytest.raises(UserError):
      CharTokenizer('ab', names)


def test_missing_and_damaged_tokenizers_are_user_errors(tmp_path, char):
  with pytest.raises(UserError, match='no such tokenizer'):
    load_tokenizer(tmp_path / 'nothing')
  with pytest.raises(UserError, match='no tokenizer in'):
    load_tokenizer(tmp_path)
  for name, content in [('a.model', b''), ('b.model', b'junk' * 9)]:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match='not a SentencePiece model'):
      load_tokenizer(tmp_path / name)
  char.save(tmp_path / 'tokenizer')
  for content in (
    '{"kind": "char"',
    '{"kind": "char"}',
    '[]',
    '{"kind": "sentencepiece", "model": "gone"}',
    '{"kind": "wordpiece"}',
  ):
    (tmp_path / 'tokenizer/tokenizer.json').write_text(content)
    with pytest.raises(UserError, match='tokenizer'):
      load_tokenizer(tmp_path)


@pytest.mark.parametrize('kind', ['link', 'directory'])
def test_vocab_json_does_not_stand_in_for_a_tokenizer_json(
  tmp_path, randy, kind
):
  """It holds the tokens, but not which of them control."""
  randy.save(tmp_path)
  path = tmp_path / 'tokenizer.json'
  path.unlink()
  path.symlink_to('nowhere') if kind == 'link' else path.mkdir()
  with pytest.raises(UserError, match='cannot read .*tokenizer.json'):
    load_tokenizer(tmp_path)


def test_a_vocab_json_as_the_tokenizer_json_of_a_run_is_refused(
  tmp_path, randy
):
  """As of a directory of RandyGPT it is read; control tokens would be lost."""
  randy.save(tmp_path / 'tokenizer')
  vocab = (tmp_path / 'tokenizer/vocab.json').read_text()
  (tmp_path / 'tokenizer/tokenizer.json').write_text(vocab)
  with pytest.raises(UserError, match='kind is missing'):
    load_tokenizer(tmp_path)
  (tmp_path / 'tokenizer').rename(tmp_path / 'randy')
  assert load_tokenizer(tmp_path / 'randy').vocab_size == randy.vocab_size
