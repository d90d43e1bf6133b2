"""Whole runs: killed, interrupted, damaged, out of disk, diverged.

Most of it with real processes. `reference` is a run that nothing happened to;
whatever is done to another, it must end with the same bits.
"""

import json
import pathlib
import random
import re
import shutil
import signal

import jax
import numpy as np
import pytest

from gpt import logs
from gpt.runs import checkpoint, samples
from tests.support.train_process import (
  WRITES,
  Training,
  assert_finite,
  assert_same_run,
  environment,
  kill_at,
  latest,
  snapshot,
  timeless,
  train,
)
from tests.support.train_runs import ARGS, Crash, refused, run_here


@pytest.fixture(scope='module')
def killed(reference, tmp_path_factory):
  """A run killed while it writes its checkpoint of step 9."""
  workdir = tmp_path_factory.mktemp('killed') / 'run'
  point = kill_at('os.mkdir', 'latest/9.orbax-checkpoint-tmp/')
  train(workdir, *ARGS, signal_at=point, code=-signal.SIGKILL)
  assert (workdir / 'checkpoints/latest/9.orbax-checkpoint-tmp').exists()
  return workdir


@pytest.fixture
def halfway(killed, tmp_path):
  return pathlib.Path(shutil.copytree(killed, tmp_path / 'run'))


def newest_of(workdir) -> list[str]:
  """Checkpoints as 'latest/6', the newest first: these a resume tries."""
  found = checkpoint.list_steps(workdir / 'checkpoints')
  return [f'{which}/{step}' for which, step in found]


# --- killed and resumed


def test_killed_and_resumed_equals_uninterrupted(reference, tmp_path):
  """Killed at five moments, one after the other, most of them in a save."""
  workdir = tmp_path / 'run'
  process = Training(workdir, *ARGS)
  process.wait_for('step 0 | val')
  process.kill()
  for point in (
    kill_at('os.mkdir', 'best/4.orbax-checkpoint-tmp'),
    # The one before it is complete, and about to be deleted.
    kill_at('os.rename', 'checkpoints/deleted/', 2),
  ):
    train(workdir, *ARGS, signal_at=point, code=-signal.SIGKILL)
  for point in (
    kill_at('os.mkdir', 'latest/12.orbax-checkpoint-tmp'),
    kill_at('os.rename', 'checkpoint_best.bin'),
  ):
    train(workdir, *ARGS, signal_at=point, code=-signal.SIGKILL)
  out, _ = train(workdir, *ARGS)
  assert 'Already at step 12 (target 12). Nothing to train.' in out
  assert 'Its last files were not written' in out
  assert_same_run(workdir, reference[0])


def test_a_sample_that_a_kill_prevented_is_written_in_the_end(
  tmp_path, monkeypatch
):
  changes = {'eval.sample': True, 'checkpoint.every': 0}
  write = samples.write

  def crash(config, model, params, tokenizer, workdir, step):
    if step == 4:
      raise Crash
    return write(config, model, params, tokenizer, workdir, step)

  with monkeypatch.context() as patch, pytest.raises(Crash):
    patch.setattr(samples, 'write', crash)
    run_here(tmp_path, changes)
  run_here(tmp_path, changes)
  steps = [step for step, _ in samples.read(tmp_path)]
  assert steps == [2, 4, 6, 8, 10, 12]


def test_a_run_killed_in_a_save_resumes_from_the_one_before(halfway, reference):
  before = latest(halfway)[1]['elapsed_s']
  # That may be a best one of step 8: newer than the latest of step 6.
  _, step = newest_of(halfway)[0].split('/')
  assert step in ('6', '8', '10')
  out, _ = train(halfway, *ARGS)
  assert f'resuming from step {step}' in out
  assert_same_run(halfway, reference[0])
  assert latest(halfway)[1]['elapsed_s'] > before


def test_interrupted_additional_steps_keep_their_target(tmp_path):
  run_here(tmp_path, {'total_steps': 2})
  args = [x for x in ARGS if not x.startswith('--config.total_steps')]
  process = Training(tmp_path, *args, '--additional_steps=5000')
  process.wait_for('steps 2 -> 5002')
  process.send(signal.SIGINT)
  code, out, _ = process.finish()
  assert code == 0 and 'Interrupted at step' in out
  assert f'Continue with: python -m launch.train --workdir={tmp_path}' in out
  assert 'Run the same command again' not in out
  saved = json.loads((tmp_path / 'config.json').read_text())
  assert saved['total_steps'] == 5002


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(4))
def test_killed_at_random_file_operations(reference, tmp_path, seed):
  """A run makes some 250 of them; any may be the last."""
  workdir, rng = tmp_path / 'run', random.Random(seed)
  for _ in range(6):
    point = kill_at(WRITES, str(workdir), rng.randint(1, 200))
    process = Training(workdir, *ARGS, signal_at=point)
    code, _, err = process.finish()
    assert code in (0, -signal.SIGKILL) and 'Traceback' not in err, err
  train(workdir, *ARGS)
  assert_same_run(workdir, reference[0])


# --- interrupted


def test_interrupted_and_resumed_equals_uninterrupted(reference, tmp_path):
  """SIGHUP, SIGTERM, then Ctrl-C twice; the run resumes each time."""
  workdir = tmp_path / 'run'
  # A closed terminal may send two. The re-exec for huge pages keeps the process
  # id, so the signals reach the program.
  env = {k: v for k, v in environment().items() if k != 'RGPT_HUGE_PAGES'}
  process = Training(workdir, *ARGS, env=env)
  process.wait_for('step 0 | val')
  process.send(signal.SIGHUP)
  process.send(signal.SIGHUP)
  code, out, _ = process.finish()
  assert code == 0
  step = int(re.search(r'Interrupted at step (\d+)\. Saved in', out)[1])
  assert out.lower().count('interrupted at step') == 1
  assert latest(workdir)[1]['step'] == step
  assert 'Run the same command again to continue.' in out
  assert 'best val inf' not in out  # There may have been no eval yet.
  assert (workdir / 'checkpoint.bin').exists()

  before_a_step = 'open metrics.jsonl 1'
  process = Training(
    workdir, *ARGS, signal_at=f'{int(signal.SIGTERM)} {before_a_step}'
  )
  code, out, _ = process.finish()
  assert code == 0 and f'steps {step} -> 12' in out
  assert 'Interrupted at step' in out
  step = latest(workdir)[1]['step']
  assert step < 12

  # The second one comes while the checkpoint is being written.
  saving = f'os.mkdir latest/{step + 1}.orbax 1'
  ctrl_c = int(signal.SIGINT)
  process = Training(
    workdir,
    *ARGS,
    signal_at=f'{ctrl_c} {before_a_step};{ctrl_c} {saving}',
  )
  code, out, err = process.finish()
  assert code == 128 + signal.SIGINT, (out, err)
  assert 'stopping after this step; once more to leave at once' in err
  assert 'Traceback' not in err
  assert latest(workdir)[1]['step'] >= step

  train(workdir, *ARGS)
  assert_same_run(workdir, reference[0])


def test_a_closed_stdout_does_not_stop_training(reference, tmp_path):
  """As in `| head -1`; the run is the same, and a line on stderr says why."""
  process = Training(tmp_path / 'run', *ARGS)
  process.wait_for('data: ')
  process.process.stdout.close()
  with process.process.stderr as stderr:
    err = stderr.read()
  assert process.process.wait() == 0
  assert err == f'warning: {logs.STDOUT_CLOSED}\n'
  assert_same_run(tmp_path / 'run', reference[0])


# --- damage


def test_damaged_latest_checkpoint_costs_a_few_steps(halfway, reference):
  bad, good, *_ = newest_of(halfway)
  for path in halfway.glob(f'checkpoints/{bad}/params/d/*'):
    path.write_bytes(b'')
  out, err = train(halfway, *ARGS)
  assert re.search(f'warning: checkpoint .*{bad} cannot be read', err)
  assert f'using {good} instead' in err and 'resuming from step' in out
  assert (halfway / 'checkpoints/damaged' / bad.replace('/', '-')).is_dir()
  shutil.rmtree(halfway / 'checkpoints/damaged')
  assert_same_run(halfway, reference[0])


def test_nothing_is_overwritten_if_all_checkpoints_are_damaged(halfway):
  for path in halfway.glob('checkpoints/*/*/params/d/*'):
    path.write_bytes(b'')
  before = snapshot(halfway)
  _, err = train(halfway, *ARGS, code=2)
  assert 'error: no checkpoint can be read' in err
  assert 'Nothing was changed' in err
  assert snapshot(halfway) == before


def test_a_full_disk_is_reported_and_costs_nothing(halfway, reference):
  """No file may grow beyond 20 KB: weights do not fit, small files do."""
  good = halfway / 'checkpoints'
  before = {path: snapshot(good / path) for path in newest_of(halfway)}
  _, err = train(halfway, *ARGS, limit=20_000, code=2)
  assert re.search(r'warning: a checkpoint could not be written by step', err)
  assert 'File too large' in err and 'Is the disk full?' in err
  assert re.search('error: the last checkpoint in .* could not be written', err)
  assert 'earlier ones are intact. Free some space' in err
  for path, files in before.items():
    assert snapshot(good / path) == files
  train(halfway, *ARGS)
  assert_same_run(halfway, reference[0])


# --- divergence


def test_non_finite_loss_stops_the_run_and_keeps_the_good_checkpoint(halfway):
  newest = halfway / 'checkpoints' / newest_of(halfway)[0]
  before = snapshot(newest)
  text = refused(halfway, {'lr': 1e30, 'opt.clip': 'none'})
  assert re.search(r'not a finite number at step (8|9|10|11|12) \(lr', text)
  assert re.search(r'lr [\d.]+e\+\d\d', text)
  assert '--config.opt.clip=global_norm' in text
  assert f'last good checkpoint is in {halfway}/checkpoints' in text
  assert snapshot(newest) == before
  assert_finite(checkpoint.restore_params(newest))
  # From there it continues with a sane learning rate.
  result, _ = run_here(halfway)
  assert result.outcome == 'finished'
  assert_finite(latest(halfway)[0])


def test_the_last_update_may_diverge(tmp_path):
  """The diverged weights are not saved."""
  text = refused(tmp_path, {'lr': 1e30, 'opt.clip': 'none', 'total_steps': 1})
  assert 'validation loss is not a finite number at step 1' in text
  assert 'Nothing had been saved yet' in text
  assert not list(tmp_path.glob('checkpoints/*/[0-9]*'))


# --- variants, each resumed in the middle


@pytest.mark.parametrize(
  'changes',
  [
    {
      'model.arch': 'microgpt',
      'opt.schedule': 'linear_warmup',
      'opt.warmup_steps': 4,
      'opt.b1': 0.85,
      'opt.b2': 0.99,
      'opt.clip': 'none',
      'opt.weight_decay': 0.0,
      'model.dropout': 0.0,
    },
    {'opt.schedule': 'wsd', 'opt.warmup_steps': 2, 'opt.ema_decay': 0.9},
    {
      'opt.name': 'normuon',
      'opt.clip': 'global_norm',
      'model.pos': 'rope',
      'model.final_norm': True,
      'data.document_separator': 'blank_line',
      'data.document_aware': True,
    },
  ],
  ids=['microgpt', 'wsd-ema', 'normuon-rope-documents'],
)
def test_variant_runs_and_resumes_exactly(tmp_path, changes):
  changes = {'total_steps': 6, **changes}
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  result, lines = run_here(whole, changes)
  assert result.outcome == 'finished'
  run_here(parts, changes, crash_at='step 4/6')
  _, resumed = run_here(parts, changes)
  assert 'resuming from step 3' in resumed
  jax.tree.map(
    np.testing.assert_array_equal, latest(parts)[0], latest(whole)[0]
  )
  metas = [latest(workdir)[1] for workdir in (parts, whole)]
  assert metas[0]['checksum'] == metas[1]['checksum']
  assert metas[0]['plateau'] == metas[1]['plateau']
  assert metas[0]['elapsed_s'] > 0
  assert timeless(parts) == timeless(whole)
  averaged = any('not their average (opt.ema_decay)' in x for x in lines)
  assert averaged == ('opt.ema_decay' in changes)
  randygpts = 'model.arch' not in changes and 'model.pos' not in changes
  assert (whole / 'checkpoint.bin').exists() == randygpts
  # One note, whatever the number of reasons.
  assert sum('no RGPT files' in x for x in lines) == (not randygpts)
