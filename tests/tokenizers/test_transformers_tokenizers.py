"""Foreign tokenizers give the ids of transformers' AutoTokenizer."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.tokenizers.hf_directory import read_tokenizer
from tests.support import tokenizer_tools

transformers = pytest.importorskip('transformers')
foreign = pytest.importorskip('tests.support.foreign_tokenizers')
MARKS = ['<|im_end|>', '<s>', '</s>', '<|endoftext|>', "'s", '12345', '\n\n']
TEXT = st.lists(
  st.one_of(st.sampled_from(MARKS), tokenizer_tools.TEXT), max_size=5
).map(''.join)


@pytest.fixture(scope='module', params=foreign.KINDS)
def both(request, tmp_path_factory):
  directory = tmp_path_factory.mktemp(request.param)
  foreign.write(directory, request.param)
  theirs = transformers.AutoTokenizer.from_pretrained(directory)
  return read_tokenizer(directory), theirs


@settings(deadline=None, max_examples=60)
@given(text=TEXT)
def test_ids_with_what_begins_a_text_equal_transformers(both, text):
  ours, theirs = both
  # Its LlamaTokenizer takes a space, or the mark for one, as the prefix, which
  # the file and SentencePiece do not.
  if type(theirs).__name__ == 'LlamaTokenizer':
    text = text.lstrip(' \u2581')
  wanted = theirs(text, split_special_tokens=True)['input_ids']
  assert [*ours.prefix_ids, *ours.encode(text).tolist()] == wanted


def test_begin_and_end_are_transformers(both):
  ours, theirs = both
  assert ours.eos_id == theirs.eos_token_id
  begin = theirs.bos_token_id
  assert ours.bos_id == (ours.eos_id if begin is None else begin)
