"""Whole runs: the files they leave, their targets, and refused starts.

`reference` is a run that nothing happened to.
"""

import json
import re
import shutil
import signal

import numpy as np
import pytest

from configs import smoke
from gpt import devices
from gpt.runs import checkpoint, metrics
from gpt.runs import evaluate as full_pass
from gpt.runs.checkpoint import BEST, LATEST
from gpt.runs.config_file import read_config
from gpt.runs.console import Console
from gpt.runs.load import load_model
from gpt.runs.workdir import lock_workdir
from gpt.tokenizers import load_tokenizer
from gpt.training.evaluation import Evaluator
from gpt.training.plateau import Plateau
from tests.support.train_process import (
  kill_at,
  latest,
  snapshot,
  steps_of,
  timeless,
  train,
)
from tests.support.train_runs import ARGS, SETTINGS, refused, run_here

# --- a run that nothing happens to


def test_workdir_is_complete(reference):
  workdir, _ = reference
  assert {path.name for path in workdir.iterdir()} == {
    'config.json',
    'data.json',
    'tokenizer',
    'cache',
    'metrics.jsonl',
    'checkpoints',
    'checkpoint.bin',
    'checkpoint_best.bin',
    'samples.txt',
    '.lock',
  }
  assert {path.name for path in (workdir / 'checkpoints').iterdir()} >= {
    LATEST,
    BEST,
  }
  config = smoke.get_config()
  for key, value in SETTINGS.items():
    group, _, name = key.rpartition('.')
    (config[group] if group else config)[name] = value
  saved = json.loads((workdir / 'config.json').read_text())
  assert saved.pop('sealed_checkpoints') is True
  assert saved == {'format_version': 1, **config.to_dict()}
  assert latest(workdir)[1]['step'] == 12
  assert [p.name for p in sorted((workdir / 'checkpoints/best').iterdir())] == [
    str(latest(workdir)[1]['plateau']['best_step'])
  ]


def test_metrics_hold_every_step_and_eval_once(reference):
  workdir, _ = reference
  assert steps_of(workdir) == [
    (0, 'val_loss'),
    *(
      (step, kind)
      for step in range(1, 13)
      for kind in (('loss',), ('loss', 'val_loss'))[step % 2 == 0]
    ),
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
    r'loss \d\.\d{4}',
    r'val \d\.\d{4} ppl \d+\.\d\d',
    r'lr \d\.\d\de-\d\d',
    r'best \d\.\d{4} @\d+',
    r'[\d.]+ ms/step [\d.]+K? tok/s',
    r'\d+:\d\d elapsed, 0:00 left',
    r'patience \d/1',
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


@pytest.fixture(scope='module')
def short(tmp_path_factory):
  """(workdir, Result) of a run of 4 steps; not to be changed."""
  workdir = tmp_path_factory.mktemp('short') / 'run'
  result, _ = run_here(workdir, {'total_steps': 4, 'tensorboard': True})
  return workdir, result


@pytest.fixture
def short_copy(short, tmp_path):
  return shutil.copytree(short[0], tmp_path / 'short')


def test_tensorboard_files_are_written_if_asked_for(short, reference):
  files = list(short[0].glob('tensorboard/events.out.tfevents.*'))
  assert files and files[0].stat().st_size > 100
  assert not (reference[0] / 'tensorboard').exists()


# --- the target, and beyond


def test_finished_run_has_nothing_to_train_and_is_left_alone(reference):
  workdir, _ = reference
  before = snapshot(workdir)
  out, _ = train(workdir, *ARGS)
  assert out.splitlines()[-1] == (
    'Already at step 12 (target 12). Nothing to train.'
  )
  assert snapshot(workdir) == before


def test_additional_steps_go_beyond_the_target(short, short_copy):
  first, workdir = short[1], short_copy
  result, lines = run_here(workdir, {'total_steps': 4}, additional_steps=3)
  assert (first.step, result.step, result.outcome) == (4, 7, 'finished')
  assert read_config(workdir)['total_steps'] == 7
  assert any(line.startswith('steps 4 -> 7 of') for line in lines)
  assert not any('total_steps changed' in line for line in lines)
  assert steps_of(workdir)[-1] == (7, 'outcome')
  assert latest(workdir)[1]['step'] == 7
  result, lines = run_here(workdir, {'total_steps': 7})
  assert result.outcome == 'nothing' and 'Already at step 7' in lines[-1]
  # The config still has the first target, which is no change to report.
  result, lines = run_here(workdir, {'total_steps': 4}, additional_steps=1)
  assert result.step == 8
  assert not any('total_steps changed' in line for line in lines)


def test_early_stop_ends_the_run_and_is_remembered(tmp_path):
  changes = {
    'opt.plateau_max_reductions': 1,
    'lr': 1e-12,
    'min_lr': 0.0,
    'opt.weight_decay': 0.0,
    'total_steps': 50,
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
  assert 'The run stopped early; --additional_steps=N continues it.' in lines
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
    workdir,
    {'total_steps': 1, 'data.path': str(text)},
    init_from=str(reference[0]),
  )
  name = 'tokenizer/tokenizer.json'
  assert (workdir / name).read_bytes() == (reference[0] / name).read_bytes()


@pytest.mark.parametrize(
  'changes, words',
  [
    (
      {'model.n_layer': 2},
      'block_1.fc1 is not there, the config has (32, 128)',
    ),
    (
      {'model.n_embd': 36},
      'block_0.fc1 is (32, 128), the config has (36, 144)',
    ),
  ],
)
def test_weights_that_do_not_fit_are_refused(
  reference, tmp_path, changes, words
):
  text = refused(tmp_path, changes, init_from=str(reference[0]))
  assert 'do not fit this config' in text and words in text


def test_a_missing_source_of_weights_is_named(tmp_path):
  text = refused(tmp_path / 'run', init_from=str(tmp_path / 'no.bin'))
  assert 'no.bin' in text
  assert not (tmp_path / 'run').exists()


# --- what is refused, and left alone


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'model.n_layer': 3}, ['model.n_layer: 1 -> 3']),
    (
      {'model.arch': 'microgpt', 'model.n_head': 2},
      ["model.arch: 'randy' -> 'microgpt'", 'model.n_head: 4 -> 2'],
    ),
    (
      {'data.tokenizer': 'sentencepiece'},
      ["data.tokenizer: 'char' -> 'sentencepiece'"],
    ),
    ({'opt.name': 'muon'}, ["opt.name: 'adamw' -> 'muon'"]),
    ({'opt.ema_decay': 0.9}, ['opt.ema_decay: 0.0 -> 0.9']),
  ],
)
def test_run_is_not_continued_as_another(reference, changes, words):
  workdir = reference[0]
  before = snapshot(workdir)
  text = refused(workdir, {'total_steps': 20, **changes})
  for word in ('holds a run with another model, tokenizer or optim', *words):
    assert word in text
  assert snapshot(workdir) == before


@pytest.mark.parametrize(
  'files',
  [
    {'checkpoint.bin': b'RGPT0003'},
    {'checkpoint_best.bin': b'RGPT0003', 'notes.txt': b'mine'},
    {'metrics.jsonl': b'{"loss": 1}'},
    {'config.json': b'{"architectures": ["LlamaForCausalLM"]}'},
    {'config.json': b'[1, 2]'},
    {'config.json': b'{"model": '},
  ],
)
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
  with lock_workdir(workdir):
    _, err = train(workdir, *ARGS, code=2)
  assert 'error: another process is training in' in err
  assert [path.name for path in workdir.iterdir()] == ['.lock']


def test_a_workdir_that_cannot_be_created_is_an_error(tmp_path):
  file = tmp_path / 'file'
  file.write_text('mine')
  for workdir in (file, file / 'run'):
    assert f'cannot make the directory {workdir}' in refused(workdir)


def test_kernel_of_another_machine_is_refused_for_training(tmp_path):
  text = refused(tmp_path / 'run', {'model.attention': 'cudnn'})
  assert 'model.attention=cudnn needs a CUDA GPU' in text
  assert 'this machine has cpu: set --config.model.attention=auto' in text


def test_lower_target_than_reached_changes_nothing(short_copy):
  path = short_copy / 'metrics.jsonl'
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(''.join(lines[:-1]))  # As if it had been interrupted.
  before = snapshot(short_copy)
  result, lines = run_here(short_copy, {'total_steps': 2})
  assert lines[-1] == 'Already at step 4 (target 2). Nothing to train.'
  assert result.outcome == 'nothing' and snapshot(short_copy) == before


def test_tokenizer_of_a_failed_or_killed_start_is_not_kept(
  trained_workdir, tmp_path
):
  """The next start is a new one, on another text perhaps."""
  texts = {
    'short': 'too short',
    'first': 'first text of first, and long enough\n' * 50,
    'greek': 'αβγδεζηθικλμνξοπρστυφχψω, and long enough\n' * 50,
  }
  for name, text in texts.items():
    (tmp_path / name).write_text(text, encoding='utf-8')
  workdir = tmp_path / 'run'

  def changes(name):
    return {'data.path': str(tmp_path / name), 'total_steps': 1}

  # Failed with the tokenizer of old weights, then with one of its own.
  refused(workdir, changes('typo'), init_from=str(trained_workdir))
  assert not (workdir / 'tokenizer').exists()
  assert 'too short for the window' in refused(workdir, changes('short'))
  train(
    workdir,
    *ARGS,
    f'--config.data.path={tmp_path / "first"}',
    signal_at=kill_at('os.mkdir', '/cache'),
    code=-signal.SIGKILL,
  )
  assert len(load_tokenizer(workdir).encode('first')) == 5
  _, lines = run_here(workdir, {**changes('greek'), 'sample.prompt': 'α'})
  assert not any('dropped' in line for line in lines)
  assert len(load_tokenizer(workdir).encode('αω')) == 2


# --- what only a whole run shows


def test_a_plateau_cuts_the_rate_that_is_trained_with(tmp_path):
  """Every eval is worse than the one before: a rate of 3 diverges at once."""
  changes = {
    'lr': 3.0,
    'min_lr': 1.0,
    'opt.schedule': 'wsd',
    'opt.decay_fraction': 0.0,
    'eval.every': 1,
    'total_steps': 8,
    'checkpoint.every': 0,
  }
  result, _ = run_here(tmp_path, changes)
  lines = metrics.read(tmp_path / metrics.FILE)
  rates = {x['step']: x['lr'] for x in lines if 'lr' in x}
  patience = {x['step']: x['best_val_loss'] for x in lines if 'patience' in x}
  expected = 3.0
  for step in range(1, 9):
    assert rates[step] == pytest.approx(max(expected, 1.0)), (step, rates)
    if step > 1 and patience[step] == patience[step - 1]:  # No new best.
      expected /= 2
  assert min(rates.values()) == 1.0
  assert result.outcome == 'finished'


def test_what_is_measured_is_the_average_of_the_weights(tmp_path):
  changes = {'opt.ema_decay': 0.99, 'eval.full_at_end': True, 'total_steps': 6}
  result, _ = run_here(tmp_path, changes)
  path = checkpoint.find(tmp_path, LATEST)
  loaded = load_model(tmp_path, 'latest')
  with full_pass.open_dataset(loaded, tmp_path) as (
    dataset,
    split,
  ):
    evaluate = Evaluator(loaded.model, devices.create_mesh(1), dataset)
    average = evaluate(checkpoint.restore_params(path), split, None)
    params = checkpoint.restore_item(path, 'params', None)
    raw = evaluate(params, split, None)
    windows = loaded.config['eval']['windows']
    quick = evaluate(loaded.params, split, windows)['nats_per_token']
  final = result.final['final']['nats_per_token']
  assert average['nats_per_token'] == pytest.approx(final, rel=1e-6)
  assert abs(raw['nats_per_token'] - final) > 1e-3
  (line,) = [
    x
    for x in metrics.read(tmp_path / metrics.FILE)
    if x['step'] == 6 and 'val_loss' in x
  ]
  assert line['val_loss'] == pytest.approx(quick, rel=1e-6)


def test_the_training_loss_is_the_mean_over_targets():
  console = Console(smoke.get_config(), metrics.Clock(), 0, [(2.0, 10.0)])
  for loss, tokens in ((4.0, 30.0), (0.0, 0.0)):
    console.add({'loss': loss, 'lr': 0.1, 'tokens': tokens}, timed=True)
  quick = {'nats_per_token': 1.0, 'ppl': 1.0, 'bits_per_byte': 1.0}
  values = console.report(3, quick, Plateau())
  assert values['train_loss'] == pytest.approx(3.5)
  console.add({'loss': 0.0, 'lr': 0.1, 'tokens': 0.0}, timed=True)
  assert 'train_loss' not in console.report(4, quick, Plateau())
