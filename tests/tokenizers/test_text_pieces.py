"""Long texts are encoded in pieces: the same ids, little memory."""

import functools
import resource
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt.data.sample_text import sample_text
from gpt.tokenizers import build_tokenizer, text_pieces
from gpt.tokenizers.hf_directory import read_tokenizer
from tests.support import tokenizer_tools

foreign = pytest.importorskip('tests.support.foreign_tokenizers')
KINDS = (*foreign.KINDS, 'ours')
TEXT = st.lists(
  st.one_of(
    st.sampled_from(
      [' ', '\n', '  ', ' \n', '\n ', '\r\n', '\t', '\u2581', '\u00a0', '\x1c']
    ),
    st.sampled_from(["'s", 'a', '1', '12', '!', '...', 'the', '\u0301', 'e']),
    tokenizer_tools.TEXT,
  ),
  max_size=30,
).map(''.join)


@pytest.fixture(scope='module')
def read(tmp_path_factory):
  @functools.cache
  def make(kind):
    if kind == 'ours':
      return build_tokenizer('hf', [sample_text()[:40_000]], 600)
    directory = tmp_path_factory.mktemp(kind)
    foreign.write(directory, kind)
    return read_tokenizer(directory)

  return make


@pytest.mark.parametrize('kind', KINDS)
@settings(deadline=None, max_examples=100)
@given(text=TEXT, piece=st.integers(1, 9))
@example(text="it' s a\n 1 2 ! ! b\nc'\ns \u0301 \n", piece=1)
def test_ids_of_the_pieces_are_those_of_the_whole(read, kind, text, piece):
  tokenizer = read(kind)
  whole = tokenizer.encode(text).tolist()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(text_pieces, 'PIECE', piece)
    patch.setattr(text_pieces, 'MOST', 10**6)
    assert ''.join(text_pieces.cut(text)) == text
    assert tokenizer.encode(text).tolist() == whole


def test_prose_is_cut_often():
  text = sample_text()[:200_000].replace('\n', ' ')
  pieces = list(text_pieces.cut(text))
  assert ''.join(pieces) == text and len(pieces) == 49
  assert all(piece[0] == ' ' for piece in pieces[1:])


@pytest.mark.parametrize('kind', ['gpt2', 'qwen3', 'llama2'])
@given(text=TEXT)
@settings(deadline=None, max_examples=50)
def test_text_without_a_place_to_cut_is_not_lost(read, kind, text):
  tokenizer = read(kind)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(text_pieces, 'PIECE', 2)
    patch.setattr(text_pieces, 'MOST', 40)
    text = text.replace(' ', '').replace('\n', '') * 3
    found = tokenizer.decode(tokenizer.encode(text))
  if tokenizer.normalizes:
    text = unicodedata.normalize('NFC', text)
  if tokenizer.strips_space:
    text = text.replace('\u2581', ' ')
  assert found == text


@pytest.mark.parametrize('kind', ['gpt2', 'llama2'])
@pytest.mark.parametrize('unit', ['the king ', 'abcdefgh'])
def test_a_line_of_four_million_characters_takes_little_memory(
  read, kind, unit
):
  tokenizer = read(kind)
  text = unit * (4_000_000 // len(unit))
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  ids = tokenizer.encode(text)
  used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  assert used * 1024 < 200 << 20
  assert text.endswith(tokenizer.decode(ids[-100:]))
