"""Tokenizers lose nothing, keep control tokens to themselves and survive disk.

RandyGPT's and SentencePiece's known faults (merges across newlines, U+2581,
half characters while streaming) each have a test here.
"""

import json
import string
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt import tokenizer_randy
from gpt.errors import UserError
from gpt.sample_text import sample_text
from gpt.tokenizer import (
  BOS,
  EOS,
  CharTokenizer,
  RandyTokenizer,
  SentencePieceTokenizer,
  StreamDecoder,
  build_tokenizer,
  load_tokenizer,
)
from gpt.tokenizer_spm import build_sentencepiece, sample_lines

CHAT = ('<|user|>', '<|assistant|>')
# Text that has broken some tokenizer somewhere.
EDGE_CASES = [
  '', ' ', '  ', '\n', '\n\n\n', '\t\t', 'a\r\nb\rc', '\x00', '\ufeffx',
  ''.join(map(chr, range(32))), '\u2581', 'a\u2581\u2581 b', '\u2581\n\u2581',
  'e\u0301', '\u00a0\u200b\u2028', '\U0001f469\u200d\U0001f52c\U0001f1e9',
  '\ufffd\uffff\U0010ffff', '<|user|></s><unk><0x41><s>', '<|eos|><|bos|>',
  ' \u2047 ', '0123456789', '   leading and trailing   ', '漢字\u05e9\u05dc',
]
# Every character matters, and those that break things come up often.
TEXT = st.text(
  st.one_of(
    st.sampled_from(list(' \n\t\r\u2581\x00\ufeff\U0001f642ab1.<|>')),
    st.characters(exclude_categories=['Cs']),
  ),
  max_size=60,
)
relaxed = settings(deadline=None, max_examples=150)


@pytest.fixture(scope='module')
def spm():
  return build_tokenizer(
    'sentencepiece', [sample_text()[:60_000]], 500, CHAT
  )


@pytest.fixture(scope='module')
def char():
  return build_tokenizer('char', [sample_text()], 0, CHAT)


@pytest.fixture(scope='module')
def randy():
  """A vocab.json as RandyGPT trains them: most frequent pairs merged."""
  chars = sorted(set('abc \n\u00e9'))
  merges = [('a', 'b'), ('ab', 'c'), ('a', 'a'), (' ', 'ab'), ('aa', 'aa'),
            ('c', '\n'), (' ab', 'abc')]
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
    '\u00e9': 2, '\U0001f642': 1, '\ud800': 1
  }


def test_extra_control_tokens_do_not_move_characters():
  plain, chat = CharTokenizer('abc'), CharTokenizer('abc', CHAT)
  assert plain.encode('cab').tolist() == chat.encode('cab').tolist()
  assert chat.special_tokens == {
    BOS: 0, EOS: 1, '<|user|>': 5, '<|assistant|>': 6
  }
  assert chat.fingerprint != plain.fingerprint


# SentencePiece


@pytest.mark.parametrize('text', EDGE_CASES, ids=range(len(EDGE_CASES)))
def test_spm_gives_back_edge_cases(spm, text):
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


def test_no_spm_piece_crosses_a_newline(spm):
  pieces = [spm.token_bytes(i) for i in range(spm.vocab_size)]
  assert [p for p in pieces if b'\n' in p and p != b'\n'] == []


def test_spm_digits_and_line_ends_are_tokens_of_their_own():
  text = '1234 1234\t12\r\n' * 50
  tokenizer = build_tokenizer('sentencepiece', [text], 400)
  pieces = [tokenizer.token_bytes(i).decode() for i in tokenizer.encode(text)]
  assert set('1234\t\r\n') <= set(pieces)
  assert all(len(p) == 1 for p in pieces if p.strip())


def test_spm_replaces_lone_surrogates(spm):
  assert spm.decode(spm.encode('a\ud800b')) == 'a\ufffdb'


def test_spm_vocabulary_is_what_the_text_gives():
  small = build_tokenizer('sentencepiece', ['some words\n'] * 5, 5000)
  assert small.vocab_size < 400
  assert small.requested_vocab_size == 5000


def test_spm_vocabulary_too_small_says_what_is_needed():
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
  assert 10_000 <= sum(map(len, lines)) <= 20_000
  assert fraction == 1 / 8
  numbers = [int(line[5:]) for line in lines]
  assert numbers == sorted(numbers)
  assert 4000 < np.mean(numbers) < 6000


def test_spm_learns_from_lines_longer_than_its_limit():
  # SentencePiece drops items above max_sentence_length without a word.
  tokenizer = build_sentencepiece(['abcdefgh ' * 200_000], 300)
  assert b'abcdefgh' in [tokenizer.token_bytes(i) for i in range(300)
                         if i < tokenizer.vocab_size]


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
    model_writer=model, vocab_size=300, minloglevel=2,
  )
  path = tmp_path / 'foreign.model'
  path.write_bytes(model.getvalue())
  with pytest.raises(UserError, match='does not give back'):
    load_tokenizer(path)


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
def merge_tables(draw):
  """{(left, right): merged} in training order, over symbols 0..3."""
  n = draw(st.integers(1, 12))
  pairs = {}
  for merged in range(4, 4 + n):
    part = st.integers(0, merged - 1)
    pairs.setdefault((draw(part), draw(part)), merged)
  return pairs


@relaxed
@given(merge_tables(), st.lists(st.integers(0, 3), max_size=40))
def test_heap_merging_equals_the_written_rule(merges, symbols):
  assert tokenizer_randy.merge_by_heap(symbols, merges) == (
    tokenizer_randy.merge_by_passes(symbols, merges)
  )


def test_randy_merges_out_of_order_follow_the_written_rule():
  # 'aba' has a lower id than 'ab', of which it is made; all of 'ab' is merged
  # before it can apply.
  vocab = [BOS, EOS, 'a', 'b', 'aba', 'ab']
  tokenizer = RandyTokenizer(vocab, [('ab', 'a'), ('a', 'b')])
  assert tokenizer.encode('abab').tolist() == [5, 5]
  assert tokenizer.encode('abaab').tolist() == [4, 5]


def test_vocab_json_is_written_as_it_was_read(tmp_path, randy):
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
    ('{', 'not a JSON file'),
    ('[]', 'not a RandyGPT vocabulary'),
    ('{"vocab": ["a"], "merges": []}', 'must begin with'),
    ('{"vocab": ["<|bos|>", "<|eos|>", "a"], "merges": [["a", "b"]]}',
     "needs the token 'b'"),
    ('{"vocab": ["<|bos|>", "<|eos|>", 3], "merges": []}', 'expected'),
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
  for path in (tmp_path / 'run', tmp_path / 'run/tokenizer',
               tmp_path / 'run/tokenizer/tokenizer.json'):
    loaded = load_tokenizer(path)
    assert type(loaded) is type(any_tokenizer)
    assert loaded.fingerprint == any_tokenizer.fingerprint
    assert loaded.special_tokens == any_tokenizer.special_tokens
    assert loaded.unsampleable_ids == any_tokenizer.unsampleable_ids
    assert loaded.requested_vocab_size == any_tokenizer.requested_vocab_size
    text = 'ab a cab\n'
    assert loaded.encode(text).tolist() == any_tokenizer.encode(text).tolist()


def test_fingerprints_tell_tokenizers_apart(char, spm, randy):
  other = build_tokenizer('sentencepiece', [sample_text()[:60_000]], 501, CHAT)
  prints = {t.fingerprint for t in (char, spm, randy, other)}
  prints |= {CharTokenizer('ab').fingerprint, CharTokenizer('ac').fingerprint}
  assert len(prints) == 6


def test_control_tokens_are_silent_and_banned_but_eos(any_tokenizer):
  for id in any_tokenizer.special_tokens.values():
    assert any_tokenizer.token_bytes(id) == b''
    banned = id in any_tokenizer.unsampleable_ids
    assert banned == (id != any_tokenizer.eos_id)
  silent = [i for i in range(any_tokenizer.vocab_size)
            if not any_tokenizer.token_bytes(i)]
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


def test_decode_takes_arrays_and_nothing(any_tokenizer):
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
  for content in ('{"kind": "char"', '{"kind": "char"}', '[]',
                  '{"kind": "sentencepiece", "model": "gone"}',
                  '{"kind": "wordpiece"}'):
    (tmp_path / 'tokenizer/tokenizer.json').write_text(content)
    with pytest.raises(UserError, match='tokenizer'):
      load_tokenizer(tmp_path)


def test_spm_files_are_spm_tokenizers(tmp_path, spm):
  spm.save(tmp_path)
  loaded = load_tokenizer(tmp_path / 'spm.model')
  assert isinstance(loaded, SentencePieceTokenizer)
  assert loaded.fingerprint == spm.fingerprint
