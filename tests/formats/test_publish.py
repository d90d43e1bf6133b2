"""A run goes up in one commit, against a hub of our own on this machine."""

import dataclasses

import pytest

from gpt.errors import UserError
from gpt.formats import hub, publish
from gpt.formats.convert import import_directory
from gpt.runs.load import load_model, params_sha256
from tests.support import chat_tools
from tests.support.chat_tools import make_chatter
from tests.support.commands import JAX, run_all
from tests.support.fake_hub import FakeHub
from tests.support.serving_tools import chat_tokenizer, make_random

pytest.importorskip('huggingface_hub', reason='extra hf is needed')
# huggingface_hub's uploads use an old keyword of its own HTTP client.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")
home = chat_tools.home  # Around every test.
REPO = 'ann/chat'
LLAMA = {
  'data': {'format': 'chat'},
  'mlp': 'swiglu',
  'pos': 'rope',
  'final_norm': True,
}
EXPORT = {'README.md', 'config.json', 'model.safetensors'}


@pytest.fixture(scope='module')
def chatter(tmp_path_factory):
  return make_chatter(tmp_path_factory.mktemp('chatter'))


@pytest.fixture(scope='module')
def upload(chatter, tmp_path_factory):
  return publish.prepare(
    chatter, 'best', tmp_path_factory.mktemp('upload'), license='mit'
  )


@pytest.fixture(scope='module')
def running():
  with FakeHub() as server:
    yield server


@pytest.fixture
def server(running, monkeypatch, home):
  running.reset()
  running.use(monkeypatch, home / 'hf')
  monkeypatch.setenv('HF_TOKEN', 'hf_ann')
  return running


def test_a_run_is_published_in_one_commit_and_comes_back(
  server, upload, chatter, tmp_path
):
  assert upload.files.keys() > EXPORT
  address = publish.send(upload, REPO)
  assert address == f'{server.url}/ann/chat'
  repo = server.repos[REPO]
  assert len(repo.commits) == 2 and not repo.private  # The first is empty.
  assert repo.files.keys() - {'.gitattributes'} == upload.files.keys()
  for name, path in upload.files.items():
    assert repo.files[name] == path.read_bytes()
  assert repo.files['README.md'].startswith(b'---\nlicense: mit\n')
  from configs.default import get_config

  path = hub.download('hf://ann/chat')
  import_directory(path, 'auto', get_config(), tmp_path / 'again')
  published = load_model(tmp_path / 'again').params
  assert params_sha256(published) == params_sha256(load_model(chatter).params)


def test_a_new_repository_may_be_private(server, upload):
  publish.send(upload, REPO, private=True)
  assert server.repos[REPO].private


def test_other_files_are_overwritten_only_when_asked(server, upload):
  server.add(REPO, {'.gitattributes': b'', 'README.md': b'mine'})
  with pytest.raises(UserError, match='holds 1 files already, such as README'):
    publish.send(upload, REPO)
  assert server.repos[REPO].files['README.md'] == b'mine'


def test_what_an_earlier_export_had_more_of_is_removed(server, upload):
  old = {'modeling_rgpt.py': b'', 'old-Q8_0.gguf': b'', 'rgpt_tokenizer/x': b''}
  others = {'.gitattributes': b'', 'notes.txt': b'', 'data/x.gguf': b''}
  server.add(REPO, {**old, **others, 'config.json': b'{}'})
  publish.send(upload, REPO, overwrite=True)
  kept = server.repos[REPO].files
  assert kept.keys() == upload.files.keys() | others.keys()
  assert len(server.repos[REPO].commits) == 2


@pytest.mark.parametrize(
  'repo, token, message',
  [
    (REPO, None, 'publishing needs a token that may write: make one on http'),
    (REPO, 'hf_bad', r'does not let you publish to ann/chat \(401\)'),
    ('bob/chat', 'hf_ann', r'does not let you publish to bob/chat \(403\)'),
  ],
)
def test_without_permission_nothing_is_published(
  server, upload, monkeypatch, repo, token, message
):
  monkeypatch.delenv('HF_TOKEN')
  if token:
    monkeypatch.setenv('HF_TOKEN', token)
  with pytest.raises(UserError, match=message) as e:
    publish.send(upload, repo)
  assert '\n' not in str(e.value)
  assert server.repos == {}


def test_a_repository_of_somebody_else_is_not_changed(server, upload):
  server.add('bob/chat', {'.gitattributes': b''})
  with pytest.raises(UserError, match=r'publish to bob/chat \(403\)'):
    publish.send(upload, 'bob/chat')
  assert len(server.repos['bob/chat'].commits) == 1


def test_a_failed_commit_publishes_nothing(server, upload):
  server.fail_commit = 500
  with pytest.raises(UserError, match=r'busy or down \(500\)'):
    publish.send(upload, REPO)
  assert list(server.repos[REPO].files) == ['.gitattributes']
  server.fail_commit = 0
  publish.send(upload, REPO)
  assert server.repos[REPO].files.keys() > EXPORT


def test_a_failed_upload_publishes_nothing(server, upload):
  server.fail_upload = 403
  with pytest.raises(UserError, match=r'publish to ann/chat \(403\)'):
    publish.send(upload, REPO)
  assert list(server.repos[REPO].files) == ['.gitattributes']


def test_a_model_card_that_the_hub_refuses_is_named(server, upload, tmp_path):
  (tmp_path / 'README.md').write_text('no head')
  files = {**upload.files, 'README.md': tmp_path / 'README.md'}
  with pytest.raises(UserError, match='the hub refuses the upload: .*metadata'):
    publish.send(dataclasses.replace(upload, files=files), REPO)
  assert list(server.repos[REPO].files) == ['.gitattributes']


def test_without_a_network_that_is_the_error(server, upload, monkeypatch):
  monkeypatch.setattr(hub.library().constants, 'ENDPOINT', 'http://127.0.0.1:9')
  with pytest.raises(UserError, match='no connection to http://127.0.0.1:9'):
    publish.send(upload, REPO)


def test_offline_mode_is_the_error(server, upload, monkeypatch):
  monkeypatch.setattr(hub.library().constants, 'HF_HUB_OFFLINE', True)
  with pytest.raises(UserError, match='HF_HUB_OFFLINE is set'):
    publish.send(upload, REPO)


@pytest.mark.parametrize('repo', ['chat', 'a/b/c', '../x', 'a/..', 'a b/c', ''])
def test_other_names_of_repositories_are_refused(repo):
  with pytest.raises(UserError, match='is not of the form owner/name'):
    publish.check_repo(repo)


def test_a_license_is_an_identifier(chatter, tmp_path):
  with pytest.raises(UserError, match='write an identifier of the hub'):
    publish.prepare(chatter, 'best', tmp_path, license='mit\nx: y')


def test_a_gguf_file_goes_up_beside_the_others(server, tmp_path):
  workdir = tmp_path / 'talk'
  make_random(workdir, chat_tokenizer(), **LLAMA)
  made = publish.prepare(workdir, 'best', tmp_path / 'out', gguf='q8_0')
  assert any('ollama create NAME -f talk-Q8_0.M' in n for n in made.notes)
  publish.send(made, REPO)
  files = server.repos[REPO].files
  assert files['talk-Q8_0.gguf'].startswith(b'GGUF')
  assert b'talk-Q8_0.gguf' in files['talk-Q8_0.Modelfile']
  assert files.keys() > EXPORT
  path = hub.download('hf://ann/chat/talk-Q8_0.gguf')
  assert path.read_bytes() == files['talk-Q8_0.gguf']
  # Published again without it, it is removed.
  publish.send(
    publish.prepare(workdir, 'best', tmp_path / 'again'), REPO, overwrite=True
  )
  left = server.repos[REPO].files.keys()
  assert left > EXPORT and not [n for n in left if n.startswith('talk-')]


def test_a_dry_run_shows_what_would_go_up(server, chatter, home):
  """Without a token, and without a request."""
  flags = [f'--workdir={chatter}', f'--repo={REPO}']
  dry, sent, bad = run_all(
    [
      ['launch.publish', *flags, '--dry_run', '--private'],
      ['launch.publish', *flags],
      ['launch.publish', f'--workdir={chatter}'],
    ],
    preload=JAX,
    HF_TOKEN='',
    **server.env(home / 'hf'),
  )
  assert dry.code == 0, dry.err
  lines = dry.out.splitlines()
  listed = {line.split()[1]: line.split()[0] for line in lines[:-1]}
  assert listed.keys() > EXPORT
  weights = int(listed['model.safetensors'].replace(',', ''))
  assert weights > 1000
  assert lines[-1].endswith('would go to ann/chat (private); nothing was sent')
  assert sent.code == 2 and 'error: publishing needs a token' in sent.err
  assert bad.code == 2 and '--repo=OWNER/NAME are needed' in bad.err
  assert server.asked == [] and server.repos == {}
