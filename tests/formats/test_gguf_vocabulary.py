"""Tokenizers in GGUF files: the same ids after reading them back."""

import numpy as np
import pytest

from gpt.errors import UserError
from gpt.formats.gguf.vocabulary import read_tokenizer, tokenizer_keys
from gpt.tokenizers import CharTokenizer, build_tokenizer
from gpt.tokenizers.chat_format import CHAT_TOKENS
from tests.support.gguf_models import TEXT, small_bpe
from tests.support.tokenizer_texts import ADVERSARIAL, multibyte


@pytest.fixture(scope='module')
def bpe():
  return small_bpe()


def tokenizers():
  yield 'char', CharTokenizer(sorted({*TEXT, *multibyte()}))
  yield 'chat char', CharTokenizer(sorted({*TEXT}), CHAT_TOKENS)
  yield 'bpe', build_tokenizer('hf', [TEXT], 320, CHAT_TOKENS)
  yield 'sentencepiece', build_tokenizer('sentencepiece', [TEXT], 420, ())


@pytest.mark.parametrize('name', ['char', 'chat char', 'bpe', 'sentencepiece'])
def test_a_tokenizer_read_back_gives_the_same_ids(name):
  tokenizer = dict(tokenizers())[name]
  found = read_tokenizer('m.gguf', as_read(tokenizer_keys(tokenizer)))
  assert found.vocab_size == tokenizer.vocab_size
  assert (found.bos_id, found.eos_id) == (tokenizer.bos_id, tokenizer.eos_id)
  assert found.special_tokens.items() >= tokenizer.special_tokens.items()
  for text in (TEXT[:5000], *ADVERSARIAL):
    ids = tokenizer.encode(text).tolist()
    assert found.encode(text).tolist() == ids
    assert found.decode(ids) == tokenizer.decode(ids)


def as_read(keys):
  """Metadata as a file would give it: arrays of numbers are numpy's."""
  return {
    name: np.array(value)
    if isinstance(value, list) and not isinstance(value[0], str)
    else value
    for name, value in keys.items()
  }


def test_words_are_cut_by_the_rule_the_file_names():
  spec_keys = tokenizer_keys(build_tokenizer('hf', [TEXT], 320))
  keys = as_read(spec_keys) | {'tokenizer.ggml.pre': 'smollm'}
  digits = read_tokenizer('m.gguf', keys)
  assert digits.encode('12345').size == 5
  assert tokenizer_keys(digits)['tokenizer.ggml.pre'] == 'smollm'


@pytest.mark.parametrize('name', ['gpt-2', 'smollm', 'llama-bpe', 'qwen2'])
def test_every_rule_survives_a_round_trip(name):
  keys = tokenizer_keys(build_tokenizer('hf', [TEXT], 320))
  keys['tokenizer.ggml.pre'] = name
  found = read_tokenizer('m.gguf', as_read(keys))
  assert tokenizer_keys(found)['tokenizer.ggml.pre'] == name


@pytest.mark.parametrize(
  'change, message',
  [
    ({'tokenizer.ggml.model': 'bert'}, "'bert'"),
    ({'tokenizer.ggml.pre': 'tekken'}, "'tekken'"),
    ({'tokenizer.ggml.pre': 3}, 'tokenizer.ggml.pre'),
    ({'tokenizer.ggml.tokens': []}, 'no tokens'),
    ({'tokenizer.ggml.tokens': ['a', 'a']}, 'twice'),
    ({'tokenizer.ggml.token_type': np.ones(3)}, 'token_type'),
    ({'tokenizer.ggml.bos_token_id': 10**6}, 'bos_token_id'),
  ],
)
def test_a_wrong_tokenizer_is_refused_by_name(bpe, change, message):
  keys = as_read(tokenizer_keys(bpe)) | change
  with pytest.raises(UserError, match=message) as error:
    read_tokenizer('m.gguf', keys)
  assert 'm.gguf' in str(error.value)
