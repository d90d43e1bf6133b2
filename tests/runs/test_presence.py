"""A workdir that disappears ends the run, and is not made anew."""

import re
import shutil
import signal
import types

import numpy as np
import pytest

from gpt.errors import UserError
from gpt.runs.checkpoint import LATEST
from gpt.runs.checkpoint_writer import Checkpoints
from gpt.runs.presence import Gone, Presence
from gpt.training.state import TrainState
from tests.support.train_process import Training
from tests.support.train_runs import ARGS, run_here

LONG = [x for x in ARGS if 'total_steps' not in x] + [
  '--config.total_steps=100000'
]


def checkpoints(newest, writing=frozenset()):
  return types.SimpleNamespace(
    newest=newest, writing=writing, are_lost=lambda: False
  )


def test_another_directory_of_the_same_name_is_noticed(tmp_path):
  workdir = tmp_path / 'run'
  workdir.mkdir()
  presence = Presence()
  presence.watch(workdir)
  presence.check(1, checkpoints(None))
  workdir.rename(tmp_path / 'elsewhere')
  with pytest.raises(Gone, match='its 4 steps were not saved yet'):
    presence.check(4, checkpoints(None))
  workdir.mkdir()
  (workdir / 'mine').touch()
  with pytest.raises(Gone, match='newest checkpoint .* has step 3'):
    presence.check(4, checkpoints(3))
  presence.remove_remains()
  assert (workdir / 'mine').exists()


def test_a_directory_made_anew_is_noticed_where_inodes_are_reused(tmp_path):
  workdir = tmp_path / 'run'
  workdir.mkdir()
  presence = Presence()
  presence.watch(workdir)
  workdir.rmdir()
  workdir.mkdir()
  with pytest.raises(Gone):
    presence.check(4, checkpoints(3))
  presence.close()


def make_state(step):
  return TrainState(np.asarray(step), {'x': np.ones(2)}, {}, np.ones(()))


def test_checkpoints_that_rm_removed_around_one_in_the_making(tmp_path):
  saved = Checkpoints(tmp_path)
  presence = Presence()
  for step in (3, 6):
    assert saved.save(LATEST, make_state(step), {}) and saved.wait()
  presence.watch(saved.directory)
  shutil.rmtree(saved.directory / LATEST / '3')
  presence.check(7, saved)
  assert saved.save(LATEST, make_state(9), {})
  shutil.rmtree(saved.directory / LATEST / '6')
  assert saved.wait() and saved.newest == 9
  with pytest.raises(Gone, match=f'{saved.directory} was removed'):
    presence.check(9, saved)
  presence.close()
  saved.close()


@pytest.mark.parametrize(
  'remains, stay',
  [
    (['checkpoints/latest/9.orbax-checkpoint-tmp/params/d/x'], False),
    (['checkpoints/best/9/x'], False),
    (['checkpoints/best/9/x', 'samples.txt'], False),
    (['samples.txt'], True),
    (['checkpoints/best/9/x', 'notes.txt'], True),
    (['checkpoints/best/9/x', 'checkpoints/latest/6/x'], True),
    (['checkpoints/mine'], True),
  ],
)
@pytest.mark.parametrize('early', [False, True])
def test_only_what_a_checkpoint_made_is_removed(tmp_path, remains, stay, early):
  """Whether it was made before the loss was noticed or after."""
  workdir = tmp_path / 'run'
  workdir.mkdir()
  presence = Presence()
  presence.watch(workdir)
  workdir.rename(tmp_path / 'elsewhere')

  def make():
    for name in remains:
      (workdir / name).parent.mkdir(parents=True, exist_ok=True)
      (workdir / name).touch()

  if early:
    make()
  with pytest.raises(Gone):
    presence.check(9, checkpoints(6, {9}))
  if not early:
    make()
  presence.remove_remains()
  assert workdir.exists() == stay
  assert (tmp_path / 'elsewhere').exists()


def test_a_directory_that_rm_could_not_remove_is_noticed(tmp_path):
  """A checkpoint appeared in it after its files were removed."""
  workdir = tmp_path / 'run'
  (workdir / 'checkpoints/latest/9').mkdir(parents=True)
  (workdir / 'config.json').touch()
  presence = Presence()
  presence.watch(workdir, workdir / 'config.json')
  presence.check(9, checkpoints(6, {9}))
  (workdir / 'config.json').unlink()
  with pytest.raises(Gone, match='config.json was removed'):
    presence.check(10, checkpoints(6, {9}))
  presence.remove_remains()
  assert not workdir.exists()


# Slow: real processes, and checkpoints in the making can win the race.
@pytest.mark.slow
@pytest.mark.parametrize('what', ['workdir', 'checkpoints'])
@pytest.mark.parametrize('how', ['renamed', 'removed', 'removed in place'])
def test_a_run_whose_directory_disappears_ends_with_one_line(
  tmp_path, what, how
):
  workdir, elsewhere = tmp_path / 'run', tmp_path / 'elsewhere'
  gone = workdir if what == 'workdir' else workdir / 'checkpoints'
  process = Training(workdir, *LONG)
  process.wait_for('step 8/')
  if how == 'renamed':
    gone.rename(elsewhere)
  elif how == 'removed in place':  # As by `rm -r`, which may fail at the end.
    shutil.rmtree(gone, ignore_errors=True)
  else:
    gone.rename(elsewhere)  # At once, as the process keeps writing.
    shutil.rmtree(elsewhere)
  code, _, err = process.finish()
  assert code == 2, err
  error = err[err.index('error: ') :]
  assert error.count('\n') == 1 and 'Traceback' not in err
  named = f'({gone}|{workdir}/config.json) was removed, renamed or unmounted'
  assert re.search(named, error), error
  assert 'the newest checkpoint there, if it still exists, has step' in error
  if how != 'removed in place':
    assert not gone.exists(), list(gone.rglob('*'))
  if how == 'renamed' and what == 'workdir':
    result, _ = run_here(elsewhere, {'total_steps': 8})
    assert result.outcome in ('finished', 'nothing')


@pytest.mark.slow
def test_a_checkpoint_folder_put_back_resumes(tmp_path):
  process = Training(tmp_path / 'run', *LONG)
  process.wait_for('step 8/')
  checkpoints = tmp_path / 'run' / 'checkpoints'
  checkpoints.rename(tmp_path / 'kept')
  assert process.finish()[0] == 2
  with pytest.raises(UserError, match='without its checkpoints'):
    run_here(tmp_path / 'run')
  (tmp_path / 'kept').rename(checkpoints)
  process = Training(tmp_path / 'run', *LONG)
  process.wait_for('resuming from step')
  process.wait_for('steps ')
  process.send(signal.SIGTERM)
  code, out, _ = process.finish()
  assert code == 0 and 'Interrupted at step' in out
