"""data.path finds its text; tinyshakespeare is downloaded once."""

import hashlib
import http.server
import os
import pathlib
import threading

import pytest

from gpt.data import prepare, sources
from gpt.errors import UserError
from gpt.tokenizers import build_tokenizer
from tests.support import data_tools
from tests.support.data_tools import TEXT, data_config, read_text, write
from tests.support.logs import log_lines

isolated = data_tools.isolated  # Used by every test.


def test_files_globs_and_lists_are_read_in_order(tmp_path):
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
  [
    ('missing.txt', 'does not exist'),
    ('*.nothing', 'matches no file'),
    ('.', 'is a directory without files named'),
    ('', 'is empty'),
    ([], 'is empty'),
  ],
)
def test_a_missing_text_error_lists_the_choices(path, message):
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


def test_auto_keeps_the_text_of_the_run(tmp_path):
  workdir = tmp_path / 'run'
  prepare.prepare(data_config('auto'), workdir)
  write(tmp_path / 'cwd/train.txt', TEXT)
  with log_lines() as lines:
    _, corpus = prepare.prepare(data_config('auto'), workdir, begun=True)
  assert 'built-in sample' in corpus.description
  assert 'another --workdir' in '\n'.join(lines)
  _, corpus = prepare.prepare(data_config('auto'), tmp_path / 'new')
  assert corpus.description == 'train.txt'
  os.remove('train.txt')
  with pytest.raises(UserError, match='has no train.txt'):
    prepare.prepare(data_config('auto'), tmp_path / 'new', begun=True)


class Play(http.server.BaseHTTPRequestHandler):
  """Serves `body` and counts requests."""

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
  """Bytes of ../shared/data/tinyshakespeare.txt, beside the repository."""
  path = request.config.rootpath.parent / 'shared/data/tinyshakespeare.txt'
  if not path.exists():
    pytest.skip('no ../shared/data/tinyshakespeare.txt')
  return path.read_bytes()


@pytest.fixture
def play_server(monkeypatch):
  """A local server of a short play whose SHA-256 is the pinned one."""

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
  # A damaged copy is replaced by a new download.
  write(tmp_path / 'downloads/tinyshakespeare.txt', 'First Citizen: Bah.')
  assert read_text('shakespeare')[0] == expected
  assert play_server.requests == 2


def test_a_download_with_the_wrong_sha256_is_rejected(play_server, tmp_path):
  play_server.body = b'not the play'
  with pytest.raises(UserError, match='wrong sha256'):
    sources.find_sources('shakespeare')
  assert not (tmp_path / 'downloads').exists()
  assert sources.find_sources('auto').kind == 'sample'


def test_shakespeare_without_a_network_lists_alternatives():
  with pytest.raises(UserError, match='cannot be downloaded') as e:
    sources.find_sources('shakespeare')
  for alternative in (
    'RGPT_DATA',
    'tinyshakespeare.txt',
    'data.path',
    'sample',
  ):
    assert alternative in str(e.value)


def test_shakespeare_is_read_from_rgpt_data(play_server, tmp_path, monkeypatch):
  write(tmp_path / 'data/tinyshakespeare.txt', play_server.body)
  monkeypatch.setenv('RGPT_DATA', str(tmp_path / 'data'))
  assert read_text('shakespeare')[0] == play_server.body.decode()
  assert play_server.requests == 0


def test_rgpt_cache_off_does_not_move_downloads(monkeypatch):
  monkeypatch.setenv('RGPT_CACHE', 'off')
  assert sources.cache_home() == pathlib.Path.home() / '.cache/rgpt'


def test_shakespeare_works_without_a_writable_cache(
  play_server, tmp_path, monkeypatch
):
  write(tmp_path / 'file', '')
  monkeypatch.setenv('RGPT_CACHE', str(tmp_path / 'file/downloads'))
  found = sources.find_sources('shakespeare')
  assert 'not cached' in found.description
  assert found.items[0].open().read() == play_server.body


def test_the_pinned_hash_is_that_of_tinyshakespeare(shared_shakespeare):
  digest = hashlib.sha256(shared_shakespeare).hexdigest()
  assert digest == sources.SHAKESPEARE_SHA256
  tokenizer = build_tokenizer('char', [shared_shakespeare.decode()], 0)
  assert tokenizer.vocab_size == 67
