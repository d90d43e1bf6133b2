"""The token cache equals fresh encoding; one that does not match is rebuilt."""

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from gpt.data import prepare, sources, text_reader, token_cache
from gpt.data.sample_text import sample_text
from gpt.errors import UserError
from gpt.tokenizers import (
  BOS,
  EOS,
  CharTokenizer,
  RandyTokenizer,
  build_tokenizer,
)
from tests.support import data_tools
from tests.support.data_tools import (
  TEXT,
  corpus_of,
  data_config,
  memory_source,
  write,
)
from tests.support.workdirs import ROOT

isolated = data_tools.isolated  # Used by every test.


@pytest.mark.parametrize('kind', ['char', 'sentencepiece', 'randygpt'])
def test_encoding_in_blocks_equals_encoding_whole(kind, tmp_path, monkeypatch):
  monkeypatch.setattr(text_reader, 'READ_BYTES', 1000)
  text = TEXT.replace('Mara', 'M\u00e4r\u2581\U0001f642')
  if kind == 'randygpt':
    merges = [('t', 'h'), ('th', 'e'), ('.', '\n'), (' ', 'the')]
    vocab = [BOS, EOS, *sorted(set(text)), *map(''.join, merges)]
    tokenizer = RandyTokenizer(vocab, merges)
  else:
    tokenizer = build_tokenizer(kind, [text], 500)
  _, corpus = corpus_of(text, tmp_path, tokenizer=tokenizer)
  assert isinstance(corpus.tokens, np.memmap)
  assert corpus.tokens.tolist() == tokenizer.encode(text).tolist()
  assert corpus.info.chars == len(text)


def test_token_file_is_flat_little_endian_with_a_side_file(tmp_path):
  tokenizer, corpus = corpus_of(TEXT, tmp_path)
  (side,) = (tmp_path / 'cache').glob('tokens-*.json')
  flat = np.fromfile(side.with_suffix('.bin'), '<u2')
  assert flat.tolist() == tokenizer.encode(TEXT).tolist()
  meta = json.loads(side.read_text())
  assert meta['dtype'] == '<u2' and meta['n_tokens'] == len(flat)
  assert not list((tmp_path / 'cache').glob('.*'))  # No temporary files.


def test_large_vocabularies_need_four_bytes():
  assert token_cache.token_dtype(65_536) == np.dtype('<u2')
  assert token_cache.token_dtype(65_537) == np.dtype('<u4')


class CountingTokenizer(CharTokenizer):
  """Counts encoded characters, which shows whether the cache was used."""

  encoded = 0

  def encode(self, text):
    type(self).encoded += len(text)
    return super().encode(text)


@pytest.fixture
def counting():
  class Fresh(CountingTokenizer):
    pass

  return Fresh


def test_only_a_matching_cache_is_used(tmp_path, counting):
  def encoded(text, tokenizer, separator='none'):
    before = counting.encoded
    _, corpus = corpus_of(text, tmp_path, separator, tokenizer=tokenizer)
    pieces = tokenizer.decode(corpus.tokens)
    assert pieces == text.replace(EOS, '' if separator == EOS else EOS)
    return counting.encoded > before

  abc, abcd = counting('abc<|eos>'), counting('abcd<|eos>')
  text = 'abc<|eos|>cab' * 9
  assert encoded(text, abc)
  assert not encoded(text, abc)
  assert encoded(text.replace('a', 'b'), abc), 'different text'
  assert encoded(text, abcd), 'different vocabulary'
  assert encoded(text, abc, EOS), 'different separator'
  assert not encoded(text, abc), 'the first one is still cached'


def test_the_hash_covers_order_and_boundaries_of_files():
  texts = [('ab', 'c'), ('a', 'bc'), ('c', 'ab'), ('abc',), ('ab', 'c', '')]
  assert len({memory_source(*t).sha256 for t in texts}) == len(texts)


@pytest.mark.parametrize(
  'damage',
  [
    'cut',
    'longer',
    'bits',
    'side',
    'no side',
    'no tokens',
    'other fingerprint',
  ],
)
def test_a_damaged_cache_is_rebuilt(damage, tmp_path):
  _, corpus = corpus_of(TEXT, tmp_path)
  expected = corpus.tokens.tolist()
  (side,) = (tmp_path / 'cache').glob('tokens-*.json')
  tokens = side.with_suffix('.bin')
  raw = tokens.read_bytes()
  if damage == 'cut':
    tokens.write_bytes(raw[:-2])
  elif damage == 'longer':
    tokens.write_bytes(raw + b'\0\0')
  elif damage == 'bits':
    tokens.write_bytes(raw[:100] + bytes([raw[100] ^ 1]) + raw[101:])
  elif damage == 'side':
    side.write_text(side.read_text()[:40])
  elif damage == 'no side':
    side.unlink()
  elif damage == 'no tokens':
    tokens.unlink()
  else:
    meta = json.loads(side.read_text())
    side.write_text(json.dumps({**meta, 'fingerprint': 'f' * 64}))
  assert corpus_of(TEXT, tmp_path)[1].tokens.tolist() == expected


def test_a_failure_while_encoding_leaves_no_files(tmp_path):
  class Broken(CharTokenizer):
    def encode(self, text):
      raise MemoryError

  with pytest.raises(MemoryError):
    corpus_of(TEXT, tmp_path, tokenizer=Broken(TEXT))
  assert list((tmp_path / 'cache').iterdir()) == []


def test_a_full_disk_is_reported(tmp_path, monkeypatch):
  def no_space(fd):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', no_space)
  with pytest.raises(UserError, match='No space left.*cache_dir'):
    corpus_of(TEXT, tmp_path)
  assert list((tmp_path / 'cache').iterdir()) == []


def test_a_text_that_changes_while_it_is_encoded_is_rejected(tmp_path):
  path = write(tmp_path / 'log.txt', TEXT)

  class Slow(CharTokenizer):
    def encode(self, text):
      with open(path, 'a') as f:
        f.write('a')
      return super().encode(text)

  with pytest.raises(UserError, match='changed while'):
    prepare.open_corpus(sources.find_sources(path), Slow(TEXT), tmp_path / 'c')
  assert not list((tmp_path / 'c').glob('*.json'))


MEASURE = """
import json, re, sys, types
from gpt.data import prepare
from gpt.data.text_dataset import TextDataset
config = types.SimpleNamespace(**json.loads(sys.argv[1]))
tokenizer, corpus = prepare.prepare(config, sys.argv[2])
ds = TextDataset(corpus, 256, 64, 0, tokenizer)
for step in range(20):
  ds.batch_at(step)
# Not ru_maxrss, which starts from the parent's value at the fork.
status = open('/proc/self/status').read()
print(int(re.search(r'VmHWM:\\s*(\\d+) kB', status)[1]) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.parametrize('kind', ['char', 'sentencepiece'])
def test_memory_stays_bounded_on_30_mb(kind, tmp_path):
  with open(tmp_path / 'big.txt', 'w', encoding='utf-8') as f:
    while f.tell() < 30_000_000:
      f.write(sample_text())
  args = vars(
    data_config(str(tmp_path / 'big.txt'), tokenizer=kind, vocab_size=2000)
  )
  done = subprocess.run(
    [sys.executable, '-c', MEASURE, json.dumps(args), str(tmp_path / 'run')],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert float(done.stdout) < 250


def test_concurrent_encoders_make_the_same_cache(tmp_path):
  results = []

  def work():
    results.append(corpus_of(TEXT, tmp_path)[1].tokens.tolist())

  threads = [threading.Thread(target=work) for _ in range(6)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert results == [CharTokenizer(TEXT).encode(TEXT).tolist()] * 6
  assert len(list((tmp_path / 'cache').iterdir())) == 2


def test_a_workdir_keeps_one_token_file_and_a_shared_cache_all(tmp_path):
  def count(cache_dir, text):
    path = write(tmp_path / 'a.txt', text)
    prepare.prepare(data_config(path, cache_dir=cache_dir), tmp_path / 'run')
    return len(list((tmp_path / (cache_dir or 'run/cache')).glob('*.bin')))

  shared = str(tmp_path / 'shared')
  assert [count('', TEXT), count('', TEXT * 2)] == [1, 1]
  assert [count(shared, TEXT), count(shared, TEXT * 2)] == [1, 2]
