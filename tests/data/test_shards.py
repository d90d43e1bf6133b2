"""A large corpus in shards has the tokens of one file, whoever encodes them."""

import functools
import gzip
import json
import os
import random
import subprocess
import sys

import numpy as np
import psutil
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from gpt.data import (
  corpus_tokens,
  raw_blocks,
  segments,
  shard_encoding,
  text_reader,
  token_cache,
)
from gpt.data.block_encoding import Task, encode_block
from gpt.data.documents import LINES_NAME, encode_lines
from gpt.data.sources import find_sources
from gpt.errors import UserError
from gpt.tokenizers import CharTokenizer
from tests.support import data_tools
from tests.support.data_tools import TEXT, write
from tests.support.workdirs import ROOT

isolated = data_tools.isolated  # Used by every test.
ALPHABET = TEXT + '\u00e9\u3000\u20ac\ufffd{}"<|eos|>[]:,'


class PoolOfThisProcess:
  """Encodes blocks here: what the processes of EncoderPool do."""

  size = 1

  def __init__(self, tokenizer, **task):
    self.tokenizer = tokenizer
    self.task = Task('', tokenizer.fingerprint, **task)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass

  def map(self, blocks):
    for key, source, before in blocks:
      yield key, encode_block(self.task, self.tokenizer, source, before)


@pytest.fixture
def tiny(monkeypatch):
  """Blocks, shards and segments of a few bytes."""
  monkeypatch.setattr(text_reader, 'READ_BYTES', 16)
  monkeypatch.setattr(raw_blocks, 'READ_BYTES', 16)
  monkeypatch.setattr(segments, 'READ_BYTES', 16)
  monkeypatch.setattr(shard_encoding, 'READ_BYTES', 16)
  monkeypatch.setattr(shard_encoding, 'SHARD_BYTES', 40)
  monkeypatch.setattr(segments, 'SEGMENT_BYTES', 100)
  monkeypatch.setattr(corpus_tokens, 'SHARDS_FROM', 0)
  monkeypatch.setattr(shard_encoding, 'EncoderPool', PoolOfThisProcess)


def texts(separator):
  """Files of short lines, blank ones, separators and odd characters."""
  parts = ['a', 'bc d', 'the king spoke', '\u00e9', '\u3000', ' ', '\n', '\n\n']
  parts += ['\r\n', separator, '\ufeff', '\ufffd', '<|', 'eos|>', 'x' * 40]
  text = st.lists(st.sampled_from(parts), max_size=40).map(''.join)
  return st.lists(text, min_size=1, max_size=4)


@pytest.mark.parametrize('separator', ['none', 'blank_line', '<|eos|>'])
@pytest.mark.parametrize('packed', [False, True])
def test_shards_hold_the_tokens_of_one_file(
  separator, packed, tiny, tmp_path_factory
):
  tokenizer = CharTokenizer(ALPHABET)

  @settings(max_examples=25, deadline=None)
  @given(texts(separator), st.integers(1, 3), st.integers(0, 2))
  def check(files, shares, first):
    base = tmp_path_factory.mktemp('c')
    paths = []
    for i, text in enumerate(files):
      data = text.encode()
      name = f'{i}.txt.gz' if packed else f'{i}.txt'
      paths.append(write(base / name, gzip.compress(data) if packed else data))
    found = find_sources(paths)
    one = token_cache.load_or_encode(found, tokenizer, separator, base / 'one')
    for share in [(first + i) % shares for i in range(shares)]:
      corpus_tokens.encode_share(
        found, tokenizer, separator, base / 'c', share=share, shares=shares
      )
    many = corpus_tokens.load_or_encode(found, tokenizer, separator, base / 'c')
    assert many[0].tolist() == one[0].tolist()
    assert many[1].tolist() == one[1].tolist()
    for name in ('n_tokens', 'chars', 'documents', 'unknown', 'text_sha256'):
      assert getattr(many[2], name) == getattr(one[2], name), name
    assert many[2].stats == one[2].stats

  check()


@pytest.mark.parametrize('format', ['text', 'lines'])
def test_records_and_lines_in_shards_are_those_of_one_file(
  format, tiny, tmp_path
):
  tokenizer = CharTokenizer(ALPHABET)
  generator = random.Random(3)
  pieces = ['a', 'bc\n', '\r\n', '\u20ac', 'the king ', '  ', '\n']
  paths = []
  for i in range(4):
    records = [
      {'text': ''.join(generator.choices(pieces, k=generator.randrange(30)))}
      for _ in range(generator.randrange(40))
    ]
    if i == 3:
      data = [record['text'] or 'x' for record in records] or ['x']
      parquet.write_table(
        pyarrow.table({'text': data}), tmp_path / '3.parquet', row_group_size=7
      )
      paths.append(str(tmp_path / '3.parquet'))
      continue
    text = '\n'.join(map(json.dumps, records)).encode()
    name = f'{i}.jsonl.gz' if i == 1 else f'{i}.jsonl'
    paths.append(
      write(tmp_path / name, gzip.compress(text) if i == 1 else text)
    )
  paths.append(write(tmp_path / 'end.txt', 'the end'))
  found = find_sources(paths)
  args = ('none',) if format == 'text' else (LINES_NAME,)
  encode = None if format == 'text' else encode_lines
  one = token_cache.load_or_encode(
    found, tokenizer, *args, tmp_path / 'one', encode=encode
  )
  many = corpus_tokens.load_or_encode(
    found, tokenizer, *args, tmp_path / 'c', encode=encode
  )
  assert many[0].tolist() == one[0].tolist()
  assert many[1].tolist() == one[1].tolist()
  assert len(list((tmp_path / 'c').rglob('*.bin'))) > 5


def test_a_thousand_files_are_one_corpus(tiny, tmp_path):
  tokenizer = CharTokenizer(ALPHABET)
  for i in range(1000):
    folder = tmp_path / 'text' / 'ab'[i % 2]
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / f'{i:04d}.txt', f'the king spoke {i} times. ')
  found = find_sources(str(tmp_path / 'text'))
  assert len(found.items) == 1000
  one, many = (
    load(found, tokenizer, 'none', tmp_path / module)
    for load, module in (
      (token_cache.load_or_encode, 'one'),
      (corpus_tokens.load_or_encode, 'many'),
    )
  )
  assert many[0].tolist() == one[0].tolist()
  text = tokenizer.decode(one[0].tolist())
  assert text.startswith('the king spoke 0 times. ')
  assert 'spoke 998 times. the king spoke 1 times. ' in text.replace('\n', '')


def test_a_fault_in_a_large_corpus_names_the_line(tiny, tmp_path):
  lines = ['{"text": "the king spoke"}'] * 50
  lines[41] = '{"text": 7}'
  path = write(tmp_path / 'a.jsonl', '\n'.join(lines))
  with pytest.raises(UserError, match='a.jsonl: line 42: .* holds 7'):
    corpus_tokens.load_or_encode(
      find_sources(path), CharTokenizer(ALPHABET), 'none', tmp_path / 'c'
    )


@pytest.mark.parametrize('damage', ['bits', 'cut', 'side', 'ends', 'gone'])
def test_only_a_damaged_shard_is_encoded_again(damage, tiny, tmp_path):
  tokenizer = CharTokenizer(ALPHABET)
  found = find_sources(write(tmp_path / 'a.txt', TEXT[:2000]))
  load = functools.partial(
    corpus_tokens.load_or_encode, found, tokenizer, 'none', tmp_path / 'c'
  )
  before = load()[0].tolist()
  shards = sorted((tmp_path / 'c').rglob('*.bin'))
  times = [path.stat().st_mtime_ns for path in shards]
  hurt = shards[3]
  if damage == 'bits':
    data = bytearray(hurt.read_bytes())
    data[5] ^= 1
    hurt.write_bytes(data)
  elif damage == 'cut':
    hurt.write_bytes(hurt.read_bytes()[:-2])
  elif damage == 'side':
    hurt.with_suffix('.json').write_text('{}')
  elif damage == 'ends':
    hurt.with_suffix('.ends').write_bytes(b'1234')
  else:
    hurt.unlink()
  assert load()[0].tolist() == before
  for path, time in zip(shards, times):
    assert path == hurt or path.stat().st_mtime_ns == time


def test_slices_cross_shards(tiny, tmp_path):
  tokenizer = CharTokenizer(ALPHABET)
  found = find_sources(write(tmp_path / 'a.txt', TEXT[:2000]))
  tokens, _, _ = corpus_tokens.load_or_encode(
    found, tokenizer, 'none', tmp_path / 'c'
  )
  whole = np.array(tokens)
  assert len(tokens) == len(whole) == 2000
  for start, stop in [(0, 1), (30, 170), (0, 2000), (1990, 2100), (7, 7)]:
    assert tokens[start:stop].tolist() == whole[start:stop].tolist()
  assert tokens[-1] == whole[-1]


KILLED = """
import sys
from gpt.data import corpus_tokens, shard_encoding
from gpt.data.sources import find_sources
from gpt.tokenizers import load_tokenizer
corpus_tokens.SHARDS_FROM, shard_encoding.SHARD_BYTES = 0, 2 << 20
tokens, _, info = corpus_tokens.load_or_encode(
  find_sources(sys.argv[1]), load_tokenizer(sys.argv[2]), 'none', sys.argv[3]
)
tokens[:].tofile(sys.argv[4])
"""


def test_a_killed_process_loses_at_most_one_shard(tmp_path):
  """SIGKILL while real processes encode; they end too; a restart goes on."""
  text = TEXT * 1200  # 24 MB.
  path = write(tmp_path / 'a.txt', text)
  tokenizer = CharTokenizer(ALPHABET)
  tokenizer.save(tmp_path / 'tokenizer')
  command = [sys.executable, '-c', KILLED, path, tmp_path / 'tokenizer']
  command += [tmp_path / 'c', tmp_path / 'tokens.bin']
  env = {**os.environ, 'PYTHONPATH': str(ROOT)}
  first = subprocess.Popen(command, env=env)
  while len(list((tmp_path / 'c').rglob('*.json'))) < 3:
    assert first.poll() is None, 'it ended before it was killed'
  workers = psutil.Process(first.pid).children()
  first.kill()
  first.wait()
  assert workers and psutil.wait_procs(workers, 30)[1] == []
  done = {
    path: path.stat().st_mtime_ns
    for path in (tmp_path / 'c').rglob('*.json')
    if path.name[0].isdigit()
  }
  subprocess.run(command, env=env, check=True)
  assert {path: path.stat().st_mtime_ns for path in done} == done
  found = np.fromfile(tmp_path / 'tokens.bin', '<u2')
  assert np.array_equal(found, tokenizer.encode(text))
