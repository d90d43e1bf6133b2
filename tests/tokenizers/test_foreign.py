"""Tokenizers of GPT-2, Llama, SmolLM2 and Qwen3: the ids of their library."""

import functools
import io
import json
import unicodedata

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.data.sample_text import sample_text
from gpt.data.token_cache import encode_pieces
from gpt.decoding.prompt import text_prompt
from gpt.errors import UserError
from gpt.tokenizers import BOS, EOS, StreamDecoder, load_tokenizer
from gpt.tokenizers.hf_directory import read_tokenizer
from tests.support import tokenizer_tools

foreign = pytest.importorskip('tests.support.foreign_tokenizers')
KINDS = foreign.KINDS
MARKS = (
  '<|endoftext|>',
  '<|im_start|>',
  '<|im_end|>',
  '<s>',
  '</s>',
  '<unk>',
  '<think>',
  '<|eot_id|>',
  '<0x41>',
)
TEXT = st.lists(
  st.one_of(
    st.sampled_from(
      [*MARKS, "'s", "'LL", '123', '\r\n', '   ', 'the ', '\u2581']
    ),
    st.sampled_from(['e\u0301', '\u212b', '\u1100\u1161', '\U0001f469\u200d']),
    tokenizer_tools.TEXT,
  ),
  max_size=6,
).map(''.join)


@pytest.fixture(scope='module')
def read(tmp_path_factory):
  """kind -> (our tokenizer, the library's with control names as text)."""

  @functools.cache
  def make(kind):
    directory = tmp_path_factory.mktemp(kind)
    theirs = foreign.write(directory, kind)
    theirs.encode_special_tokens = True
    return read_tokenizer(directory), theirs

  return make


@pytest.mark.parametrize('kind', KINDS)
@settings(deadline=None, max_examples=60)
@given(text=TEXT)
def test_ids_equal_the_librarys_for_any_text(read, kind, text):
  ours, theirs = read(kind)
  if kind != 'qwen3' or '<think>' not in text:
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text).tolist() == ids
  ids = ours.encode(text).tolist()
  assert not set(ids) & set(ours.special_tokens.values())
  assert ours.count_unknown(text) == {}


@pytest.mark.parametrize('kind', KINDS)
@settings(deadline=None, max_examples=60)
@given(text=TEXT)
def test_decoding_gives_the_text_at_once_and_token_by_token(read, kind, text):
  ours, _ = read(kind)
  ids = ours.encode(text).tolist()
  expected = unicodedata.normalize('NFC', text) if ours.normalizes else text
  if ours.strips_space:
    expected = expected.replace('\u2581', ' ')
    if kind == 'metaspace':  # A space there is the prefix already.
      expected = expected.removeprefix(' ')
  assert ours.decode(ids) == expected
  stream = StreamDecoder(ours)
  assert ''.join(map(stream.feed, ids)) + stream.flush() == expected


@pytest.mark.parametrize('kind', KINDS)
@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_streams_equal_decoding_for_any_ids(read, kind, data):
  ours, _ = read(kind)
  ids = st.lists(st.integers(0, ours.vocab_size - 1), max_size=30)
  ids = data.draw(ids)
  stream = StreamDecoder(ours)
  text = ''.join(map(stream.feed, ids)) + stream.flush()
  assert text == ours.decode(ids)


@pytest.mark.parametrize('kind', KINDS)
def test_what_config_files_name_begins_and_ends_a_text(read, kind):
  ours, theirs = read(kind)
  config = foreign.CONFIGS[kind]
  named = {
    which: token['content'] if isinstance(token, dict) else token
    for which, token in config.items()
    if which in ('bos_token', 'eos_token')
  }
  end = theirs.token_to_id(named['eos_token'])
  assert ours.eos_id == ours.special_tokens[EOS] == end
  start = theirs.token_to_id(named['bos_token'] or named['eos_token'])
  assert ours.bos_id == ours.special_tokens[BOS] == start
  assert ours.eos_id not in ours.unsampleable_ids
  prefix = [theirs.token_to_id(name) for name in foreign.PREFIXES[kind]]
  assert list(ours.prefix_ids) == prefix
  text = ours.encode('To be').tolist()
  assert text_prompt(ours, 'To be').ids == [*prefix, *text]
  assert text_prompt(ours, '').ids == [ours.bos_id]


@pytest.mark.parametrize('kind', KINDS)
def test_a_run_keeps_the_tokenizer(read, kind, tmp_path):
  ours, _ = read(kind)
  ours.save(tmp_path / 'tokenizer')
  loaded = load_tokenizer(tmp_path)
  assert loaded.fingerprint == ours.fingerprint
  assert loaded.special_tokens == ours.special_tokens
  assert loaded.unsampleable_ids == ours.unsampleable_ids
  assert loaded.prefix_ids == ours.prefix_ids
  text = sample_text()[:500]
  assert loaded.encode(text).tolist() == ours.encode(text).tolist()


def test_marks_that_are_not_special_print_but_never_come_from_text(read):
  ours, theirs = read('qwen3')
  id = theirs.token_to_id('<think>')
  assert ours.decode([id]) == '<think>'
  assert id not in ours.unsampleable_ids
  assert ours.special_tokens['<think>'] == id
  assert id not in ours.encode('a <think> b').tolist()


def test_rows_above_the_vocabulary_are_never_sampled(read, tmp_path):
  theirs = foreign.write(tmp_path, 'qwen3')
  n = theirs.get_vocab_size(with_added_tokens=True)
  padded = read_tokenizer(tmp_path, n + 5)
  assert padded.vocab_size == n + 5
  assert set(range(n, n + 5)) <= set(padded.unsampleable_ids)
  assert padded.decode([n, n + 4]) == ''
  padded.save(tmp_path / 'tokenizer')
  assert load_tokenizer(tmp_path / 'tokenizer').vocab_size == n + 5
  with pytest.raises(UserError, match=f'has {n:,} tokens, .* {n - 1:,} rows'):
    read_tokenizer(tmp_path, n - 1)


@pytest.mark.parametrize('kind', ['llama2', 'metaspace'])
def test_a_completion_keeps_its_space_and_a_new_text_drops_it(read, kind):
  ours, _ = read(kind)
  ids = ours.encode('be').tolist()
  assert ours.decode(ids) == 'be'
  last = ours.encode('To').tolist()[-1]
  after_text = StreamDecoder(ours, after=last)
  assert ''.join(map(after_text.feed, ids)) == ' be'
  after_bos = StreamDecoder(ours, after=ours.bos_id)
  assert ''.join(map(after_bos.feed, ids)) == 'be'


@pytest.mark.parametrize('kind', ['llama2', 'metaspace'])
def test_only_the_first_piece_of_a_document_gets_the_prefix(read, kind):
  ours, _ = read(kind)
  pieces = ['To be\n', 'or not\n', None, 'that is\n', 'all\n']
  encoded = [ids.tolist() for ids, _ in encode_pieces(pieces, ours, {})]
  whole = [ours.encode('To be\nor not\n'), ours.encode('that is\nall\n')]
  assert encoded[0] + encoded[1] == whole[0].tolist()
  assert encoded[2] == [ours.eos_id]
  assert encoded[3] + encoded[4] == whole[1].tolist()


@pytest.mark.parametrize('named_in', ['special_tokens_map.json', 'config.json'])
def test_names_and_ids_are_found_in_the_other_files(tmp_path, named_in):
  theirs = foreign.write(tmp_path, 'smollm2')
  (tmp_path / 'tokenizer_config.json').unlink()
  with pytest.raises(UserError, match='nothing names the token that ends'):
    read_tokenizer(tmp_path)
  content = {'bos_token': '<|im_start|>', 'eos_token': '<|im_end|>'}
  if named_in == 'config.json':
    end = theirs.token_to_id('<|im_end|>')
    content = {'bos_token_id': None, 'eos_token_id': [end, 0]}
  (tmp_path / named_in).write_text(json.dumps(content))
  ours = read_tokenizer(tmp_path)
  assert ours.eos_id == theirs.token_to_id('<|im_end|>')
  if named_in == 'config.json':
    assert ours.bos_id == ours.eos_id and ours.prefix_ids == ()


def test_a_named_token_that_is_missing_is_refused(tmp_path):
  foreign.write(tmp_path, 'gpt2')
  config = {**foreign.CONFIGS['gpt2'], 'eos_token': '<nowhere>'}
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  with pytest.raises(UserError, match="has no token '<nowhere>'"):
    read_tokenizer(tmp_path)


# --- tokenizer.model


def sentencepiece_model(**options) -> bytes:
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(sample_text()[:60_000].splitlines()),
    model_writer=model,
    minloglevel=2,
    num_threads=1,
    hard_vocab_limit=False,
    **{
      'model_type': 'bpe',
      'vocab_size': 600,
      'byte_fallback': True,
      'normalization_rule_name': 'identity',
      'remove_extra_whitespaces': False,
      'split_digits': True,
      'allow_whitespace_only_pieces': True,
      **options,
    },
  )
  return model.getvalue()


@pytest.fixture(scope='module')
def llama_model(tmp_path_factory):
  model = sentencepiece_model()
  directory = tmp_path_factory.mktemp('llama')
  (directory / 'tokenizer.model').write_bytes(model)
  library = sentencepiece.SentencePieceProcessor(model_proto=model)
  return load_tokenizer(directory), library


@settings(deadline=None, max_examples=150)
@given(text=TEXT)
def test_ids_of_a_tokenizer_model_equal_sentencepieces(llama_model, text):
  ours, theirs = llama_model
  assert ours.encode(text).tolist() == theirs.encode(text)
  assert ours.decode(ours.encode(text)) == text.replace('\u2581', ' ')


def test_a_tokenizer_model_begins_texts_with_bos(llama_model):
  ours, theirs = llama_model
  assert (ours.bos_id, ours.eos_id) == (theirs.bos_id(), theirs.eos_id())
  assert ours.prefix_ids == (ours.bos_id,)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'model_type': 'unigram', 'byte_fallback': False}, 'not BPE but UNIGRAM'),
    ({'normalization_rule_name': 'nmt_nfkc'}, 'changes the text first'),
    ({'remove_extra_whitespaces': True}, 'removes white space'),
  ],
)
def test_models_that_change_text_are_refused(tmp_path, options, message):
  model = sentencepiece_model(**options)
  (tmp_path / 'tokenizer.model').write_bytes(model)
  with pytest.raises(UserError, match=message):
    read_tokenizer(tmp_path)


def test_gpt2s_own_files_are_its_tokenizer(tmp_path):
  foreign.write(tmp_path / 'gpt2', 'gpt2')
  spec = json.loads((tmp_path / 'gpt2' / 'tokenizer.json').read_text())
  vocab = spec['model']['vocab'] | {
    token['content']: token['id'] for token in spec['added_tokens']
  }
  merges = [
    pair if isinstance(pair, str) else ' '.join(pair)
    for pair in spec['model']['merges']
  ]
  own = load_tokenizer(tmp_path / 'gpt2')
  for names in (('vocab.json', 'merges.txt'), ('encoder.json', 'vocab.bpe')):
    directory = tmp_path / names[0]
    directory.mkdir()
    (directory / names[0]).write_text(json.dumps(vocab))
    text = '\n'.join(['#version: 0.2', *merges, ''])
    (directory / names[1]).write_text(text)
    for path in (directory, directory / names[0]):
      found = load_tokenizer(path)
      assert found.eos_id == own.eos_id
      for sample in ('the king  spoke;\n\n 1234', '\u20ac <|endoftext|>'):
        assert found.encode(sample).tolist() == own.encode(sample).tolist()


def test_a_bare_tokenizer_json_ends_texts_with_a_token_of_a_known_name(
  tmp_path,
):
  foreign.write(tmp_path / 'gpt2', 'gpt2')
  data = (tmp_path / 'gpt2' / 'tokenizer.json').read_bytes()
  (tmp_path / 'any.json').write_bytes(data)
  own = load_tokenizer(tmp_path / 'gpt2')
  found = load_tokenizer(tmp_path / 'any.json')
  assert (found.bos_id, found.eos_id) == (own.bos_id, own.eos_id)
