"""Starts: resume, --init_from, changed data, lost or damaged files."""

import contextlib
import errno
import json
import shutil
import subprocess
import sys
import types

import pytest

from configs import smoke
from gpt import start, trainer, unfinished
from gpt.runs import checkpoint, checkpoint_writer, workdir
from gpt.runs.checkpoint import BEST, LATEST
from gpt.tokenizers import build_tokenizer
from tests.support.commands import run_all
from tests.support.train_process import environment, snapshot, timeless
from tests.support.train_runs import Crash, refused, run_here
from tests.support.workdirs import ROOT, STRICT, launch


@pytest.fixture
def copy(reference, tmp_path):
  """A copy of a finished run of 12 steps, to be damaged."""
  return shutil.copytree(reference[0], tmp_path / 'copy')


def loss_at_start(workdir) -> float:
  return timeless(workdir)[0]['val_loss']


def best_loss(workdir) -> float:
  return checkpoint.read_meta(checkpoint.find(workdir, BEST))['best_loss']


def damage(path) -> None:
  for file in path.rglob('*'):
    if file.is_file() and file.name != 'metadata':
      file.write_bytes(file.read_bytes()[:10])


# --- what is lost


@pytest.mark.parametrize(
  'also, steps', [('checkpoint.bin', 12), ('metrics.jsonl', 0)]
)
def test_a_run_without_its_checkpoints_does_not_start_over(copy, also, steps):
  """That would overwrite its metrics and RGPT files."""
  shutil.rmtree(copy / 'checkpoints')
  (copy / also).unlink()
  before = snapshot(copy)
  text = refused(copy, {'total_steps': 20})
  assert f'a run of {steps} steps without its checkpoints' in text
  assert f'put {copy}/checkpoints back' in text
  before.setdefault('.lock', b'')
  assert snapshot(copy) == before


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path):
  run_here(tmp_path, crash_at='step 0 | val')
  result, lines = run_here(tmp_path, {'total_steps': 1})
  assert 'the run has no checkpoint yet: starting from the beginning' in lines
  assert result.step == 1


def test_a_run_that_could_save_nothing_starts_over(copy):
  """Its folder of checkpoints exists and is empty: nothing was lost."""
  for path in copy.glob('checkpoint*.bin'):
    path.unlink()
  for path in copy.glob('checkpoints/*/*'):
    shutil.rmtree(path)
  result, lines = run_here(copy, {'total_steps': 1})
  assert 'the run has no checkpoint yet: starting from the beginning' in lines
  assert result.step == 1


def test_a_damaged_best_is_left_out_at_the_end(copy):
  damage(checkpoint.find(copy, BEST))
  changes = {
    'lr': 1e-12,
    'min_lr': 0.0,
    'opt.weight_decay': 0.0,
    'eval.full_at_end': True,
  }
  result, lines = run_here(copy, changes, additional_steps=1)
  assert result.outcome == 'finished' and result.step == 13
  found = [line for line in lines if 'cannot be read' in line]
  assert len(found) == 2 and all('is left out' in line for line in found)


def test_exports_take_the_latest_for_a_damaged_best(copy, tmp_path):
  damage(checkpoint.find(copy, BEST))
  out, err = launch(
    'export', f'--workdir={copy}', f'--output={tmp_path}/out.bin'
  )
  assert 'latest checkpoint, step 12' in out and 'using latest' in err


LOGS_GREEK = """
import logging
from gpt import logs
from launch import cli

def main(_):
  logs.to_console('stdout')  # As launch.train does.
  logging.getLogger('gpt').info("sample after 'α':\\nαβγ")

cli.run(main)
"""


def test_a_stdout_that_cannot_encode_the_sample_ends_nothing():
  done = subprocess.run(
    [sys.executable, *STRICT, '-c', LOGS_GREEK],
    cwd=ROOT,
    env=environment(PYTHONIOENCODING='ascii'),
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stderr) == (0, '')
  assert done.stdout == "sample after '?':\n???\n"


# --- from the weights of others


def test_a_killed_start_keeps_the_weights_of_init_from(reference, tmp_path):
  old = reference[0]
  run_here(tmp_path, init_from=str(old), crash_at='step 0 | val')
  _, lines = run_here(tmp_path, {'total_steps': 1})
  assert 'resuming from step 0' in lines
  assert loss_at_start(tmp_path) == pytest.approx(best_loss(old), rel=1e-5)


def test_a_start_cut_short_leaves_nothing_behind(
  reference, tmp_path, monkeypatch
):
  def crash(*_):
    raise Crash

  with monkeypatch.context() as patch:
    patch.setattr(trainer, 'save_config', crash)
    with contextlib.suppress(Crash):
      run_here(tmp_path, init_from=str(reference[0]))
  assert (tmp_path / 'checkpoints/latest/0').exists()
  result, _ = run_here(tmp_path, {'total_steps': 1, 'model.n_embd': 64})
  assert result.step == 1


@pytest.mark.parametrize('exists', [False, True])
@pytest.mark.parametrize(
  'changes, words',
  [
    ({'data.path': 'missing.txt'}, 'does not exist'),
    ({'model.block_size': 10**6}, 'block_size'),
  ],
)
def test_a_refused_start_leaves_a_new_workdir_as_it_was(
  tmp_path, changes, words, exists
):
  workdir = tmp_path / 'runs' / 'a'
  if exists:
    workdir.mkdir(parents=True)
  before = sorted(tmp_path.rglob('*'))
  assert words in refused(workdir, changes)
  assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('exists', [False, True])
def test_an_interrupted_start_keeps_a_workdir_only_for_what_it_prepared(
  tmp_path, exists
):
  path = tmp_path / 'runs' / 'a'
  if exists:
    path.mkdir(parents=True)
  config = smoke.get_config()
  config.parallel.num_cpu_devices = 4  # As the other tests in this process.
  before = sorted(tmp_path.rglob('*'))
  with workdir.open_run(path, config):
    assert (path / '.lock').exists()
    unfinished.remove_all()  # What Ctrl-C does before it ends the process.
    assert sorted(tmp_path.rglob('*')) == before
  with workdir.open_run(path, config):
    (path / 'tokenizer').mkdir()
    unfinished.remove_all()
  assert (path / '.lock').exists() and (path / 'tokenizer').exists()


def test_a_lock_that_a_refused_start_removed_is_not_held(tmp_path, monkeypatch):
  """Else two processes could train in one workdir."""
  fcntl = pytest.importorskip('fcntl')
  flock = fcntl.flock

  def late(file, how):
    (tmp_path / '.lock').unlink()
    (tmp_path / '.lock').touch()
    flock(file, how)

  monkeypatch.setattr(fcntl, 'flock', late)
  text = refused(tmp_path)
  assert 'just failed in another process: run the same command again' in text


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'model.n_head': 2}, 'its model.n_head is 4, here it is 2'),
    ({'model.final_norm': True}, 'its model.final_norm is False, here'),
    ({'model.arch': 'microgpt'}, "its model.arch is 'randy', here"),
  ],
)
def test_weights_of_another_network_are_refused(
  reference, tmp_path, changes, words
):
  text = refused(tmp_path / 'run', changes, init_from=str(reference[0]))
  assert 'do not fit this config' in text and words in text
  if 'model.n_head' not in changes:
    file = reference[0] / 'checkpoint.bin'
    text = refused(tmp_path / 'bin', changes, init_from=str(file))
    assert 'an RGPT file holds another model' in text


def test_a_tokenizer_that_the_weights_do_not_know_is_refused(
  reference, tmp_path
):
  build_tokenizer('char', ['xyz'], 0).save(tmp_path / 'other')
  text = refused(
    tmp_path / 'run',
    {'data.tokenizer_path': str(tmp_path / 'other')},
    init_from=str(reference[0]),
  )
  assert 'is not the tokenizer of' in text and 'leave it out' in text
  assert not (tmp_path / 'run/config.json').exists()


def test_init_from_skips_a_damaged_best(copy, tmp_path):
  damage(checkpoint.find(copy, BEST))
  _, lines = run_here(tmp_path / 'run', {'total_steps': 1}, init_from=str(copy))
  assert any('using latest of step 12 instead' in line for line in lines)


# --- on other data, to other targets


def test_a_changed_validation_split_resets_the_best(copy):
  """Losses on different splits are not comparable."""
  old = best_loss(copy)
  changes = {'data.val_fraction': 0.3, 'lr': 1e-12, 'min_lr': 0.0}
  result, lines = run_here(copy, changes, additional_steps=2)
  found = [x for x in lines if x.startswith('the validation data has changed')]
  assert len(found) == 1 and f'{old:.4f}, is kept' in found[0]
  assert len(list((copy / 'checkpoints/replaced').iterdir())) == 1
  assert best_loss(copy) == result.best_loss != old
  assert int(checkpoint.find(copy, BEST).name) >= 12
  _, lines = run_here(copy, changes, additional_steps=1)
  assert not any('other data' in line for line in lines)


def test_the_best_is_replaced_once_there_is_another_checkpoint(
  copy, monkeypatch
):
  """Killed in between, the run is evaluated again and has lost nothing."""
  shutil.rmtree(copy / 'checkpoints/latest')
  step = int(checkpoint.find(copy, BEST).name)

  def crash(*_):
    raise Crash

  changes = {'data.val_fraction': 0.3}
  with monkeypatch.context() as patch, pytest.raises(Crash):
    patch.setattr(checkpoint_writer, '_move', crash)
    run_here(copy, changes, additional_steps=1)
  assert int(checkpoint.find(copy, LATEST).name) == step
  shutil.rmtree(copy / 'checkpoints/best')
  _, lines = run_here(copy, changes, additional_steps=1)
  assert f'resuming from step {step}' in lines
  assert any(x.startswith('the validation data has changed') for x in lines)


def test_data_json_changes_only_when_training_starts(copy, tmp_path):
  before = (copy / 'data.json').read_bytes()
  text = tmp_path / 'other.txt'
  text.write_text('another text, and long enough for all of it\n' * 100)
  changes = {'data.path': str(text)}
  result, lines = run_here(copy, changes)
  assert result.outcome == 'nothing'
  assert any('the text has changed' in line for line in lines)
  launch('prepare_data', f'--workdir={copy}', f'--config.data.path={text}')
  assert (copy / 'data.json').read_bytes() == before
  run_here(copy, changes, additional_steps=1)
  assert (
    'other.txt' in json.loads((copy / 'data.json').read_text())['description']
  )


def test_prepared_data_of_another_text_is_prepared_again(tmp_path):
  workdir = tmp_path / 'run'
  commands = []
  for name in 'ab':
    text = tmp_path / f'{name}.txt'
    text.write_text(f'{name} {name} and long enough\n' * 300)
    args = [f'--workdir={workdir}', f'--config.data.path={text}']
    commands.append(['launch.prepare_data', *args])
  for done in run_all(commands):
    assert done.code == 0 and 'dropped' not in done.out, done
  _, lines = run_here(
    workdir, {'data.path': str(text), 'total_steps': 1, 'sample.prompt': 'b'}
  )
  assert not any('dropped' in line for line in lines)


def test_additional_steps_and_total_steps_exclude_each_other(tmp_path):
  _, err = launch(
    'train',
    f'--workdir={tmp_path}/run',
    '--additional_steps=5',
    '--config.total_steps=9',
    code=2,
  )
  assert '--additional_steps and --config.total_steps are two targets' in err
  assert not (tmp_path / 'run').exists()


def test_checkpoints_only_at_the_end(tmp_path):
  changes = {'checkpoint.every': 0, 'total_steps': 5, 'eval.every': 2}
  run_here(tmp_path, changes)
  found = checkpoint.list_steps(tmp_path / 'checkpoints')
  assert [step for which, step in found if which == LATEST] == [5]


# --- places that cannot be written to


def test_a_directory_without_write_permission_is_named(tmp_path, monkeypatch):
  @contextlib.contextmanager
  def forbidden(workdir):
    raise PermissionError(errno.EACCES, 'Permission denied', f'{workdir}/.lock')
    yield

  monkeypatch.setattr(workdir, 'lock_workdir', forbidden)
  text = refused(tmp_path)
  assert f'no access to {tmp_path}/.lock: Permission denied' in text
  assert 'name another --workdir' in text


def test_a_file_system_without_locks_gets_a_warning(tmp_path, monkeypatch):
  fcntl = pytest.importorskip('fcntl')

  def flock(*_):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(fcntl, 'flock', flock)
  result, lines = run_here(tmp_path, {'total_steps': 1})
  assert result.step == 1
  assert 'cannot be locked (No locks available)' in lines[0]


def test_validation_losses_compare_only_on_the_same_text():
  def key(sha256, **changes):
    config = smoke.get_config()
    config.update_from_flattened_dict(changes)
    corpus = types.SimpleNamespace(
      info=types.SimpleNamespace(text_sha256=sha256)
    )
    return start.validation_key(config, corpus)

  assert key('a') == key('a', lr=1e-9) != key('b')
  assert key('a') != key('a', **{'eval.windows': 1})
