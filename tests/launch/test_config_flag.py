"""Configs: every key is explained, presets set what differs, typos fail."""

import ast
import importlib
import inspect
import json
import pathlib
import re

import pytest
from ml_collections import ConfigDict

import configs
from configs import default
from gpt.config_check import check_config
from gpt.errors import UserError
from gpt.runs.config_file import flatten
from tests.support.commands import assert_refused, run_all

CONFIG_FILES = sorted(
  path.stem
  for path in pathlib.Path(configs.__file__).parent.glob('*.py')
  if path.stem not in ('__init__', 'default')
)


def load(name):
  return importlib.import_module(f'configs.{name}')


def test_every_key_of_the_default_has_a_comment_above_it():
  source = inspect.getsource(default.get_config)
  lines = source.splitlines()
  groups = {'config'}
  undocumented, keys = [], 0
  for node in ast.parse(source).body[0].body:
    if not isinstance(node, ast.Assign):
      continue
    targets = [ast.unparse(target) for target in node.targets]
    if 'ConfigDict' in ast.unparse(node.value):  # config.opt = opt = ...
      groups.update(targets)
      continue
    assert targets[0].split('.')[0] in groups, targets
    keys += 1
    if not lines[node.lineno - 2].strip().startswith('#'):
      undocumented.append(targets[0])
  assert undocumented == []
  assert keys == len(flatten(default.get_config().to_dict()))


@pytest.mark.parametrize('name', CONFIG_FILES)
def test_config_file_sets_known_keys_to_usable_values_of_their_type(name):
  known = flatten(default.get_config().to_dict())
  given = flatten(load(name).get_config().to_dict())
  assert given.keys() == known.keys()
  if name == 'budget':  # What it leaves open: tests/planning/test_plan.py.
    return
  assert {k: type(v) for k, v in given.items()} == {
    k: type(v) for k, v in known.items()
  }
  check_config(load(name).get_config())


@pytest.mark.parametrize('name', CONFIG_FILES)
def test_config_file_tells_its_story(name):
  """The command, the parameters, and a loss or why there is none."""
  doc = load(name).__doc__
  if name == 'budget':
    assert '    rgpt train --budget=10m --data=' in doc
    return  # Parameters and loss are what it chooses and predicts.
  assert f'    rgpt train --config={name} ' in doc
  assert re.search(r'\d(M| thousand) parameters', doc)
  assert re.search(
    r'\d\s+nats|bits/byte|Never run|No full run|Neither speed nor|loss', doc
  )


@pytest.mark.parametrize('name', ['default', *CONFIG_FILES])
def test_config_can_be_locked_and_is_its_own_copy(name):
  config = load(name).get_config()
  assert isinstance(config, ConfigDict)
  config.lock()
  with pytest.raises((KeyError, AttributeError)):
    config.learning_rate = 1.0
  with pytest.raises((KeyError, AttributeError)):
    config.model.layers = 2
  config.model.n_layer = 99
  assert load(name).get_config().model.n_layer != 99


@pytest.mark.parametrize(
  'preset, shape, batch_size',
  [
    ('xs', (116, 4, 3), 64),
    ('s', (128, 4, 8), 64),
    ('ds', (128, 4, 12), 64),
    ('m', (192, 6, 6), 64),
    ('l', (256, 8, 6), 64),
    ('deep', (192, 6, 16), 16),
    ('xl', (384, 8, 8), 64),
  ],
)
def test_preset_is_randygpts(preset, shape, batch_size):
  config = load(f'model_{preset}').get_config()
  model, opt = config.model, config.opt
  assert (model.n_embd, model.n_head, model.n_layer) == shape
  assert (model.block_size, config.batch_size) == (256, batch_size)
  assert (model.arch, model.dropout) == ('randy', 0.1)
  assert (config.lr, config.min_lr) == (1e-4, 1e-5)
  assert (opt.b1, opt.b2, opt.eps) == (0.9, 0.999, 1e-8)
  assert (opt.weight_decay, opt.clip, opt.clip_value) == (0.1, 'element', 1.0)
  assert (opt.schedule, opt.decay_fraction) == ('randy', 0.4)
  assert (opt.plateau_patience, opt.plateau_factor) == (30, 0.5)
  assert opt.plateau_max_reductions == 3
  assert (config.eval.every, config.eval.windows) == (25, 50)
  assert config.data.val_fraction == 0.1


@pytest.mark.parametrize(
  'group, key, value, words',
  [
    (None, 'batch_size', 0, 'batch_size 0 must be at least 1'),
    (None, 'total_steps', 0, 'total_steps 0 must be at least 1'),
    (None, 'seed', -1, 'seed -1 must not be negative'),
    (None, 'seed', 2**32, 'seed 4294967296 must be below 2^32'),
    (None, 'lr', float('inf'), 'lr inf is not a finite number'),
    ('opt', 'weight_decay', float('nan'), 'opt.weight_decay nan is not a fin'),
    ('eval', 'every', 0, 'eval.every 0 must be at least 1'),
    ('eval', 'windows', 0, 'eval.windows 0 must be at least 1'),
    ('checkpoint', 'every', -5, 'checkpoint.every -5 must not be negative'),
    ('checkpoint', 'keep', 0, 'checkpoint.keep 0 must be at least 1'),
    ('opt', 'ema_decay', 1.0, 'opt.ema_decay 1.0 is not in [0, 1)'),
    ('opt', 'schedule', 'cosine', "opt.schedule 'cosine' is not known"),
    ('opt', 'clip', 'norm', "opt.clip 'norm' is not known"),
    ('opt', 'name', 'adam', "opt.name 'adam' is not known"),
    ('opt', 'plateau_factor', 0.0, 'opt.plateau_factor 0.0'),
    ('opt', 'plateau_factor', 1.5, 'opt.plateau_factor 1.5'),
    ('opt', 'plateau_patience', -1, 'opt.plateau_patience -1'),
    ('opt', 'plateau_max_reductions', -1, 'opt.plateau_max_reductions -1'),
    ('model', 'n_head', 7, 'n_embd 256 is not divisible by n_head 7'),
    ('parallel', 'micro_batch_size', -1, 'parallel.micro_batch_size -1'),
    ('parallel', 'num_cpu_devices', -1, 'parallel.num_cpu_devices -1'),
    ('opt', 'warmup_steps', 5, 'opt.schedule randy has no warmup'),
    ('sample', 'max_tokens', 0, 'sample.max_tokens 0 must be at least 1'),
    ('sample', 'top_p', 0.0, 'sample.top_p 0.0'),
  ],
)
def test_an_impossible_value_is_rejected_before_anything_starts(
  group, key, value, words
):
  config = default.get_config()
  (config[group] if group else config)[key] = value
  with pytest.raises(UserError) as error:
    check_config(config)
  assert words in str(error.value)


def test_a_start_that_cannot_work_fails_at_once_and_makes_nothing(tmp_path):
  saved = {**load('default').get_config().to_dict(), 'total_steps': 'many'}
  (tmp_path / 'damaged').mkdir()
  (tmp_path / 'damaged' / 'config.json').write_text(json.dumps(saved))
  workdir = tmp_path / 'run'
  train = ['launch.train', '--config=configs/smoke.py', f'--workdir={workdir}']
  cases = {
    "no config key 'learning_rate'": [*train, '--config.learning_rate=1'],
    'mean --config.model.n_layer?': [*train, '--config.modle.n_layer=1'],
    '--config.total_steps=many: expected an int': [
      *train,
      '--config.total_steps=many',
    ],
    "config.json: total_steps is 'many'; allowed: ": [
      'launch.train',
      f'--workdir={tmp_path / "damaged"}',
    ],
    'model.block_size is 0; it must be at least 1': [
      'launch.prepare_data',
      '--report',
      '--config.data.path=sample',
      '--config.model.block_size=0',
    ],
  }
  done = run_all([*cases.values()], preload=('launch.cli', 'gpt.config_check'))
  for one, message in zip(done, cases):
    assert_refused(one, message)
  assert not workdir.exists()
