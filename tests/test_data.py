"""Text becomes tokens once, correctly, and batches are pure functions.

Sources, the reader's repairs, the token cache and the dataset's promises.
"""

import dataclasses
import hashlib
import http.server
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt import data, dataset, sources, text_reader, token_cache
from gpt.errors import UserError
from gpt.sample_text import sample_text
from gpt.tokenizer import (
  BOS,
  EOS,
  CharTokenizer,
  RandyTokenizer,
  build_tokenizer,
  load_tokenizer,
)

relaxed = settings(deadline=None, max_examples=100)
ROOT = pathlib.Path(__file__).parent.parent
TEXT = sample_text()[:20_000]


@pytest.fixture(autouse=True)
def own_world(tmp_path, monkeypatch):
  """An empty working directory, no downloads kept, no network."""
  (tmp_path / 'cwd').mkdir()
  monkeypatch.chdir(tmp_path / 'cwd')
  monkeypatch.setenv('RGPT_CACHE', str(tmp_path / 'downloads'))
  monkeypatch.delenv('RGPT_DATA', raising=False)
  monkeypatch.setenv('RGPT_SHAKESPEARE_URL', f'http://127.0.0.1:{closed_port()}')


def closed_port() -> int:
  """A local port on which nobody listens."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def config(path='sample', **changes):
  """config.data with the keys of configs/default.py."""
  return types.SimpleNamespace(**{
    'path': path, 'format': 'text', 'tokenizer': 'char', 'tokenizer_path': '',
    'vocab_size': 400, 'document_separator': 'none', 'document_aware': False,
    'val_fraction': 0.1, 'cache_dir': '', **changes,
  })


def write(path, text):
  data = text if isinstance(text, bytes) else text.encode()
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)
  return str(path)


def read_all(path, separator='none'):
  """(pieces, stats) of the files that `path` names."""
  stats = text_reader.TextStats()
  found = sources.find_sources(path)
  return list(text_reader.iter_pieces(found, separator, stats)), stats


def read_text(path):
  pieces, stats = read_all(path)
  return ''.join(pieces), stats


def memory_source(*texts):
  items = tuple(
    sources.Source(f'text {i}', data=t if isinstance(t, bytes) else t.encode())
    for i, t in enumerate(texts)
  )
  return sources.Sources('files', items, 'a test')


def documents_of(separator, *texts):
  """Documents of in-memory texts: pieces joined between the Nones."""
  docs = ['']
  for piece in text_reader.iter_pieces(
    memory_source(*texts), separator, text_reader.TextStats()
  ):
    if piece is None:
      docs.append('')
    else:
      docs[-1] += piece
  return docs


def corpus_of(text, tmp_path, separator='none', aware=False, val_fraction=0.1,
              tokenizer=None):
  tokenizer = tokenizer or CharTokenizer(text)
  corpus = data.open_corpus(
    memory_source(text), tokenizer, tmp_path / 'cache', separator, aware,
    val_fraction, log=lambda line: None,
  )
  return tokenizer, corpus


# Sources


def test_files_globs_and_lists(tmp_path):
  for name in ('b.txt', 'a.txt', 'deep/c.txt', 'd.md'):
    write(tmp_path / 'texts' / name, name + '\n')
  base = tmp_path / 'texts'
  cases = [
    (f'{base}/a.txt', 'a.txt\n'),
    (f'{base}/b.txt, {base}/a.txt', 'b.txt\na.txt\n'),  # the order given
    (f'{base}/*.txt', 'a.txt\nb.txt\n'),
    ([f'{base}/d.md', f'{base}/*.txt'], 'd.md\na.txt\nb.txt\n'),
    ((f'{base}/a.txt', f'{base}/*.txt'), 'a.txt\nb.txt\n'),  # each once
    (f'{base}/**/*.txt', 'a.txt\nb.txt\ndeep/c.txt\n'),
  ]
  for path, expected in cases:
    assert read_text(path)[0] == expected


def test_file_names_with_glob_characters_are_files(tmp_path):
  path = write(tmp_path / 'notes [1].txt', 'x')
  assert read_text(path)[0] == 'x'


def test_files_are_joined_at_a_line_end(tmp_path):
  a, b = write(tmp_path / 'a', 'one'), write(tmp_path / 'b', 'two\n')
  c = write(tmp_path / 'c', 'three')
  assert read_text([a, b, c])[0] == 'one\ntwo\nthree'


@pytest.mark.parametrize(
  'path, message',
  [('missing.txt', 'does not exist'), ('*.nothing', 'matches no file'),
   ('.', 'is a directory'), ('', 'is empty'), ([], 'is empty')],
)
def test_missing_text_is_named_with_the_choices(path, message):
  with pytest.raises(UserError, match=message) as e:
    sources.find_sources(path)
  assert 'shakespeare' in str(e.value) and 'sample' in str(e.value)


def test_auto_prefers_train_txt_then_shakespeare_then_sample(
  tmp_path, monkeypatch
):
  found = sources.find_sources('auto')
  assert found.kind == 'sample'
  assert 'built-in sample' in found.description
  assert 'no train.txt' in found.description

  play = b'First Citizen:\n'
  monkeypatch.setattr(
    sources, 'SHAKESPEARE_SHA256', hashlib.sha256(play).hexdigest()
  )
  write(tmp_path / 'downloads/tinyshakespeare.txt', play)
  found = sources.find_sources('auto')
  assert (found.kind, read_text('auto')[0]) == ('shakespeare', play.decode())
  assert 'tinyshakespeare' in found.description

  write(tmp_path / 'cwd/train.txt', 'mine')
  found = sources.find_sources('auto')
  assert (found.kind, found.description) == ('files', 'train.txt')


def test_auto_keeps_the_text_a_run_began_with(tmp_path):
  workdir = tmp_path / 'run'
  data.prepare(config('auto'), workdir, log=lambda line: None)
  write(tmp_path / 'cwd/train.txt', TEXT)
  said = []
  _, corpus = data.prepare(config('auto'), workdir, log=said.append)
  assert 'built-in sample' in corpus.description
  assert 'another --workdir' in '\n'.join(said)
  _, corpus = data.prepare(config('auto'), tmp_path / 'new', log=said.append)
  assert corpus.description == 'train.txt'
  os.remove('train.txt')
  with pytest.raises(UserError, match='train.txt is not here'):
    data.prepare(config('auto'), tmp_path / 'new')


class Play(http.server.BaseHTTPRequestHandler):
  """Serves `body` and counts the requests."""

  body, requests = b'', 0

  def do_GET(self):
    type(self).requests += 1
    self.send_response(200)
    self.send_header('Content-Length', str(len(self.body)))
    self.end_headers()
    self.wfile.write(self.body)

  def log_message(self, *args):
    pass


@pytest.fixture
def shared_shakespeare(request):
  """Bytes of tinyshakespeare from ../shared/data beside the repository."""
  path = request.config.rootpath.parent / 'shared/data/tinyshakespeare.txt'
  if not path.exists():
    pytest.skip('no ../shared/data/tinyshakespeare.txt')
  return path.read_bytes()


@pytest.fixture
def play_server(monkeypatch):
  """A local server of a short play whose sha256 is the pinned one."""

  class Handler(Play):
    body = b'First Citizen:\nBefore we proceed any further, hear me speak.\n'

  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  thread = threading.Thread(target=server.serve_forever, args=(0.01,))
  thread.start()
  monkeypatch.setenv(
    'RGPT_SHAKESPEARE_URL', f'http://127.0.0.1:{server.server_port}/input.txt'
  )
  monkeypatch.setattr(
    sources, 'SHAKESPEARE_SHA256', hashlib.sha256(Handler.body).hexdigest()
  )
  yield Handler
  server.shutdown()
  thread.join()
  server.server_close()


def test_shakespeare_is_downloaded_once(play_server, tmp_path):
  expected = play_server.body.decode()
  assert 'downloaded to' in sources.find_sources('shakespeare').description
  assert read_text('shakespeare')[0] == expected
  assert read_text('auto')[0] == expected
  assert play_server.requests == 1
  # A damaged copy is not used, but fetched again.
  write(tmp_path / 'downloads/tinyshakespeare.txt', 'First Citizen: Bah.')
  assert read_text('shakespeare')[0] == expected
  assert play_server.requests == 2


def test_shakespeare_with_the_wrong_sha256_is_not_used(play_server, tmp_path):
  play_server.body = b'not the play'
  with pytest.raises(UserError, match='wrong sha256'):
    sources.find_sources('shakespeare')
  assert not (tmp_path / 'downloads').exists()
  assert sources.find_sources('auto').kind == 'sample'


def test_shakespeare_offline_names_the_ways_out():
  with pytest.raises(UserError, match='cannot be downloaded') as e:
    sources.find_sources('shakespeare')
  for way in ('RGPT_DATA', 'tinyshakespeare.txt', 'data.path', 'sample'):
    assert way in str(e.value)


def test_shakespeare_from_a_directory_of_data(play_server, tmp_path,
                                              monkeypatch):
  write(tmp_path / 'data/tinyshakespeare.txt', play_server.body)
  monkeypatch.setenv('RGPT_DATA', str(tmp_path / 'data'))
  assert read_text('shakespeare')[0] == play_server.body.decode()
  assert play_server.requests == 0


def test_shakespeare_without_a_place_to_keep_it(play_server, tmp_path,
                                                monkeypatch):
  write(tmp_path / 'file', '')
  monkeypatch.setenv('RGPT_CACHE', str(tmp_path / 'file/downloads'))
  found = sources.find_sources('shakespeare')
  assert 'not cached' in found.description
  assert found.items[0].open().read() == play_server.body


def test_pinned_shakespeare_is_the_one_we_have(shared_shakespeare):
  digest = hashlib.sha256(shared_shakespeare).hexdigest()
  assert digest == sources.SHAKESPEARE_SHA256
  tokenizer = build_tokenizer('char', [shared_shakespeare.decode()], 0)
  assert tokenizer.vocab_size == 67


# Reading


def test_repairs_are_made_and_counted(tmp_path):
  raw = (b'\xef\xbb\xbfone\r\ntwo\rthree\r\n\xff\xfe caf\xc3\xa9 '
         b'\xef\xbf\xbd \xe2\x82')
  text, stats = read_text(write(tmp_path / 'a', raw))
  assert text == 'one\ntwo\rthree\n\ufffd\ufffd caf\u00e9 \ufffd \ufffd'
  assert dataclasses.astuple(stats)[:4] == (len(raw), 2, 1, 3)
  said = stats.repairs()
  assert '2 CRLF' in said and '3 invalid' in said and 'byte-order' in said
  assert text_reader.TextStats(bytes=5).repairs() == ''


def test_utf16_is_refused_with_the_remedy(tmp_path):
  path = write(tmp_path / 'a.txt', 'hello'.encode('utf-16'))
  with pytest.raises(UserError, match='iconv'):
    read_text(path)


@relaxed
@given(
  raw=st.lists(
    st.sampled_from([b'a', b'\r', b'\n', b'\r\n', b'\xc3\xa9', b'\xff',
                     b'\xef\xbf\xbd', b'\xf0\x9f\x99\x82', b'\xe2', b'\x82',
                     b'\xef\xbb\xbf', b'<|eos|>', b'<|', b' ']),
    max_size=40,
  ).map(b''.join),
  size=st.integers(1, 7),
)
def test_reading_does_not_depend_on_the_block_size(raw, size):
  if raw[:2] in (b'\xff\xfe', b'\xfe\xff'):
    return
  expected = raw.decode('utf-8', 'replace').removeprefix('\ufeff')
  expected = expected.replace('\r\n', '\n')
  genuine = raw.count(b'\xef\xbf\xbd')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(text_reader, 'READ_BYTES', size)
    stats = text_reader.TextStats()
    source = sources.Source('x', data=raw)
    chunks = list(text_reader.iter_text(source, stats))
    blocks = list(text_reader.iter_blocks(chunks))
  assert ''.join(chunks) == ''.join(blocks) == expected
  assert stats.bytes == len(raw)
  assert stats.invalid_utf8 == expected.count('\ufffd') - genuine
  assert all(block.endswith('\n') for block in blocks[:-1])


# Documents


def test_literal_eos_ends_documents():
  docs = documents_of('<|eos|>', 'one\n<|eos|>\ntwo<|eos|>three', 'four')
  assert docs == ['one\n', '\ntwo', 'three', 'four']
  assert documents_of('<|eos|>', 'one<|eos|>', 'two') == ['one', 'two']
  assert documents_of('<|end|>', 'a<|end|>b<|eos|>') == ['a', 'b<|eos|>']


def test_blank_lines_end_documents():
  text = '\n \none\nmore\n\n\t\n\ntwo\n   three\n\n'
  assert documents_of('blank_line', text) == ['one\nmore\n', 'two\n   three\n']
  assert documents_of('blank_line', 'a\n\n', '\nb\n\nc') == ['a\n', 'b\n', 'c']


def test_without_separator_there_is_one_document():
  assert documents_of('none', 'a<|eos|>b\n\nc') == ['a<|eos|>b\n\nc']


@relaxed
@given(
  docs=st.lists(st.text(st.sampled_from('ab<|>eos\n '), max_size=12)),
  size=st.integers(1, 9),
  longest=st.integers(8, 20),
)
def test_documents_do_not_depend_on_block_sizes(docs, size, longest):
  text = EOS.join(docs)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(text_reader, 'READ_BYTES', size)
    patch.setattr(text_reader, 'MAX_LINE_CHARS', longest)
    assert documents_of(EOS, text) == text.split(EOS)


def test_long_lines_are_read_in_pieces():
  n = 2 * text_reader.MAX_LINE_CHARS + 5
  source = memory_source('x' * n + '\n')
  pieces = list(text_reader.iter_pieces(source, 'none',
                                        text_reader.TextStats()))
  assert ''.join(pieces) == 'x' * n + '\n'
  limit = text_reader.MAX_LINE_CHARS + text_reader.READ_BYTES
  assert max(map(len, pieces)) <= limit


@pytest.mark.parametrize('separator', ['blank', '', 'eos', '<a b>'])
def test_unknown_separator_lists_the_choices(separator):
  with pytest.raises(UserError, match='none, blank_line'):
    documents_of(separator, 'text')


@pytest.mark.parametrize('kind', ['char', 'sentencepiece'])
def test_literal_eos_becomes_the_eos_id_only_as_separator(kind, tmp_path):
  text = TEXT + '<|eos|>' + TEXT + '<|eos|>' + TEXT
  tokenizer = build_tokenizer(kind, [text], 400)
  assert tokenizer.eos_id not in tokenizer.encode(text)  # a user's text
  _, plain = corpus_of(text, tmp_path, 'none', tokenizer=tokenizer)
  assert tokenizer.eos_id not in plain.tokens
  _, split = corpus_of(text, tmp_path, EOS, tokenizer=tokenizer)
  part = tokenizer.encode(TEXT).tolist()
  eos = [tokenizer.eos_id]
  assert split.tokens.tolist() == part + eos + part + eos + part
  n = len(part) + 1
  assert split.doc_starts.tolist() == [0, n, 2 * n]
  assert split.doc_starts.dtype == np.int64


def test_vocabulary_does_not_contain_the_separator(tmp_path):
  path = write(tmp_path / 'a.txt', 'abc<|eos|>cab' * 50)
  said = []
  tokenizer, corpus = data.prepare(
    config(path, document_separator=EOS), tmp_path / 'run', log=said.append
  )
  assert tokenizer.chars == ['a', 'b', 'c']
  assert (corpus.tokens == tokenizer.eos_id).sum() == 50
  assert not corpus.info.unknown


# Encoding and its cache


@pytest.mark.parametrize('kind', ['char', 'sentencepiece', 'randygpt'])
def test_streamed_corpus_equals_encoding_at_once(kind, tmp_path, monkeypatch):
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
  side, = (tmp_path / 'cache').glob('tokens-*.json')
  flat = np.fromfile(side.with_suffix('.bin'), '<u2')
  assert flat.tolist() == tokenizer.encode(TEXT).tolist()
  meta = json.loads(side.read_text())
  assert meta['dtype'] == '<u2' and meta['n_tokens'] == len(flat)
  assert not list((tmp_path / 'cache').glob('.*'))  # no temporary files


def test_large_vocabularies_need_four_bytes():
  assert token_cache.token_dtype(65_536) == np.dtype('<u2')
  assert token_cache.token_dtype(65_537) == np.dtype('<u4')


class CountingTokenizer(CharTokenizer):
  """Counts encoded characters, to see whether the cache was used."""

  encoded = 0

  def encode(self, text):
    type(self).encoded += len(text)
    return super().encode(text)


@pytest.fixture
def counting():
  class Fresh(CountingTokenizer):
    pass

  return Fresh


def test_cache_is_used_and_stale_ones_never(tmp_path, counting):
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
  assert encoded(text.replace('a', 'b'), abc), 'another text'
  assert encoded(text, abcd), 'another vocabulary'
  assert encoded(text, abc, EOS), 'another mode'
  assert not encoded(text, abc), 'the first is still there'


def test_order_and_borders_of_files_are_part_of_the_fingerprint():
  texts = [('ab', 'c'), ('a', 'bc'), ('c', 'ab'), ('abc',), ('ab', 'c', '')]
  assert len({memory_source(*t).sha256() for t in texts}) == len(texts)


@pytest.mark.parametrize('damage', ['cut', 'longer', 'bits', 'side', 'no side',
                                    'no tokens', 'other fingerprint'])
def test_damaged_cache_is_rebuilt(damage, tmp_path):
  _, corpus = corpus_of(TEXT, tmp_path)
  expected = corpus.tokens.tolist()
  side, = (tmp_path / 'cache').glob('tokens-*.json')
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


def test_failure_while_encoding_leaves_nothing(tmp_path):
  class Broken(CharTokenizer):
    def encode(self, text):
      raise MemoryError

  with pytest.raises(MemoryError):
    corpus_of(TEXT, tmp_path, tokenizer=Broken(TEXT))
  assert list((tmp_path / 'cache').iterdir()) == []


def test_full_disk_is_said(tmp_path, monkeypatch):
  def no_space(fd):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', no_space)
  with pytest.raises(UserError, match='No space left.*cache_dir'):
    corpus_of(TEXT, tmp_path)
  assert list((tmp_path / 'cache').iterdir()) == []


def test_text_that_changes_while_it_is_read_is_refused(tmp_path):
  path = write(tmp_path / 'log.txt', TEXT)

  class Slow(CharTokenizer):
    def encode(self, text):
      with open(path, 'a') as f:
        f.write('a')
      return super().encode(text)

  with pytest.raises(UserError, match='changed while'):
    data.open_corpus(sources.find_sources(path), Slow(TEXT), tmp_path / 'c')
  assert not list((tmp_path / 'c').glob('*.json'))


MEASURE = """
import json, re, sys, types
from gpt import data
config = types.SimpleNamespace(**json.loads(sys.argv[1]))
tokenizer, corpus = data.prepare(config, sys.argv[2], log=lambda line: None)
ds = data.TextDataset(corpus, 256, 64, 0, tokenizer)
for step in range(20):
  ds.batch_at(step)
# Not ru_maxrss: that begins with what the parent had when it forked.
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
  args = vars(config(str(tmp_path / 'big.txt'), tokenizer=kind,
                     vocab_size=2000))
  done = subprocess.run(
    [sys.executable, '-c', MEASURE, json.dumps(args), str(tmp_path / 'run')],
    cwd=ROOT, capture_output=True, text=True, check=True,
  )
  assert float(done.stdout) < 250


def test_many_at_once_make_the_same_cache(tmp_path):
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


def test_a_workdir_keeps_one_token_file_a_shared_cache_all(tmp_path):
  def count(cache_dir, text):
    path = write(tmp_path / 'a.txt', text)
    data.prepare(config(path, cache_dir=cache_dir), tmp_path / 'run',
                 log=lambda line: None)
    return len(list((tmp_path / (cache_dir or 'run/cache')).glob('*.bin')))

  shared = str(tmp_path / 'shared')
  assert [count('', TEXT), count('', TEXT * 2)] == [1, 1]
  assert [count(shared, TEXT), count(shared, TEXT * 2)] == [1, 2]


# prepare


def test_prepare_says_what_it_uses(tmp_path):
  path = write(tmp_path / 'mine.txt', TEXT.replace('\n', '\r\n'))
  said = []
  data.prepare(config(path), tmp_path / 'run', log=said.append)
  text = '\n'.join(said)
  assert 'mine.txt' in text and 'CRLF' in text and 'char' in text


def test_tokenizer_of_a_workdir_is_kept(tmp_path):
  path = write(tmp_path / 'a.txt', TEXT)
  args = config(path, tokenizer='sentencepiece'), tmp_path / 'run'
  first, _ = data.prepare(*args, log=lambda line: None)
  write(tmp_path / 'a.txt', TEXT[5000:] + 'new words\u00e9 ' * 500)
  said = []
  again, corpus = data.prepare(*args, log=said.append)
  assert again.fingerprint == first.fingerprint
  assert corpus.tokens.tolist() == first.encode(
    TEXT[5000:] + 'new words\u00e9 ' * 500).tolist()
  assert 'the text has changed' in '\n'.join(said)


def test_unknown_characters_of_new_text_are_reported(tmp_path):
  path = write(tmp_path / 'a.txt', TEXT)
  data.prepare(config(path), tmp_path / 'run', log=lambda line: None)
  write(tmp_path / 'a.txt', TEXT + '\u00e9\u00e9\u00df')
  for _ in range(2):  # encoded, then from the cache
    said = []
    data.prepare(config(path), tmp_path / 'run', log=said.append)
    assert 'dropped 3 characters' in '\n'.join(said)
    assert "'\u00e9' x2" in '\n'.join(said)


@pytest.mark.parametrize(
  'changes, message',
  [({'tokenizer': 'char'}, 'set --config.data.tokenizer=sentencepiece'),
   ({'vocab_size': 500}, r'vocab_size=400, now it is 500'),
   ({'tokenizer_path': 'other'}, 'not the one given')],
)
def test_another_tokenizer_in_a_workdir_is_refused(changes, message, tmp_path):
  args = {'path': 'sample', 'tokenizer': 'sentencepiece'}
  data.prepare(config(**args), tmp_path / 'run', log=lambda line: None)
  build_tokenizer('sentencepiece', ['other\n' * 9], 300).save('other')
  with pytest.raises(UserError, match=message):
    data.prepare(config(**{**args, **changes}), tmp_path / 'run')


def test_missing_control_tokens_of_a_saved_tokenizer_are_named(tmp_path):
  data.prepare(config(), tmp_path / 'run', log=lambda line: None)
  with pytest.raises(UserError, match=r'has no <\|user\|>'):
    data.prepare(config(), tmp_path / 'run', special_tokens=['<|user|>'])


def test_tokenizer_path_is_used_and_resumes(tmp_path):
  tokenizer = build_tokenizer('sentencepiece', [TEXT], 350)
  tokenizer.save('elsewhere')
  args = config(tokenizer='sentencepiece', tokenizer_path='elsewhere',
                vocab_size=999), tmp_path / 'run'
  for _ in range(2):
    used, _ = data.prepare(*args, log=lambda line: None)
    assert used.fingerprint == tokenizer.fingerprint
  saved = load_tokenizer(tmp_path / 'run')
  assert saved.fingerprint == tokenizer.fingerprint


def test_tokenizer_path_of_another_kind_is_refused(tmp_path):
  CharTokenizer('abc').save('chars')
  with pytest.raises(UserError, match='--config.data.tokenizer=char'):
    data.prepare(config(tokenizer='sentencepiece', tokenizer_path='chars'),
                 tmp_path / 'run')


def test_empty_text_is_an_error(tmp_path):
  with pytest.raises(UserError, match='is empty: .*a.txt'):
    data.prepare(config(write(tmp_path / 'a.txt', '')), tmp_path / 'run')


@pytest.mark.parametrize('fraction', [-0.1, 1.5])
def test_impossible_val_fraction_is_an_error(fraction, tmp_path):
  with pytest.raises(UserError, match='between 0 and 1'):
    data.prepare(config(val_fraction=fraction), tmp_path / 'run',
                 log=lambda line: None)


# Batches


@pytest.fixture(scope='module')
def stream(tmp_path_factory):
  tokenizer, corpus = corpus_of(TEXT, tmp_path_factory.mktemp('stream'))
  return data.TextDataset(corpus, 32, 8, 7, tokenizer)


@pytest.fixture(scope='module')
def aware(tmp_path_factory):
  """Documents of very different lengths, some shorter than a window."""
  lengths = [1, 2, 300, 31, 32, 33, 5, 64, 150, 3, 90, 40, 17, 200, 8, 60]
  docs, at = [], 0
  for n in lengths:
    docs.append(TEXT[at : at + n].replace('<', '('))
    at += n
  text = EOS.join(docs)
  tokenizer, corpus = corpus_of(
    text, tmp_path_factory.mktemp('aware'), EOS, True, 0.3, CharTokenizer(TEXT)
  )
  return data.TextDataset(corpus, 32, 8, 7, tokenizer, document_aware=True)


@pytest.fixture(params=['stream', 'aware'])
def any_dataset(request):
  return request.getfixturevalue(request.param)


def same(a, b):
  return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_batch_shapes_and_types(any_dataset):
  batch = any_dataset.batch_at(0)
  assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
    'tokens': ((8, 33), np.int32),
    'weights': ((8, 32), np.float32),
    'rows': ((8,), np.int32),
  }
  assert batch['rows'].tolist() == list(range(8))


def test_batches_are_pure_functions_of_seed_and_step(any_dataset, stream):
  steps = [0, 1, 5, 10**9]
  first = [any_dataset.batch_at(s) for s in steps]
  fresh = data.TextDataset(
    any_dataset.corpus, 32, 8, 7, CharTokenizer(TEXT),
    any_dataset.document_aware,
  )
  for step, batch in reversed(list(zip(steps, first))):
    assert same(fresh.batch_at(step), batch)
  assert not same(first[0], first[1])
  other = data.TextDataset(stream.corpus, 32, 8, 8, CharTokenizer(TEXT))
  assert not same(other.batch_at(0), stream.batch_at(0))


# What the first runs drew.
DRAWN = [0.7122142960324449, 0.07050661802753055, 0.3939777489962194]


def test_random_numbers_are_fixed_for_good():
  # Resuming under another numpy must find the same data order.
  drawn = dataset.random_uniform(42, 3, dataset.TRAIN_STREAM, 3)
  assert drawn.tolist() == DRAWN
  assert dataset.random_uniform(-1, 3, 1, 3).max() < 1


@relaxed
@given(step=st.integers(0, 2**40), start=st.integers(0, 8),
       stop=st.integers(0, 8))
def test_rows_of_a_batch_equal_slices_of_it(stream, aware, step, start, stop):
  for ds in (stream, aware):
    whole, part = ds.batch_at(step), ds.batch_at(step, slice(start, stop))
    assert same(part, {k: v[start:stop] for k, v in whole.items()})


def test_windows_are_runs_of_the_training_text(stream):
  tokens = stream.corpus.tokens
  for step in range(20):
    batch = stream.batch_at(step)
    assert batch['weights'].all()
    starts = stream.window_starts(step)
    for row, start in zip(batch['tokens'], starts):
      assert 0 <= start and start + 33 <= stream.corpus.n_train
      assert np.array_equal(row, tokens[start : start + 33])


def test_every_training_window_can_be_drawn(tmp_path):
  tokenizer, corpus = corpus_of('abcdefghijklmnopqrst', tmp_path,
                                val_fraction=0.5)
  ds = data.TextDataset(corpus, 4, 64, 0, tokenizer)
  drawn = {int(s) for step in range(5) for s in ds.window_starts(step)}
  assert drawn == set(range(10 - 4))


def test_split_is_the_first_90_percent(tmp_path):
  _, corpus = corpus_of(TEXT[:1115], tmp_path)
  assert corpus.n_train == int(1115 * 0.9) == 1003
  assert corpus.n_train + corpus.n_val == 1115


def eval_targets(ds, split, windows=None, batch_size=8):
  """[(token, weight)] of all targets, and the batches."""
  batches = list(ds.eval_batches(split, windows, batch_size))
  tokens = np.concatenate([b['tokens'][:, 1:].ravel() for b in batches])
  weights = np.concatenate([b['weights'].ravel() for b in batches])
  return tokens[weights > 0], batches


@pytest.mark.parametrize('split', ['train', 'val', 'all'])
@pytest.mark.parametrize('batch_size', [1, 5, 8])
def test_full_pass_has_every_target_once_in_order(any_dataset, split,
                                                  batch_size):
  targets, batches = eval_targets(any_dataset, split, None, batch_size)
  first, end = any_dataset.corpus.bounds(split)
  first += not any_dataset.document_aware  # without BOS nothing precedes it
  expected = any_dataset.corpus.tokens[first:end]
  assert targets.tolist() == expected.tolist()
  assert all(b['tokens'].shape == (batch_size, 33) for b in batches)
  assert all(b['weights'].any() for b in batches)


def test_full_pass_continues_where_the_window_before_ended(stream):
  _, batches = eval_targets(stream, 'val')
  rows = np.concatenate([b['tokens'] for b in batches])
  assert np.array_equal(rows[:-9, -1], rows[1:-8, 0])


@pytest.mark.parametrize('n, rows', [(33, 1), (34, 2), (64, 2), (65, 2)])
def test_full_pass_has_no_empty_windows(n, rows, tmp_path):
  tokenizer, corpus = corpus_of(TEXT[:n], tmp_path, val_fraction=1)
  ds = data.TextDataset(corpus, 32, 4, 0, tokenizer, splits=('all',))
  batch, = ds.eval_batches('all')
  assert batch['weights'].any(axis=1).sum() == rows
  assert len(list(ds.eval_batches('all', batch_size=1))) == rows


def test_quick_eval_is_a_fixed_set_of_windows(any_dataset):
  other = data.TextDataset(
    any_dataset.corpus, 32, 3, 99, CharTokenizer(TEXT),
    any_dataset.document_aware,
  )
  _, batches = eval_targets(any_dataset, 'val', 10, 4)
  _, again = eval_targets(other, 'val', 10, 4)  # another seed and batch size
  assert all(same(a, b) for a, b in zip(batches, again, strict=True))
  filled = [int(b['weights'].any(axis=1).sum()) for b in batches]
  assert filled == [4, 4, 2]
  _, train = eval_targets(any_dataset, 'train', 10, 4)
  assert not same(train[0], batches[0])


def test_aware_windows_stay_inside_documents(aware):
  corpus, starts = aware.corpus, aware.corpus.doc_starts.tolist()
  docs = [corpus.tokens[a:b].tolist()
          for a, b in zip(starts, [*starts[1:], len(corpus.tokens)])]
  bos = 0
  whole = [' '.join(map(str, ['', bos, *doc])) + ' ' for doc in docs]
  for step in range(30):
    batch = aware.batch_at(step)
    for row, weights in zip(batch['tokens'], batch['weights']):
      n = int(weights.sum())
      assert weights.tolist() == [1] * n + [0] * (32 - n)
      text = ' '.join(map(str, ['', *row[: n + 1]])) + ' '
      assert any(text in doc for doc in whole)
      assert n == 32 or text in whole  # shorter only if the document is


def test_aware_targets_are_drawn_about_equally_often(aware):
  starts, ends, _ = aware._documents('train')
  counts = np.zeros(aware.corpus.n_train)
  n_windows = 0
  for step in range(1000):
    for start, end, bos in aware._choose('train', aware._draws(step)):
      counts[start + (not bos) : min(start + 33 - bos, end)] += 1
      n_windows += 1
  # Expected: 32 to 63 of all positions; five sigma of the rarest.
  positions = (ends - starts + 31).sum()
  expected = n_windows * 32 / positions
  slack = 5 * expected**0.5
  assert expected - slack < counts.min()
  assert counts.max() < 2 * expected + 5 * (2 * expected) ** 0.5


def test_aware_split_falls_between_documents(aware):
  assert aware.corpus.n_train in aware.corpus.doc_starts


def test_aware_works_without_separators(tmp_path):
  tokenizer, corpus = corpus_of(TEXT, tmp_path, aware=True)
  ds = data.TextDataset(corpus, 32, 4, 0, tokenizer, document_aware=True)
  assert corpus.n_train == int(len(TEXT) * 0.9)
  assert len(eval_targets(ds, 'val')[0]) == corpus.n_val


def test_bytes_of_tokens(tmp_path):
  text = 'ab\u00e9\U0001f642' * 50
  tokenizer, corpus = corpus_of(text, tmp_path)
  ds = data.TextDataset(corpus, 8, 2, 0, tokenizer)
  assert ds.bytes_V.tolist() == [0, 0, 1, 1, 2, 4]
  assert ds.bytes_V.dtype == np.int32
  assert ds.bytes_V[corpus.tokens].sum() == len(text.encode())


@pytest.mark.parametrize('n, ok', [(329, True), (320, False), (30, False)])
def test_text_too_short_names_both_lengths(n, ok, tmp_path):
  tokenizer, corpus = corpus_of(TEXT[:n], tmp_path)
  args = corpus, 32, 4, 0, tokenizer
  if ok:
    data.TextDataset(*args)
    return
  with pytest.raises(UserError, match='too short') as e:
    data.TextDataset(*args)
  message = str(e.value)
  assert f'{corpus.n_train:,} train' in message
  assert f'{corpus.n_val:,} val' in message
  assert 'block_size=32' in message and '33 in each' in message


def test_a_whole_text_can_be_one_split(tmp_path):
  tokenizer, corpus = corpus_of(TEXT[:100], tmp_path, val_fraction=1)
  ds = data.TextDataset(corpus, 32, 4, 0, tokenizer, splits=('all',))
  assert len(eval_targets(ds, 'all')[0]) == 99
  with pytest.raises(UserError, match='train, val, all'):
    next(iter(ds.eval_batches('test')))
