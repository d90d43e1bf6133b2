"""Runs that train adapters: their base, their checkpoints, killed, loaded."""

import json
import shutil
import signal

import jax
import numpy as np
import pytest

from configs import smoke
from gpt.errors import UserError
from gpt.formats.convert import export
from gpt.formats.randygpt import read_rgpt, to_params
from gpt.runs import base as base_record
from gpt.runs import checkpoint, info
from gpt.runs.checkpoint import LATEST
from gpt.runs.load import load_model, params_sha256
from gpt.train import train_and_evaluate
from gpt.training import lora
from tests.support.train_process import (
  Training,
  kill_at,
  latest,
  snapshot,
  timeless,
  train,
)
from tests.support.train_runs import ARGS, refused, run_here
from tests.support.workdirs import launch

LORA = {'opt.lora_rank': 2, 'lr': 1e-2}
LORA_ARGS = [*ARGS, *(f'--config.{key}={value}' for key, value in LORA.items())]


@pytest.fixture(scope='module')
def base(once):
  """A run of full training, the base of all others; not to be changed."""

  def make(path):
    run_here(path / 'run', {'total_steps': 6})

  return once('lora-base', make) / 'run'


@pytest.fixture(scope='module')
def tuned(once, base):
  """(workdir, log lines) of a run with adapters; not to be changed."""

  def make(path):
    _, lines = run_here(path / 'run', LORA, init_from=str(base))
    (path / 'log').write_text('\n'.join(lines))

  path = once('lora-tuned', make)
  return path / 'run', (path / 'log').read_text()


@pytest.fixture
def copied(tuned, tmp_path):
  return shutil.copytree(tuned[0], tmp_path / 'tuned')


# --- training


def test_a_run_trains_adapters_alone_and_names_its_base(base, tuned):
  workdir, log = tuned
  assert f'adapting the weights of {base}' in log
  assert 'LoRA: rank 2, alpha 16, targets all: 1,152 parameters' in log
  assert 'no RGPT files' in log and 'launch.export merges them' in log
  assert not list(workdir.glob('*.bin'))
  record = json.loads((workdir / 'base.json').read_text())
  assert record['source'] == str(base)
  loaded = load_model(base)
  assert record['fingerprint'] == base_record.fingerprint(
    loaded.cfg, loaded.params
  )
  for path in workdir.glob('checkpoints/*/*'):
    saved = checkpoint.restore_params(path)
    assert set(saved) == {'block_0'}
    assert saved['block_0']['wq']['a'].shape == (32, 2)


def test_the_loss_falls_and_is_that_of_the_merged_model(base, tuned):
  lines = timeless(tuned[0])
  losses = [line['val_loss'] for line in lines if 'val_loss' in line]
  before = [line['val_loss'] for line in timeless(base) if 'val_loss' in line]
  assert losses[0] == pytest.approx(before[-1], abs=1e-5)  # B is zero.
  assert losses[-1] < losses[0]


def test_loading_merges_the_adapters(base, tuned):
  loaded = load_model(tuned[0], LATEST)
  adapters, _ = latest(tuned[0])
  wanted = lora.merge(load_model(base).params, adapters, 16.0)
  assert params_sha256(loaded.params) == params_sha256(wanted)
  assert params_sha256(loaded.params) != params_sha256(load_model(base).params)


def test_another_alpha_in_config_json_is_noticed(copied):
  """No shape depends on it, but the weights do."""
  path = copied / 'config.json'
  config = json.loads(path.read_text())
  config['opt']['lora_alpha'] = 32.0
  path.write_text(json.dumps(config))
  with pytest.raises(
    UserError, match='opt.lora_alpha is 32.0, but the weights'
  ):
    load_model(copied)


def test_killed_and_resumed_equals_uninterrupted(base, tmp_path):
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  args = [*LORA_ARGS, f'--init_from={base}', '--config.opt.ema_decay=0.9']
  train(whole, *args)
  for point in (
    kill_at('os.rename', 'base.json'),
    kill_at('os.mkdir', 'best/4.orbax-checkpoint-tmp'),
    kill_at('os.mkdir', 'latest/9.orbax-checkpoint-tmp'),
  ):
    process = Training(parts, *args, signal_at=point)
    assert process.finish()[0] == -signal.SIGKILL
  out, _ = train(parts, *args)
  assert 'resuming from step' in out
  assert timeless(parts) == timeless(whole)
  assert (parts / 'base.json').read_bytes() == (
    whole / 'base.json'
  ).read_bytes()
  for one, two in zip(*(latest(workdir)[:1] for workdir in (parts, whole))):
    jax.tree.map(np.testing.assert_array_equal, one, two)
  metas = [latest(workdir)[1] for workdir in (parts, whole)]
  assert metas[0]['checksum'] == metas[1]['checksum']


def test_all_weights_can_be_trained_from_adapters(base, tuned, tmp_path):
  run_here(tmp_path, {'total_steps': 1}, init_from=str(tuned[0]))
  assert set(latest(tmp_path)[0]) == set(load_model(base).params)
  # It started from the merged weights.
  first = next(line for line in timeless(tmp_path) if 'val_loss' in line)
  best = min(x['val_loss'] for x in timeless(tuned[0]) if 'val_loss' in x)
  assert first['val_loss'] == pytest.approx(best, abs=1e-5)


# --- the base


def test_a_base_that_moved_is_named_once(base, copied, tmp_path):
  moved = shutil.copytree(base, tmp_path / 'elsewhere')
  record = json.loads((copied / 'base.json').read_text())
  record |= {'source': str(tmp_path / 'gone'), 'beside': '../gone'}
  (copied / 'base.json').write_text(json.dumps(record))
  with pytest.raises(UserError, match=r'is not there.*name its place with'):
    load_model(copied)
  assert load_model(copied, base_at=str(moved)).step
  assert 'name its place with --base=PATH' in refused(copied, LORA)
  run_here(copied, {**LORA, 'total_steps': 13}, base=str(moved))
  assert load_model(copied).step  # The new place is recorded.
  assert json.loads((copied / 'base.json').read_text())['source'] == str(moved)


def test_a_run_and_its_base_can_move_together(base, tuned, tmp_path):
  old, new = tmp_path / 'old', tmp_path / 'new'
  shutil.copytree(base, old / 'base')
  run_here(old / 'run', {**LORA, 'total_steps': 1}, init_from=f'{old}/base')
  old.rename(new)
  assert load_model(new / 'run').step == 1


def test_a_base_that_changed_is_refused(base, copied, tmp_path):
  other = tmp_path / 'other'
  run_here(other, {'total_steps': 7})
  before = snapshot(copied)
  with pytest.raises(UserError, match=f'{other} holds other weights now'):
    load_model(copied, base_at=str(other))
  text = refused(copied, LORA, base=str(other))
  assert 'holds other weights now' in text and '--base=PATH' in text
  assert snapshot(copied) == before


def test_impossible_starts_are_refused(base, tuned, tmp_path):
  text = refused(tmp_path / 'none', LORA)
  assert 'name it with --init_from=WORKDIR' in text
  text = refused(tmp_path / 'twice', LORA, init_from=str(tuned[0]))
  assert f'start from its base, {base}' in text
  text = refused(
    tmp_path / 'shape', {**LORA, 'model.n_embd': 64}, init_from=str(base)
  )
  assert 'do not fit this config' in text
  text = refused(tmp_path / 'full', init_from=str(base), base=str(base))
  assert '--base is for runs with adapters' in text
  assert not list(tmp_path.iterdir())  # No data or tokenizer.


@pytest.mark.parametrize(
  'key, value',
  [('opt.lora_rank', 4), ('opt.lora_alpha', 8.0), ('opt.lora_targets', 'wq')],
)
def test_what_adapters_are_cannot_change_on_resume(copied, key, value):
  before = snapshot(copied)
  assert key in refused(copied, {**LORA, key: value})
  assert snapshot(copied) == before


def test_a_full_run_cannot_turn_into_adapters(base, tmp_path):
  workdir = shutil.copytree(base, tmp_path / 'run')
  config = json.loads((workdir / 'config.json').read_text())
  for key in ('lora_rank', 'lora_alpha', 'lora_targets'):
    del config['opt'][key]  # As an older version wrote it.
  (workdir / 'config.json').write_text(json.dumps(config))
  assert 'opt.lora_rank' in refused(workdir, LORA)
  run_here(workdir, {'total_steps': 7})


def test_info_names_the_base(base, tuned):
  facts = info.describe(load_model(tuned[0]), tuned[0])
  assert facts['base']['source'] == str(base)
  assert f'adapters of rank 2 merged into {base}' in info.page(facts)
  assert info.describe(load_model(base), base)['base'] is None


@pytest.mark.slow
def test_a_recipe_takes_over_the_model_of_its_base(base, tmp_path):
  """The launcher: options that decide what the weights are; others stay."""
  args = (
    '--config=model_s',
    f'--init_from={base}',
    f'--workdir={tmp_path / "run"}',
    '--config.opt.lora_rank=1',
    '--config.data.path=sample',
    '--config.total_steps=1',
    '--config.batch_size=2',
    '--config.eval.full_at_end=False',
    '--config.sample.max_tokens=2',
  )
  launch('train', *args)
  config = json.loads((tmp_path / 'run/config.json').read_text())
  assert config['model']['n_embd'] == 32 and config['model']['n_layer'] == 1
  out, _ = launch('train', *args)  # The same command again.
  assert 'Nothing to train' in out
  _, err = launch('train', *args, '--config.model.n_embd=64', code=2)
  assert 'model.n_embd: 32 -> 64' in err


# --- exports


def test_exports_hold_merged_weights(tuned, tmp_path):
  loaded = load_model(tuned[0])
  _, _, notes = export(tuned[0], 'best', 'rgpt', tmp_path / 'x.bin')
  assert 'merged' in notes[0]
  cfg = loaded.cfg
  found = read_rgpt(tmp_path / 'x.bin', cfg.n_embd, cfg.n_layer, cfg.block_size)
  assert params_sha256(to_params(found)[0]) == params_sha256(loaded.params)


def test_the_smallest_config_for_documentation_works(base, tmp_path):
  """As in docs/adapting.md: any recipe, --init_from and a rank."""
  config = smoke.get_config()
  config.model.n_layer = 1
  config.opt.lora_rank = 1
  config.total_steps = 1
  result = train_and_evaluate(config, tmp_path, init_from=str(base))
  assert result.outcome == 'finished'
