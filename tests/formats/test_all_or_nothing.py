"""An import or an export that fails leaves its target as it was."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from gpt.errors import UserError
from gpt.formats import model_card
from gpt.formats.convert import export, import_directory
from gpt.runs.load import load_model
from gpt.tokenizers import CharTokenizer
from tests.support.export_tools import config, random_weights
from tests.support.train_process import snapshot
from tests.support.workdirs import launch, make_run

pytest.importorskip('safetensors')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs') / 'run'
  make_run(workdir, CharTokenizer('abc\n'), random_weights(), n_layer=1)
  return workdir


@pytest.fixture(scope='module')
def exported(run, tmp_path_factory):
  output = tmp_path_factory.mktemp('exports') / 'hf'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(model_card, 'sample', lambda loaded: ('', ''))
    export(run, 'best', 'hf', output)
  return output


@pytest.fixture
def edited(exported, tmp_path):
  """edit(changes of the run's record in config.json) -> the directory."""

  def edit(**changes) -> pathlib.Path:
    directory = tmp_path / 'edited'
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(exported, directory)
    path = directory / 'config.json'
    found = json.loads(path.read_text())
    found['rgpt'] |= changes
    path.write_text(json.dumps(found))
    return directory

  return edit


@pytest.mark.parametrize(
  'changes',
  [
    {'step': -5},
    {'step': 1.5},
    {'step': 'abc'},
    {'step': 2**40},
    {'step': True},
    {'best_loss': 'x'},
    {'best_loss': -1.0},
    {'best_loss': [1]},
  ],
  ids=str,
)
def test_a_record_that_no_training_leaves_is_refused(edited, tmp_path, changes):
  workdir = tmp_path / 'new' / 'run'
  (name, value), *_ = changes.items()
  with pytest.raises(UserError) as e:
    import_directory(edited(**changes), 'hf', config(), workdir)
  message = str(e.value)
  assert name.split('_')[-1] in message and 'allowed: ' in message
  assert repr(value) in message and '\n' not in message
  assert not workdir.parent.exists()
  # Nothing is in the way of a second try.
  import_directory(edited(step=3, best_loss=None), 'hf', config(), workdir)
  assert load_model(workdir).step == 3


def test_weights_that_are_not_finite_are_refused(tmp_path):
  def fill(name, shape):
    return np.full(shape, np.nan if name == 'wpe' else 0.1)

  make_run(tmp_path / 'bad', CharTokenizer('abc\n'), fill, n_layer=1)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(model_card, 'sample', lambda loaded: ('', ''))
    export(tmp_path / 'bad', 'best', 'hf', tmp_path / 'hf')
  with pytest.raises(UserError, match=r"not finite \(\['wpe'\]\)") as e:
    import_directory(tmp_path / 'hf', 'hf', config(), tmp_path / 'run')
  assert 'Nothing was imported' in str(e.value)
  assert not (tmp_path / 'run').exists()


def test_an_import_keeps_the_files_of_others(exported, tmp_path):
  workdir = tmp_path / 'run'
  workdir.mkdir()
  (workdir / 'notes.txt').write_text('mine')
  with pytest.raises(UserError):
    import_directory(tmp_path / 'absent', 'hf', config(), workdir)
  assert [p.name for p in workdir.iterdir()] == ['notes.txt']
  import_directory(exported, 'hf', config(), workdir)
  assert (workdir / 'notes.txt').read_text() == 'mine'
  assert load_model(workdir).step == 7
  with pytest.raises(UserError, match='already holds config.json'):
    import_directory(exported, 'hf', config(), workdir)


def test_what_a_failed_import_of_0_2_left_is_replaced(exported, tmp_path):
  workdir = tmp_path / 'run'
  CharTokenizer('xyz').save(workdir / 'tokenizer')
  (workdir / '.lock').touch()
  import_directory(exported, 'hf', config(), workdir)
  assert load_model(workdir).tokenizer.encode('abc').size == 3
  # A tokenizer that somebody put there is not.
  other = tmp_path / 'other'
  CharTokenizer('xyz').save(other / 'tokenizer')
  with pytest.raises(UserError, match='already holds tokenizer'):
    import_directory(exported, 'hf', config(), other)


@pytest.mark.parametrize('format', ['hf', 'safetensors', 'rgpt'])
def test_an_export_that_fails_changes_nothing(
  run, exported, trained_workdir, tmp_path, monkeypatch, format
):
  output = tmp_path / 'output'
  if format == 'hf':
    shutil.copytree(exported, output)
  else:
    output.write_bytes(b'earlier')
  before = snapshot(tmp_path)

  def full(*args, **kwargs):
    raise OSError(28, 'No space left on device')

  # The last thing that is written.
  monkeypatch.setattr(model_card, 'sample', lambda loaded: ('', ''))
  monkeypatch.setattr('os.fsync', full)
  with pytest.raises(UserError, match='No space left') as e:
    source = trained_workdir if format == 'rgpt' else run
    export(source, 'best', format, output, overwrite=True)
  assert '.tmp-' not in str(e.value) and str(output) in str(e.value)
  assert snapshot(tmp_path) == before


def test_an_export_replaces_an_earlier_one_as_a_whole(run, exported, tmp_path):
  output = tmp_path / 'output'
  shutil.copytree(exported, output)
  (output / 'tokenizer.json').write_text('stale')
  (output / 'generation_config.json').unlink()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(model_card, 'sample', lambda loaded: ('', ''))
    export(run, 'best', 'hf', output, overwrite=True)
  assert snapshot(output) == snapshot(exported)
  assert [p.name for p in tmp_path.iterdir()] == ['output']


def test_paths_of_another_machine_are_not_obeyed(edited, tmp_path):
  """Neither read (data.path) nor written to (data.cache_dir)."""
  secret, cache = tmp_path / 'secret.txt', tmp_path / 'cache'
  secret.write_text('abc\n' * 100)
  record = json.loads((edited() / 'config.json').read_text())['rgpt']
  record['config']['data'] |= {'path': str(secret), 'cache_dir': str(cache)}
  workdir = tmp_path / 'run'
  import_directory(edited(**record), 'hf', config(), workdir)
  data = load_model(workdir).config['data']
  assert data['path'] == f'imported:{secret}' and data['cache_dir'] == ''
  for name, args in (
    ('evaluate', []),
    ('train', ['--additional_steps=1']),
  ):
    _, err = launch(name, f'--workdir={workdir}', *args, code=2)
    assert err.startswith('error: this run was imported, and the text it was')
    assert err.count('\n') == 1 and '--data' in err
  assert not cache.exists()
  out, _ = launch('evaluate', f'--workdir={workdir}', f'--data={secret}')
  assert '"tokens": 399' in out or '"tokens": 400' in out


def test_a_directory_of_the_export_cannot_be_made(run, tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  monkeypatch.setattr(model_card, 'sample', lambda loaded: ('', ''))
  with pytest.raises(UserError, match='file is a file'):
    export(run, 'best', 'hf', tmp_path / 'file' / 'hf')
