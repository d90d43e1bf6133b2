"""Whole runs: killed, interrupted, resumed, refused, out of disk, diverged.

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
from train_process import (
  WRITES,
  Training,
  assert_finite,
  assert_same_run,
  environment,
  kill_at,
  latest,
  snapshot,
  steps_of,
  timeless,
  train,
)

from configs import smoke
from gpt import checkpoint, failures, metrics, run
from gpt.checkpoint import BEST, LATEST
from gpt.errors import UserError
from gpt.train import train_and_evaluate

# Evals and saves out of step, dropout, plateaus, samples: all there is to get
# wrong in a resume.
SETTINGS = {
  'total_steps': 12,
  'model.n_layer': 1,
  'parallel.num_cpu_devices': 2,
  'eval.every': 2,
  'eval.sample': True,
  'eval.full_at_end': True,
  'checkpoint.every': 3,
  'opt.plateau_patience': 1,
  'opt.plateau_max_reductions': 50,
  'sample.max_tokens': 8,
}
ARGS = [f'--config.{key}={value}' for key, value in SETTINGS.items()]


@pytest.fixture(scope='module')
def reference(tmp_path_factory):
  """A finished run and what it printed."""
  workdir = tmp_path_factory.mktemp('reference') / 'run'
  out, err = train(workdir, *ARGS)
  assert err == ''
  return workdir, out


@pytest.fixture(scope='module')
def killed(reference, tmp_path_factory):
  """A run killed while it writes its checkpoint of step 9."""
  workdir = tmp_path_factory.mktemp('killed') / 'run'
  point = kill_at('os.rename', 'latest/9.orbax-checkpoint-tmp')
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


def settings(changes=(), **more):
  """A config for a run in this process, on its four devices."""
  config = smoke.get_config()
  for key, value in {
    **SETTINGS, 'parallel.num_cpu_devices': 4, 'eval.full_at_end': False,
    'eval.sample': False, **dict(changes), **more,
  }.items():
    group, _, name = key.rpartition('.')
    (config[group] if group else config)[name] = value
  return config


class Crash(Exception):
  """Raised in place of a kill where a run goes on in this process."""


def run_here(workdir, changes=(), crash_at='', **kwargs):
  """(Result, lines) of a run in this process; may crash at a printed line."""
  lines = []

  def log(text):
    lines.append(text)
    if crash_at and crash_at in text:
      raise Crash

  if crash_at:
    with pytest.raises(Crash):
      train_and_evaluate(settings(changes), workdir, log=log, **kwargs)
    return None, lines
  return train_and_evaluate(
    settings(changes), workdir, log=log, **kwargs
  ), lines


def refused(workdir, changes=(), **kwargs) -> str:
  with pytest.raises(UserError) as error:
    run_here(workdir, changes, **kwargs)
  return str(error.value)


# --- a run that nothing happens to


def test_workdir_is_complete(reference):
  workdir, _ = reference
  assert {path.name for path in workdir.iterdir()} == {
    'config.json', 'data.json', 'tokenizer', 'cache', 'metrics.jsonl',
    'checkpoints', 'checkpoint.bin', 'checkpoint_best.bin', 'samples.txt',
    '.lock',
  }
  assert {path.name for path in (workdir / 'checkpoints').iterdir()} >= {
    LATEST, BEST
  }
  config = smoke.get_config()
  for key, value in SETTINGS.items():
    group, _, name = key.rpartition('.')
    (config[group] if group else config)[name] = value
  assert json.loads((workdir / 'config.json').read_text()) == config.to_dict()
  assert latest(workdir)[1]['step'] == 12
  assert [p.name for p in sorted((workdir / 'checkpoints/best').iterdir())] == [
    str(latest(workdir)[1]['plateau']['best_step'])
  ]


def test_metrics_hold_every_step_and_eval_once(reference):
  workdir, _ = reference
  assert steps_of(workdir) == [
    (0, 'val_loss'),
    *((step, kind) for step in range(1, 13)
      for kind in (('loss',), ('loss', 'val_loss'))[step % 2 == 0]),
    (12, 'outcome'),
  ]
  lines = metrics.read(workdir / metrics.FILE)
  losses = {x['step']: x['loss'] for x in lines if 'loss' in x}
  evals = [x for x in lines if 'val_loss' in x and x['step']]
  for line in evals:
    step = line['step']
    assert line['train_loss'] == pytest.approx(
      (losses[step - 1] + losses[step]) / 2
    )
    assert line['val_ppl'] == pytest.approx(np.exp(line['val_loss']))
    assert line['tokens_per_s'] == pytest.approx(
      8 * 32 * 1e3 / line['ms_per_step']
    )
  assert evals[-1]['best_val_loss'] == min(x['val_loss'] for x in evals)
  assert evals[-1]['val_loss'] < lines[0]['val_loss'] - 0.5  # It has learnt.
  assert lines[-1]['outcome'] == 'finished'
  assert lines[-1]['full_final_tokens'] > 8 * 32  # Not only some windows.
  elapsed = [line['elapsed_s'] for line in evals]
  assert elapsed == sorted(elapsed) and elapsed[0] > 0


def test_console_has_one_line_for_each_eval(reference):
  _, out = reference
  lines = re.findall(r'^step (\d+)/12 \| .*$', out, re.MULTILINE)
  assert lines == ['2', '4', '6', '8', '10', '12']
  line = next(x for x in out.splitlines() if x.startswith('step 12/12'))
  for pattern in (
    r'loss \d\.\d{4}', r'val \d\.\d{4} ppl \d+\.\d\d', r'lr \d\.\d\de-\d\d',
    r'best \d\.\d{4} @\d+', r'[\d.]+ ms/step [\d.]+K tok/s',
    r'\d+:\d\d elapsed, 0:00 left', r'patience \d/1',
  ):
    assert re.search(pattern, line), (pattern, line)
  assert 'data: the built-in sample text: 300,031 bytes' in out
  assert '17,984 parameters' in out
  assert re.search(r'full validation pass, final weights: \d\.\d{4} nats', out)
  assert f'sample after {"ROMEO:"!r}' in out
  assert 'finished at step 12' in out


def test_samples_are_written_at_every_eval(reference):
  workdir, _ = reference
  text = (workdir / 'samples.txt').read_text()
  steps = re.findall(r'^--- step (\d+)\nROMEO:', text, re.MULTILINE)
  assert steps == ['2', '4', '6', '8', '10', '12']


# --- killed and resumed


def test_killed_and_resumed_equals_uninterrupted(reference, tmp_path):
  """Killed at six moments, one after the other, most of them in a save."""
  workdir = tmp_path / 'run'
  for text in ('tokenizer: char', 'step 0 | val'):
    process = Training(workdir, *ARGS)
    process.wait_for(text)
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
  assert 'cut short while it wrote its last files' in out
  assert_same_run(workdir, reference[0])


def test_run_killed_within_a_save_goes_on_from_the_save_before(
  halfway, reference
):
  before = latest(halfway)[1]['elapsed_s']
  # That may be a best one of step 8: newer than the latest of step 6.
  _, step = newest_of(halfway)[0].split('/')
  assert step in '68'
  out, _ = train(halfway, *ARGS)
  assert f'resuming from step {step}' in out
  assert_same_run(halfway, reference[0])
  assert latest(halfway)[1]['elapsed_s'] > before


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
  """Ctrl-C, then SIGTERM, then Ctrl-C twice; each time the run goes on."""
  workdir = tmp_path / 'run'
  process = Training(workdir, *ARGS)
  process.wait_for('step 0 | val')
  process.send(signal.SIGINT)
  code, out, err = process.finish()
  assert code == 0
  assert 'stopping after this step; once more to leave at once' in err
  step = int(re.search(r'Interrupted at step (\d+)\. Saved in', out)[1])
  assert latest(workdir)[1]['step'] == step
  assert 'Run the same command again to go on.' in out
  assert (workdir / 'checkpoint.bin').exists()

  process = Training(workdir, *ARGS)
  process.wait_for(f'steps {step} -> 12')
  process.send(signal.SIGTERM)
  code, out, _ = process.finish()
  assert code == 0 and 'Interrupted at step' in out
  step = latest(workdir)[1]['step']
  assert step < 12

  # The second one comes while the checkpoint is being written.
  process = Training(
    workdir, *ARGS,
    signal_at=f'{int(signal.SIGINT)} os.mkdir latest/{step + 1}.orbax 1',
  )
  process.wait_for(f'steps {step} -> 12')
  process.send(signal.SIGINT)
  code, out, err = process.finish()
  assert code == 128 + signal.SIGINT, (out, err)
  assert 'Traceback' not in err
  assert latest(workdir)[1]['step'] >= step

  train(workdir, *ARGS)
  assert_same_run(workdir, reference[0])


# --- the target, and beyond


def test_finished_run_has_nothing_to_train_and_is_left_alone(reference):
  workdir, _ = reference
  before = snapshot(workdir)
  out, _ = train(workdir, *ARGS)
  assert out.splitlines()[-1] == (
    'Already at step 12 (target 12). Nothing to train.'
  )
  assert snapshot(workdir) == before


def test_additional_steps_go_beyond_the_target(tmp_path):
  first, _ = run_here(tmp_path, {'total_steps': 4})
  result, lines = run_here(
    tmp_path, {'total_steps': 4}, additional_steps=3
  )
  assert (first.step, result.step, result.outcome) == (4, 7, 'finished')
  assert run.read_config(tmp_path)['total_steps'] == 7
  assert any(line.startswith('steps 4 -> 7 of') for line in lines)
  assert steps_of(tmp_path)[-1] == (7, 'outcome')
  assert latest(tmp_path)[1]['step'] == 7
  result, lines = run_here(tmp_path, {'total_steps': 7})
  assert result.outcome == 'nothing' and 'Already at step 7' in lines[-1]


def test_early_stop_ends_the_run_and_is_remembered(tmp_path):
  changes = {
    'opt.plateau_max_reductions': 1, 'lr': 1e-12, 'min_lr': 0.0,
    'opt.weight_decay': 0.0, 'total_steps': 50,
  }
  result, lines = run_here(tmp_path, changes)
  text = '\n'.join(lines)
  assert result.outcome == 'early stop' and result.step < 50
  assert 'plateau: no new best in 1 evals; peak learning rate x 0.5' in text
  assert f'early stop at step {result.step}: no new best in 1 evals' in text
  assert (tmp_path / 'checkpoint.bin').exists()
  assert latest(tmp_path)[1]['plateau']['stopped']
  again, lines = run_here(tmp_path, changes)
  assert again.outcome == 'nothing' and again.step == result.step
  assert 'The run stopped early; --additional_steps=N goes on.' in lines
  more, _ = run_here(tmp_path, changes, additional_steps=1)
  assert more.step == result.step + 1


# --- new runs from old weights


@pytest.mark.parametrize('source', ['workdir', 'checkpoint_best.bin'])
def test_init_from_starts_a_new_run_from_the_best_weights(
  reference, tmp_path, source
):
  old = reference[0]
  init_from = old if source == 'workdir' else old / source
  result, lines = run_here(
    tmp_path, {'total_steps': 1, 'seed': 7}, init_from=str(init_from)
  )
  assert result.step == 1
  assert f'starting from the weights of {init_from}' in lines
  best = checkpoint.read_meta(checkpoint.find(old, BEST))['best_loss']
  start = timeless(tmp_path)[0]
  assert start['step'] == 0
  assert start['val_loss'] == pytest.approx(best, rel=1e-5)


def test_init_from_keeps_the_tokenizer_of_the_run(reference, tmp_path):
  text = tmp_path / 'other.txt'
  text.write_text('xyz and nothing else\n' * 100)
  workdir = tmp_path / 'run'
  run_here(
    workdir, {'total_steps': 1, 'data.path': str(text)},
    init_from=str(reference[0]),
  )
  name = 'tokenizer/tokenizer.json'
  assert (workdir / name).read_bytes() == (reference[0] / name).read_bytes()


@pytest.mark.parametrize('changes, words', [
  ({'model.n_layer': 2}, 'block_1.fc1 is not there, the config has (32, 128)'),
  ({'model.n_embd': 36}, 'block_0.fc1 is (32, 128), the config has (36, 144)'),
])
def test_weights_that_do_not_fit_are_refused(
  reference, tmp_path, changes, words
):
  text = refused(tmp_path, changes, init_from=str(reference[0]))
  assert 'do not fit this config' in text and words in text


def test_missing_source_of_weights_is_named(tmp_path):
  text = refused(tmp_path / 'run', init_from=str(tmp_path / 'no.bin'))
  assert 'no.bin' in text


# --- what is refused, and left alone


@pytest.mark.parametrize('changes, words', [
  ({'model.n_layer': 3}, ['model.n_layer: 1 -> 3']),
  ({'model.arch': 'microgpt', 'model.n_head': 2},
   ["model.arch: 'randy' -> 'microgpt'", 'model.n_head: 4 -> 2']),
  ({'data.tokenizer': 'sentencepiece'},
   ["data.tokenizer: 'char' -> 'sentencepiece'"]),
  ({'opt.name': 'muon'}, ["opt.name: 'adamw' -> 'muon'"]),
  ({'opt.ema_decay': 0.9}, ['opt.ema_decay: 0.0 -> 0.9']),
])
def test_run_is_not_continued_as_another(reference, changes, words):
  workdir = reference[0]
  before = snapshot(workdir)
  text = refused(workdir, {'total_steps': 20, **changes})
  for word in ('holds a run with another model, tokenizer or optim', *words):
    assert word in text
  assert snapshot(workdir) == before


@pytest.mark.parametrize('files', [
  {'checkpoint.bin': b'RGPT0003'},
  {'checkpoint_best.bin': b'RGPT0003', 'notes.txt': b'mine'},
  {'metrics.jsonl': b'{"loss": 1}'},
  {'config.json': b'{"architectures": ["LlamaForCausalLM"]}'},
  {'config.json': b'[1, 2]'},
  {'config.json': b'{"model": '},
])
def test_unrelated_workdir_is_refused_and_untouched(tmp_path, files):
  for name, data in files.items():
    (tmp_path / name).write_bytes(data)
  before = snapshot(tmp_path)
  text = refused(tmp_path)
  assert str(tmp_path) in text and next(iter(files)) in text
  assert snapshot(tmp_path) == before


def test_two_processes_do_not_train_in_one_workdir(tmp_path):
  workdir = tmp_path / 'run'
  workdir.mkdir()
  with run.lock(workdir):
    _, err = train(workdir, *ARGS, code=2)
  assert 'error: another process is training in' in err
  assert [path.name for path in workdir.iterdir()] == ['.lock']


def test_failed_start_leaves_no_tokenizer_behind(tmp_path):
  """The next start is a new one, on another text perhaps."""
  short, long = tmp_path / 'short.txt', tmp_path / 'long.txt'
  short.write_text('too short')
  long.write_text('quite another text, and long enough\n' * 50)
  workdir = tmp_path / 'run'
  changes = {'total_steps': 1, 'sample.prompt': 'q'}
  text = refused(workdir, {**changes, 'data.path': str(short)})
  assert 'too short for the window' in text
  _, lines = run_here(workdir, {**changes, 'data.path': str(long)})
  assert not any('dropped' in line for line in lines)
  vocabulary = (workdir / 'tokenizer/tokenizer.json').read_text()
  assert 'q' in vocabulary


# --- damage


def test_damaged_latest_checkpoint_costs_a_few_steps(halfway, reference):
  bad, good, *_ = newest_of(halfway)
  for path in halfway.glob(f'checkpoints/{bad}/params/d/*'):
    path.write_bytes(b'')
  out, err = train(halfway, *ARGS)
  assert re.search(f'warning: checkpoint .*{bad} cannot be read', out)
  assert f'{good} is taken' in out and err == ''
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


def test_full_disk_is_said_and_costs_nothing(halfway, reference):
  """No file may grow beyond 20 KB: weights do not fit, small files do."""
  good = halfway / 'checkpoints'
  before = {path: snapshot(good / path) for path in newest_of(halfway)}
  out, err = train(halfway, *ARGS, limit=20_000, code=2)
  assert re.search(r'warning: a checkpoint could not be written by step', out)
  assert 'File too large' in out and 'Is the disk full?' in out
  assert re.search('error: the last checkpoint in .* could not be written', err)
  assert 'earlier ones are whole. Free some space' in err
  for path, files in before.items():
    assert snapshot(good / path) == files
  train(halfway, *ARGS)
  assert_same_run(halfway, reference[0])


# --- divergence


def test_non_finite_loss_stops_the_run_and_keeps_the_good_checkpoint(halfway):
  newest = halfway / 'checkpoints' / newest_of(halfway)[0]
  before = snapshot(newest)
  text = refused(halfway, {'lr': 1e30, 'opt.clip': 'none'})
  assert re.search(r'not a finite number at step (8|9|10|11) \(lr', text)
  assert re.search(r'lr [\d.]+e\+\d\d', text)
  assert '--config.opt.clip=global_norm' in text
  assert f'last good checkpoint is in {halfway}/checkpoints' in text
  assert snapshot(newest) == before
  assert_finite(checkpoint.restore_params(newest))
  # And from there it goes on with a sane learning rate.
  result, _ = run_here(halfway)
  assert result.outcome == 'finished'
  assert_finite(latest(halfway)[0])


def test_last_update_can_be_the_one_that_goes_wrong(tmp_path):
  """What is left of the weights then is not saved."""
  text = refused(tmp_path, {'lr': 1e30, 'opt.clip': 'none', 'total_steps': 1})
  assert 'validation loss is not a finite number at step 1' in text
  assert not list(tmp_path.glob('checkpoints/*/[0-9]*'))


# --- variants, each resumed in the middle


@pytest.mark.parametrize('changes', [
  {'model.arch': 'microgpt', 'opt.schedule': 'linear_warmup',
   'opt.warmup_steps': 4, 'opt.b1': 0.85, 'opt.b2': 0.99, 'opt.clip': 'none',
   'opt.weight_decay': 0.0, 'model.dropout': 0.0},
  {'opt.schedule': 'wsd', 'opt.warmup_steps': 2, 'opt.ema_decay': 0.9},
  {'opt.name': 'muon', 'opt.clip': 'global_norm', 'model.pos': 'rope',
   'data.document_separator': 'blank_line', 'data.document_aware': True},
], ids=['microgpt', 'wsd-ema', 'muon-rope-documents'])
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
  randygpts = 'model.arch' not in changes and 'model.pos' not in changes
  assert (whole / 'checkpoint.bin').exists() == randygpts


def test_tensorboard_files_are_written_if_asked_for(tmp_path):
  run_here(tmp_path, {'tensorboard': True, 'total_steps': 1})
  files = list((tmp_path / 'tensorboard').glob('events.out.tfevents.*'))
  assert files and files[0].stat().st_size > 100


# --- memory


@pytest.mark.parametrize('error', [
  jax.errors.JaxRuntimeError(
    'RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.'
  ),
  jax.errors.JaxRuntimeError('INTERNAL: CUDA error: out of memory'),
  MemoryError(),
])
def test_running_out_of_memory_says_what_to_lower(error):
  with pytest.raises(UserError) as raised:
    with failures.explained(settings(), 'runs/x'):
      raise error
  text = str(raised.value)
  for word in (
    'out of memory', '--config.batch_size (now 8)',
    '--config.parallel.micro_batch_size', '--config.model.block_size (now 32)',
    '--config.model.remat',
  ):
    assert word in text


@pytest.mark.parametrize('error', [
  jax.errors.JaxRuntimeError('INVALID_ARGUMENT: shapes'),
  OSError(2, 'No such file'),
  KeyError('x'),
])
def test_other_errors_are_left_as_they_are(error):
  with pytest.raises(type(error)) as raised:
    with failures.explained(settings(), 'runs/x'):
      raise error
  assert raised.value is error


def test_full_disk_anywhere_is_explained():
  with pytest.raises(UserError, match='cannot write to runs/x: No space left'):
    with failures.explained(settings(), 'runs/x'):
      raise OSError(28, 'No space left on device')


def test_huge_pages_keep_the_process_and_its_signals(tmp_path):
  """The launcher starts itself anew: same process id, same handling."""
  workdir = tmp_path / 'run'
  env = {k: v for k, v in environment().items() if k != 'RGPT_HUGE_PAGES'}
  process = Training(workdir, *ARGS, env=env)
  process.wait_for('step 0 | val')
  process.send(signal.SIGINT)
  code, out, _ = process.finish()
  assert code == 0 and 'Interrupted at step' in out
