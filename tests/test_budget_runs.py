"""Runs with a budget: planned, moved, killed, resumed, overridden, refused."""

import json
import pathlib
import shutil
import signal
import time

import pytest

from configs import budget as budget_config
from gpt.errors import UserError
from gpt.planning import budget, clock, plan, record
from gpt.planning.record import Target
from gpt.train import train_and_evaluate
from tests.planning.test_plan import machine, text
from tests.support.commands import assert_refused, run_all
from tests.support.logs import log_lines
from tests.support.train_process import (
  Training,
  kill_at,
  latest,
  timeless,
  train,
)
from tests.support.train_runs import Crash

SMALL = {
  'model.n_embd': 32,
  'model.n_layer': 1,
  'model.block_size': 32,
  'batch_size': 8,
  'data.path': 'sample',
  'data.tokenizer': 'char',
  'eval.windows': 8,
  'sample.max_tokens': 8,
}
ARGS = [f'--config.{key}={value}' for key, value in SMALL.items()]
# Where the runs in this process move their target, whatever the time.
MOVES = {5: (24, 'measured'), 9: (18, 'late'), 14: (20, 'early')}


def run(workdir, changes=(), length='1m', crash_at='', **kwargs):
  """The lines of a run in this process, planned from facts of a test."""
  config = budget_config.get_config(length)
  config.update_from_flattened_dict({**SMALL, 'parallel.num_cpu_devices': 4})
  config.update_from_flattened_dict(dict(changes))

  def crash(line):
    if crash_at and crash_at in line:
      raise Crash

  with log_lines(crash) as lines:
    if crash_at:
      with pytest.raises(Crash):
        train_and_evaluate(config, workdir, **kwargs)
    else:
      train_and_evaluate(config, workdir, **kwargs)
  return lines


@pytest.fixture
def quick(monkeypatch):
  """No measuring, and targets that move as MOVES says."""

  def planned(seconds, given):
    facts, where = text(500_000), machine()
    made = plan.make(facts, where, seconds, given)
    made.now.options['total_steps'] = given.get('total_steps', 30)
    made.now.options['eval.every'] = 10
    return facts, where, made

  def moved(self, step, config, val_tokens):
    if step in MOVES:
      total, why = MOVES[step]
      return Target(step, total, why, 1.0, 0.01)
    return None

  monkeypatch.setattr(budget, 'planned', planned)
  monkeypatch.setattr(clock.BudgetClock, '_moved', moved)


def targets(workdir):
  return {x.step: x.total_steps for x in record.read(workdir).targets}


def saved(workdir):
  return json.loads((pathlib.Path(workdir) / 'config.json').read_text())


def assert_equal_runs(given, wanted):
  """Bit for bit, with equal targets."""
  import jax
  import numpy as np

  jax.tree.map(
    np.testing.assert_array_equal, latest(given)[0], latest(wanted)[0]
  )
  assert timeless(given) == timeless(wanted)
  assert targets(given) == targets(wanted)
  assert saved(given) == saved(wanted)


def test_moved_targets_are_recorded_and_met_again_after_a_crash(
  quick, tmp_path
):
  lines = run(tmp_path / 'whole')
  assert any(line.startswith('plan for 1m:') for line in lines)
  assert targets(tmp_path / 'whole') == {0: 30, 5: 24, 9: 18, 14: 20}
  assert saved(tmp_path / 'whole')['total_steps'] == 20
  assert record.read(tmp_path / 'whole').end['step'] == 20
  assert any(line.startswith('used 0:') for line in lines)
  # Before the first checkpoint, between two moves, and at the end.
  for step in ('step 0 |', 'step 12/18', 'step 20/20'):
    run(tmp_path / 'cut', {'eval.every': 4}, crash_at=step)
  run(tmp_path / 'cut', {'eval.every': 4})
  run(tmp_path / 'other', {'eval.every': 4})
  assert_equal_runs(tmp_path / 'cut', tmp_path / 'other')
  # The record says all that is needed to repeat the run.
  shutil.rmtree(tmp_path / 'other/checkpoints')
  for which in ('latest', 'best'):
    (tmp_path / 'other/checkpoints' / which).mkdir(parents=True)
  run(tmp_path / 'other', {'eval.every': 4})
  assert_equal_runs(tmp_path / 'other', tmp_path / 'cut')


def test_report_and_info_show_the_plan_beside_what_happened(quick, tmp_path):
  run(tmp_path)
  kept = record.read(tmp_path)
  expected = kept.plan['now']['bits_per_byte']
  reached = kept.end['bits_per_byte']
  reached = reached.get('best', reached['final'])
  page, plain, facts = run_all(
    [
      ['launch.report', f'--workdir={tmp_path}'],
      ['launch.info', f'--workdir={tmp_path}'],
      ['launch.info', f'--workdir={tmp_path}', '--json'],
    ]
  )
  assert page.code == plain.code == 0, page.err + plain.err
  line = next(x for x in plain.out.splitlines() if x.startswith('plan '))
  shown = (tmp_path / 'report.html').read_text()
  halfway = kept.plan['halfway']['bits_per_byte']
  for told in (f'{expected:.4f} and then {halfway:.4f}', f'{reached:.4f}'):
    assert told in line and f'>{told}<' in shown
  assert 'steps 30 -> 20' in line and '<h2>Plan</h2>' in shown
  told = json.loads(facts.out)['plan']
  assert told['budget'] == '1m' and told['used_s'] > 0
  assert told['expected_halfway'] == halfway
  assert [x['step'] for x in told['targets']] == [0, 5, 9, 14]


def test_a_finished_run_trains_on_with_a_target_of_its_own(quick, tmp_path):
  run(tmp_path)
  assert any('Nothing to train' in line for line in run(tmp_path))
  run(tmp_path, additional_steps=3)
  assert targets(tmp_path) == {0: 30, 5: 24, 9: 18, 14: 20, 20: 23}
  assert latest(tmp_path)[1]['step'] == 23
  run(tmp_path, {'total_steps': 25})
  assert latest(tmp_path)[1]['step'] == 25


def test_what_is_given_is_not_chosen(quick, tmp_path):
  given = {'lr': 1e-3, 'total_steps': 6, 'eval.every': 3, 'model.dropout': 0.25}
  run(tmp_path, given)
  config = saved(tmp_path)
  assert config['total_steps'] == 6 and config['eval']['every'] == 3
  assert config['lr'] == 1e-3 and config['model']['dropout'] == 0.25
  assert config['model']['n_embd'] == 32 and config['opt']['name'] == 'normuon'
  kept = record.read(tmp_path)
  assert targets(tmp_path) == {0: 6}  # The clock leaves it alone.
  assert not kept.chosen.keys() & {*given, *SMALL}


def test_a_run_goes_on_without_an_option_that_is_newer_than_the_run(
  quick, tmp_path
):
  run(tmp_path, {'total_steps': 4, 'model.exclusive_attention': False})
  config = saved(tmp_path)
  del config['model']['exclusive_attention']
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(UserError, match='exclusive_attention: False -> True'):
    run(tmp_path, {'total_steps': 6, 'model.exclusive_attention': True})
  run(tmp_path, {'total_steps': 6})
  assert latest(tmp_path)[1]['step'] == 6
  assert saved(tmp_path)['model']['exclusive_attention'] is False


def test_another_budget_or_another_run_is_refused(quick, tmp_path):
  given = {'total_steps': 2}
  run(tmp_path / 'run', given)
  with pytest.raises(UserError, match='holds a run with the budget 1m'):
    run(tmp_path / 'run', given, length='2m')
  run(tmp_path / 'run', given, length='60s')  # The same time.
  with pytest.raises(UserError, match='leave out --config.parallel'):
    run(tmp_path / 'new', {'parallel.distributed': True})
  with pytest.raises(UserError, match='--init_from starts from the weights'):
    run(tmp_path / 'new', init_from=str(tmp_path / 'run'))
  assert not (tmp_path / 'new').exists()
  # Without its plan, a run goes on to its target.
  (tmp_path / 'run/plan.json').unlink()
  lines = run(tmp_path / 'run', {'total_steps': 4})
  assert any('has lost its plan.json' in line for line in lines)
  assert latest(tmp_path / 'run')[1]['step'] == 4


def test_mistakes_are_answered_in_a_line(tmp_path):
  workdir = f'--workdir={tmp_path}/run'
  cases = {
    "budget '10x' is not a time": ['train', '--budget=10x', workdir],
    'budget 0m is out of range': ['train', '--budget=0m', workdir],
    "budget '-5m' is not a time": ['plan', '--budget=-5m'],
    '--budget=TIME is needed': ['plan', '--data=sample'],
    '--kind belongs to a plan for --devices': [
      *('plan', '--budget=1m', '--data=sample', '--kind=h100')
    ],
    'the text is small, or token ids already': [
      *('prepare_data', '--config=configs/smoke.py', '--share=1/2', workdir)
    ],
    'the text nix.txt does not exist': [
      *('train', '--budget=1m', '--data=nix.txt', workdir)
    ],
    '--budget chooses the whole config': [
      *('train', '--budget=1m', '--config=smoke', workdir)
    ],
    'expected an integer': [
      *('plan', '--budget=1m', '--config.model.n_embd=wide')
    ],
    'a budget chooses them when': [
      *('prepare_data', '--config=configs/budget.py:1m', workdir)
    ],
  }
  done = run_all([[f'launch.{name}', *args] for name, *args in cases.values()])
  for one, message in zip(done, cases):
    assert_refused(one, message)
  assert not (tmp_path / 'run').exists()


def test_a_plan_is_printed_for_readers_and_as_json():
  args = ['launch.plan', '--budget=2m', '--data=sample']
  args.append('--config.total_steps=50')
  table, whole = run_all([args, [*args, '--json']])
  assert table.code == whole.code == 0, table.err + whole.err
  assert table.out.startswith('plan for 2m:\n  text ')
  found = json.loads(whole.out)
  assert found.keys() == {'text', 'machine', 'plan'}
  now = found['plan']['now']
  assert now['steps'] == now['options']['total_steps'] == 50
  assert 0 < now['bits_per_byte'] < 4


@pytest.mark.slow
def test_a_real_run_ends_in_time_and_is_repeated_when_killed(tmp_path):
  """A process of 25 s; then killed at three moments of a repetition."""
  seconds, args = 25, ['--config=configs/budget.py:25s', *ARGS]
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  began = time.perf_counter()
  out, _ = train(whole, *args)
  used = time.perf_counter() - began
  assert 'plan for 25s:' in out and 'measured, total_steps is' in out
  assert 0.85 * seconds < used < 1.03 * seconds
  # What follows repeats the run by its record, from the first step.
  shutil.copytree(whole, cut)
  for which in ('latest', 'best'):
    shutil.rmtree(cut / 'checkpoints' / which)
    (cut / 'checkpoints' / which).mkdir()
  process = Training(cut, *args)
  process.wait_for('step 0 | val')
  process.kill()
  every = saved(whole)['eval']['every']
  point = kill_at('os.mkdir', f'best/{2 * every}.orbax-checkpoint-tmp')
  train(cut, *args, signal_at=point, code=-signal.SIGKILL)
  train(cut, *args)
  assert_equal_runs(cut, whole)
