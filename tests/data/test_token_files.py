"""Token files of nanoGPT and llm.c are read as they are."""

import numpy as np
import pytest

from gpt.data import prepare
from gpt.errors import UserError
from gpt.tokenizers import CharTokenizer
from tests.support import data_tools
from tests.support.data_tools import TEXT, data_config, write

isolated = data_tools.isolated  # Used by every test.


def with_header(ids, magic=20240520, dtype='<u2', count=None):
  header = np.zeros(256, '<i4')
  header[:3] = magic, 1, len(ids) if count is None else count
  return header.tobytes() + np.asarray(ids, dtype).tobytes()


@pytest.fixture
def tokenizer(tmp_path):
  made = CharTokenizer(TEXT)
  made.save(tmp_path / 'tokenizer')
  return made


def load(tmp_path, paths, **config):
  config = data_config(
    ','.join(paths), tokenizer_path=str(tmp_path / 'tokenizer'), **config
  )
  return prepare.prepare(config, tmp_path / 'run')[1]


def test_a_file_of_ids_is_a_corpus(tokenizer, tmp_path):
  ids = tokenizer.encode(TEXT)
  for data in (ids.astype('<u2').tobytes(), with_header(ids)):
    path = write(tmp_path / 'train.bin', data)
    for _ in range(2):  # The second time, its scan is remembered.
      corpus = load(tmp_path, [path])
      assert np.array_equal(corpus.tokens[:], ids)
      assert corpus.n_train == int(0.9 * len(ids))


def test_files_named_val_validate(tokenizer, tmp_path):
  ids = tokenizer.encode(TEXT).astype('<u2')
  paths = [
    write(tmp_path / 'a_val_000000.bin', with_header(ids[:1000])),
    write(tmp_path / 'a_train_000001.bin', with_header(ids[1000:5000])),
    write(tmp_path / 'a_train_000002.bin', with_header(ids[5000:])),
  ]
  corpus = load(tmp_path, paths)
  assert corpus.n_val == 1000
  assert np.array_equal(corpus.tokens[corpus.n_train :], ids[:1000])
  assert np.array_equal(corpus.tokens[: corpus.n_train], ids[1000:])


def test_ends_of_documents_are_found(tokenizer, tmp_path):
  ids = np.array([5, 6, tokenizer.eos_id, 7, tokenizer.eos_id, 8])
  path = write(tmp_path / 'a.bin', ids.astype('<u2').tobytes())
  assert load(tmp_path, [path]).doc_starts.tolist() == [0, 3, 5]


@pytest.mark.parametrize(
  'name, data, message',
  [
    ('a.bin', b'odd', 'no token ids of 2 bytes'),
    ('a.bin', np.full(9, 999, '<u2').tobytes(), 'holds the token 999, but'),
    ('a.bin', with_header([1, 2], count=7), 'announces 7 tokens'),
    ('a.txt', b'text', 'names both token files'),
  ],
)
def test_files_that_do_not_fit_are_explained(
  name, data, message, tokenizer, tmp_path
):
  good = write(tmp_path / 'good.bin', with_header([3, 4]))
  paths = [good, write(tmp_path / name, data)]
  with pytest.raises(UserError, match=message):
    load(tmp_path, paths)


def test_tokens_need_the_tokenizer_that_made_them(tmp_path):
  path = write(tmp_path / 'a.bin', with_header([3, 4]))
  with pytest.raises(UserError, match='name the tokenizer that made'):
    prepare.prepare(data_config(path), tmp_path / 'run')
