"""Downloads from the hub, against a hub of our own on this machine."""

import os
import signal
import subprocess
import sys

import pytest

from gpt.errors import UserError
from gpt.formats import hub
from tests.support.fake_hub import FakeHub
from tests.support.workdirs import ROOT, STRICT

constants = pytest.importorskip(
  'huggingface_hub.constants', reason='extra hf is needed'
)

WEIGHTS = bytes(range(256)) * 4096  # 1 MiB
FILES = {
  'README.md': b'a card',
  'config.json': b'{}',
  'tokenizer.json': b'{"version": "1.0"}',
  'model.safetensors': WEIGHTS,
  'pytorch_model.bin': b'a pickle',
  'onnx/model.onnx': b'something else',
}
PIECE = 1 << 16  # huggingface_hub writes what it receives in pieces of 10 MiB.
NEEDED = {'config.json', 'tokenizer.json', 'model.safetensors'}


@pytest.fixture(scope='module')
def running():
  with FakeHub() as server:
    yield server


@pytest.fixture
def server(running, monkeypatch, tmp_path):
  """A hub with one model, ann/tiny, and an empty cache."""
  running.reset()
  running.use(monkeypatch, tmp_path / 'home')
  monkeypatch.setattr(constants, 'DOWNLOAD_CHUNK_SIZE', PIECE)
  running.add('ann/tiny', FILES, license='apache-2.0')
  return running


def files_of(path):
  return {
    p.relative_to(path).as_posix() for p in path.rglob('*') if p.is_file()
  }


PROGRAM = """
import resource, sys
from huggingface_hub import constants
from gpt import logs
from gpt.errors import UserError
from gpt.formats import hub

constants.DOWNLOAD_CHUNK_SIZE = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, 2 * (int(sys.argv[3]),))
logs.to_console('stderr')
try:
  print(hub.download(sys.argv[1]))
except UserError as e:
  sys.exit(f'error: {e}')
assert 'jax' not in sys.modules
"""


def start(server, home, what, limit=-1, **env):
  """A process that downloads `what` and prints the path.

  Args:
    limit: bytes of a file at which the disk is full.
  """
  return subprocess.Popen(
    [sys.executable, *STRICT, '-c', PROGRAM, what, str(PIECE), str(limit)],
    cwd=ROOT,
    env={**os.environ, **server.env(home), **env},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_only_what_a_model_needs_is_downloaded(server):
  path = hub.download('hf://ann/tiny')
  assert files_of(path) == NEEDED
  assert (path / 'model.safetensors').read_bytes() == WEIGHTS
  gets = server.paths('GET')
  assert not [p for p in gets if p.endswith(('.bin', '.onnx', '.md'))]


def test_a_second_download_transfers_nothing(server):
  first = hub.download('hf://ann/tiny')
  server.asked.clear()
  assert hub.download('hf://ann/tiny') == first
  assert not [path for path in server.paths('GET') if '/resolve/' in path]


def test_a_new_commit_is_fetched_and_a_revision_is_kept(server):
  old = server.repos['ann/tiny'].find('main')
  server.add('ann/tiny', {**FILES, 'config.json': b'{"new": 1}'})
  new = hub.download('hf://ann/tiny')
  assert (new / 'config.json').read_bytes() == b'{"new": 1}'
  before = hub.download(f'hf://ann/tiny@{old}')
  assert (before / 'config.json').read_bytes() == b'{}'
  # The weights are the same: they are neither kept nor fetched twice.
  gets = [p for p in server.paths('GET') if p.endswith('model.safetensors')]
  assert len(gets) == 1


def test_a_broken_connection_is_resumed(server):
  server.break_after, server.breaks = 5 * PIECE, 1
  path = hub.download('hf://ann/tiny')
  assert (path / 'model.safetensors').read_bytes() == WEIGHTS
  ranges = [r for m, p, r in server.asked if m == 'GET' and r]
  assert ranges == [f'bytes={5 * PIECE}-']


def test_a_killed_download_is_resumed(server, tmp_path):
  home = tmp_path / 'home'
  server.stall_after = 10 * PIECE
  process = start(server, home, 'hf://ann/tiny')
  assert server.stalled.wait(60)
  partial = next((home / 'hub').rglob('*.rgpt-incomplete'))
  while partial.stat().st_size < 9 * PIECE:
    assert process.poll() is None
  process.send_signal(signal.SIGKILL)
  process.communicate()
  server.stall_after = 0
  server.proceed.set()
  assert not list((home / 'hub').rglob('snapshots/*/model.safetensors'))
  kept = partial.stat().st_size
  server.asked.clear()
  path = hub.download('hf://ann/tiny')
  assert (path / 'model.safetensors').read_bytes() == WEIGHTS
  assert f'bytes={kept}-' in [r for _, _, r in server.asked]
  assert not list((home / 'hub').rglob('*.rgpt-incomplete'))


def test_damaged_bytes_are_not_kept(server, tmp_path):
  blobs = tmp_path / 'home/hub/models--ann--tiny/blobs'
  blobs.mkdir(parents=True)
  found = hub.listing(hub.parse('hf://ann/tiny'))
  digest = found.sha256['model.safetensors']
  (blobs / f'{digest}.rgpt-incomplete').write_bytes(b'wrong' * 100)
  with pytest.raises(UserError, match='model.safetensors arrived damaged'):
    hub.download('hf://ann/tiny')
  path = hub.download('hf://ann/tiny')
  assert (path / 'model.safetensors').read_bytes() == WEIGHTS


def test_offline_the_cache_is_used(server, monkeypatch, caplog):
  online = hub.download('hf://ann/tiny')
  server.asked.clear()
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  assert hub.download('hf://ann/tiny') == online
  assert not server.asked and not caplog.records
  message = 'ann/none is not in the cache, and HF_HUB_OFFLINE forbids'
  with pytest.raises(UserError, match=message):
    hub.download('hf://ann/none')


def test_without_a_network_the_cache_is_used_with_a_warning(
  server, monkeypatch, caplog
):
  online = hub.download('hf://ann/tiny')
  monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
  assert hub.download('hf://ann/tiny') == online
  assert 'no connection' in caplog.text and 'in the cache' in caplog.text


def test_a_partial_snapshot_is_no_model(server, monkeypatch):
  path = hub.download('hf://ann/tiny')
  (path / 'model.safetensors').unlink()
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  with pytest.raises(UserError, match='not in the cache'):
    hub.download('hf://ann/tiny')


def test_sharded_weights_come_with_their_index(server):
  shards = {f'model-0000{i}-of-00002.safetensors': b'x' * i for i in (1, 2)}
  files = {'config.json': b'{}', hub.INDEX: b'{}', **shards}
  server.add('ann/big', files | {'other.safetensors': b'y'})
  assert files_of(hub.download('hf://ann/big')) == set(files)
  del files['model-00001-of-00002.safetensors']
  server.add('ann/big', files)
  with pytest.raises(UserError, match='lacks some of the files'):
    hub.download('hf://ann/big')


def test_the_only_gguf_is_taken_and_of_several_one_is_named(server):
  server.add('ann/one', {'README.md': b'', 'm.Q8_0.gguf': b'GGUF8'})
  assert hub.download('hf://ann/one').read_bytes() == b'GGUF8'
  server.add('ann/two', {'a.gguf': b'A', 'q/b.gguf': b'B', 'c.gguf': b'C'})
  with pytest.raises(UserError, match=r'2 GGUF files \(a.gguf, c.gguf\): name'):
    hub.download('hf://ann/two')
  path = hub.download('hf://ann/two/q/b.gguf')
  assert path.name == 'b.gguf' and path.read_bytes() == b'B'
  with pytest.raises(UserError, match='no such file; its GGUF files: a.gguf'):
    hub.download('hf://ann/two/d.gguf')


def test_pickles_are_refused(server):
  server.add('ann/old', {'config.json': b'{}', 'pytorch_model.bin': b'x'})
  with pytest.raises(UserError, match='a pickle can run any code'):
    hub.download('hf://ann/old')
  assert not [path for path in server.paths('GET') if '/resolve/' in path]


@pytest.mark.parametrize(
  'what',
  [
    'hf://tiny',
    'hf://ann/../tiny',
    'hf://../../etc/passwd',
    'hf://ann/tiny/../../x.gguf',
    'hf://ann/tiny@../x',
    'hf://ann/tiny@main/..',
    'hf://ann/tiny//etc/x.gguf',
    'hf://ann/ti ny',
    'hf://ann/tiny/a\\..\\b.gguf',
    'hf://ann--tiny/x',
  ],
)
def test_addresses_that_name_no_model_are_refused(server, what):
  with pytest.raises(UserError, match='names no model of the hub'):
    hub.download(what)
  assert not server.asked


def test_the_hubs_own_file_names_cannot_leave_the_cache(server, tmp_path):
  server.add('ann/evil', {'../../../x.safetensors': b'x', 'config.json': b'{}'})
  with pytest.raises(UserError, match='no safetensors and no GGUF'):
    hub.download('hf://ann/evil')
  assert 'x.safetensors' not in {p.name for p in tmp_path.rglob('*')}


def add_guarded(server):
  server.add('ann/gated', FILES, gated=True, readers=('ann',))
  server.add('ann/secret', FILES, private=True, readers=('ann',))


@pytest.mark.parametrize(
  'what, token, message',
  [
    ('hf://ann/none', '', 'has no model ann/none, or a private one'),
    ('hf://ann/none', 'hf_ann', 'has no model ann/none, or a private one'),
    ('hf://ann/secret', '', 'has no model ann/secret, or a private one'),
    ('hf://ann/gated', '', 'ann/gated is gated: accept its terms on http'),
    ('hf://ann/tiny', 'hf_bad', r'does not let you read ann/tiny \(401\)'),
    ('hf://ann/tiny@v9', '', 'ann/tiny has no revision v9'),
  ],
)
def test_a_refusal_is_one_clear_line(
  server, monkeypatch, what, token, message, tmp_path
):
  add_guarded(server)
  if token:
    monkeypatch.setenv('HF_TOKEN', token)
  with pytest.raises(UserError, match=message) as e:
    hub.download(what)
  assert '\n' not in str(e.value)
  assert not list(tmp_path.rglob('*.safetensors'))


def test_a_token_opens_gated_and_private_models(server, monkeypatch):
  add_guarded(server)
  monkeypatch.setenv('HF_TOKEN', 'hf_ann')
  for name in ('gated', 'secret'):
    assert files_of(hub.download(f'hf://ann/{name}')) == NEEDED


@pytest.mark.parametrize('status', [429, 500, 503])
def test_a_hub_that_is_down_is_named(server, status):
  server.status = status
  with pytest.raises(UserError, match=rf'busy or down \({status}\)'):
    hub.download('hf://ann/tiny')


def test_a_disk_that_is_too_small_is_noticed_before(server, monkeypatch):
  usage = type('Usage', (), {'free': 1000})
  monkeypatch.setattr(hub.shutil, 'disk_usage', lambda path: usage)
  with pytest.raises(UserError, match='needs 1 MB in .*, where 0 MB are free'):
    hub.download('hf://ann/tiny')
  assert not [path for path in server.paths('GET') if '/resolve/' in path]


def test_a_full_disk_is_one_clear_line_and_nothing_is_lost(server, tmp_path):
  home = tmp_path / 'home'
  process = start(server, home, 'hf://ann/tiny', limit=400_000)
  out, err = process.communicate()
  assert process.returncode == 1 and out == ''
  assert 'error: no space left for ann/tiny in' in err
  assert 'Traceback' not in err
  server.asked.clear()
  assert hub.download('hf://ann/tiny')
  assert 'bytes=400000-' in [r for _, _, r in server.asked]


def test_two_processes_share_one_download(server, tmp_path):
  both = [start(server, tmp_path / 'two', 'hf://ann/tiny') for _ in range(2)]
  outs = [process.communicate() for process in both]
  assert [process.returncode for process in both] == [0, 0], outs
  assert outs[0][0] == outs[1][0]
  gets = [p for p in server.paths('GET') if p.endswith('model.safetensors')]
  assert len(gets) == 1


def test_the_environment_decides_on_hub_cache_and_mode(server, tmp_path):
  """HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE; no JAX is imported."""
  server.add('ann/gated', FILES, gated=True, readers=('ann',))
  home = tmp_path / 'elsewhere'
  out, err = start(
    server, home, 'hf://ann/gated', HF_TOKEN='hf_ann'
  ).communicate()
  assert out.startswith(str(home)), err
  assert 'downloading hf://ann/gated: 1.0 of 1.0 MB' in err
  offline = start(server, home, 'hf://ann/gated', HF_HUB_OFFLINE='1')
  assert offline.communicate()[0] == out


def test_without_huggingface_hub_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(UserError, match=r"pip install 'rgpt\[hf\]'"):
    hub.download('hf://ann/tiny')


def test_a_listing_names_size_and_license(server):
  found = hub.listing(hub.parse('hf://ann/tiny'))
  assert found.license == 'apache-2.0'
  assert set(found.sizes) == NEEDED
  assert found.missing == len(WEIGHTS)
  hub.download('hf://ann/tiny')
  assert hub.listing(hub.parse('hf://ann/tiny')).missing == 0
