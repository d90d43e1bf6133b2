"""Token files of other programs and shards of nanochat, read as they are."""

import io
import os
import zipfile

import numpy as np
import pytest

from gpt.data import prepare
from gpt.errors import UserError
from gpt.tokenizers import CharTokenizer
from tests.support import data_tools
from tests.support.data_tools import TEXT, data_config, write

isolated = data_tools.isolated  # Used by every test.


def with_header(
  ids, magic=20240520, dtype='<u2', count=None, version=1, size=0
):
  header = np.zeros(256, '<i4')
  header[:4] = magic, version, len(ids) if count is None else count, size
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


def saved(ids, dtype='<u2'):
  file = io.BytesIO()
  np.save(file, np.asarray(ids, dtype))
  return file.getvalue()


def zipped():
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w') as archive:
    archive.writestr('archive/data.pkl', 'x')  # As torch.save does.
  return file.getvalue()


NEMO = 278895051


def test_a_file_of_ids_is_a_corpus(tokenizer, tmp_path):
  ids = tokenizer.encode(TEXT)
  for name, data in (
    ('nanogpt.bin', ids.astype('<u2').tobytes()),
    ('gpt2.bin', with_header(ids)),
    ('llama3.bin', with_header(ids, 20240801, '<u4', version=7)),
    ('nemo2.bin', with_header(ids, NEMO, size=2)),
    ('nemo4.bin', with_header(ids, NEMO, '<u4', size=4)),
    ('edufineweb_train_000001.npy', saved(ids)),
    ('edufineweb_train_000002.npy', saved(ids, '<u4')),
  ):
    path = write(tmp_path / name, data)
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


def test_a_hole_is_refused_before_a_terabyte_of_it_is_read(tokenizer, tmp_path):
  path = write(tmp_path / 'a.bin', b'\1\0')
  os.truncate(path, 1 << 40)
  with pytest.raises(UserError, match='bytes in a row are NUL'):
    load(tmp_path, [path])


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
    ('a.bin', with_header([1, 2], count=-1), 'announces -1 tokens'),
    ('a.bin', with_header([1, 2], version=2), 'version 2 .*; allowed: 1'),
    ('a.bin', with_header([]), 'holds no tokens'),
    ('a.bin', with_header([1], NEMO, size=8), 'ids of 8 bytes; allowed'),
    ('a.bin', with_header([1], 20240326), 'is a GPT-2 model of llm.c, which'),
    ('a.bin', with_header([1], 20240522), 'is an evaluation of llm.c'),
    ('a.bin', zipped(), 'is a zip archive, which cannot be trained on'),
    ('a.bin', b'RGPT0003' + bytes(90), 'is a model of RandyGPT'),
    ('a.bin.gz', b'\x1f\x8b\x08' + bytes(91), 'is gzip data.*unpack it'),
    ('a.npy', saved([1, 2], '<i8'), "array of '<i8'.*allowed: one axis"),
    ('a.npy', saved([[1, 2]]), 'shape .1, 2.; allowed: one axis'),
    ('a.npy', saved([1, 2])[:-1], 'announces 2 tokens'),
    ('a.npy', saved([1, 2])[:30], 'is no header of an array'),
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


def test_shards_and_tokenizer_of_nanochat_are_read_as_they_are(tmp_path):
  """Parquet with row groups of text; BPE with byte fallback and <|bos|>."""
  pyarrow = pytest.importorskip('pyarrow')
  parquet = pytest.importorskip('pyarrow.parquet')
  (tmp_path / 'tokenizer').mkdir()
  spec = nanochat_tokenizer(TEXT)
  spec.save(str(tmp_path / 'tokenizer/tokenizer.json'))
  documents = TEXT.split('\n\n')
  for i, part in enumerate((documents[:3], documents[3:])):
    table = pyarrow.table({'text': part})
    path = tmp_path / f'base_data/shard_{i:05d}.parquet'
    path.parent.mkdir(exist_ok=True)
    parquet.write_table(table, path, row_group_size=2, compression='zstd')
  corpus = load(tmp_path, [str(tmp_path / 'base_data')], tokenizer='hf')
  bos = spec.token_to_id('<|bos|>')
  expected = [spec.encode(x, add_special_tokens=False).ids for x in documents]
  starts = [*corpus.doc_starts.tolist(), len(corpus.tokens)]
  found = [
    [x for x in corpus.tokens[a:b].tolist() if x != bos]
    for a, b in zip(starts, starts[1:])
  ]
  assert found == expected


def nanochat_tokenizer(text):
  """A tokenizer.json as nanochat's HuggingFaceTokenizer trains one."""
  import tokenizers
  from tokenizers import Regex, decoders, pre_tokenizers

  made = tokenizers.Tokenizer(
    tokenizers.models.BPE(byte_fallback=True, unk_token=None)
  )
  split = pre_tokenizers.Split(
    Regex(r'\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+'), 'isolated'
  )
  made.pre_tokenizer = pre_tokenizers.Sequence(
    [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
  )
  made.decoder = decoders.ByteLevel()
  names = ['bos', 'user_start', 'user_end', 'assistant_start', 'assistant_end']
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=300,
    show_progress=False,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    special_tokens=[f'<|{name}|>' for name in names],
  )
  made.train_from_iterator([text], trainer)
  return made
