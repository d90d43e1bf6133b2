"""config.json and checkpoints carry a format number; newer ones are refused."""

import json
import shutil

import pytest
from ml_collections import ConfigDict

from gpt.errors import UserError
from gpt.runs import checkpoint
from gpt.runs.checkpoint_meta import are_sealed
from gpt.runs.checkpoint_writer import Checkpoints
from gpt.runs.config_file import CONFIG, read_config, save_config
from gpt.runs.format_version import (
  DIVIDED_VERSION,
  FORMAT_KEY,
  FORMAT_VERSION,
  NewerFormat,
)
from gpt.runs.load import load_model


@pytest.fixture
def copy(trained_workdir, tmp_path):
  """A copy of the trained run, to be edited."""
  return shutil.copytree(trained_workdir, tmp_path / 'run')


def edit(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_both_files_have_the_format_number(trained_workdir):
  saved = json.loads((trained_workdir / CONFIG).read_text())
  assert saved[FORMAT_KEY] == FORMAT_VERSION
  assert FORMAT_KEY not in read_config(trained_workdir)
  meta = checkpoint.read_meta(checkpoint.find(trained_workdir))
  assert meta[FORMAT_KEY] == FORMAT_VERSION


@pytest.mark.parametrize('version', [FORMAT_VERSION + 1, 'two', None])
def test_a_newer_config_is_refused_whatever_else_it_has(tmp_path, version):
  text = json.dumps({FORMAT_KEY: version, 'network': {}})
  (tmp_path / CONFIG).write_text(text)
  with pytest.raises(UserError, match='reads up to 1: upgrade rgpt'):
    read_config(tmp_path)


def test_a_newer_checkpoint_is_no_damaged_one(copy):
  """It is named, neither skipped nor moved aside."""
  meta = checkpoint.find(copy) / 'meta' / 'metadata'
  edit(meta, **{FORMAT_KEY: DIVIDED_VERSION + 1})
  for read in (load_model, Checkpoints):
    with pytest.raises(NewerFormat, match='upgrade rgpt'):
      read(copy)
  assert meta.exists() and not (copy / 'checkpoints' / 'damaged').exists()


def test_metadata_that_is_no_object_is_damage(copy):
  meta = checkpoint.find(copy) / 'meta' / 'metadata'
  meta.write_text('[]')
  assert load_model(copy).which == 'latest'


@pytest.mark.parametrize(
  'change, message',
  [
    ({'opt': None}, 'opt is missing; needed: an object'),
    ({'data': 'text.txt'}, "data is 'text.txt'; allowed: an object"),
    ({'checkpoint': 5}, 'checkpoint is 5; allowed: an object'),
    ({'total_steps': 'many'}, "total_steps is 'many'; allowed: a whole number"),
    ({'total_steps': 1e300}, 'total_steps is 1e.300; allowed: a whole number'),
    ({'seed': True}, 'seed is True; allowed: a whole number'),
    ({'lr': '1e-4'}, "lr is '1e-4'; allowed: a number"),
    ({'model.n_layer': 10**6}, 'n_layer is 1000000; allowed: .* up to 4096'),
    ({'model.n_layer': 2**31}, 'n_layer is 2147483648; allowed: .* up to 4096'),
    ({'model.n_layer': 4000}, 'n_layer is 4000, but the weights in'),
    ({'model.n_head': 2}, 'model.n_head is 2, but the weights in .* with 4'),
    ({'opt.lora_rank': 1}, 'opt.lora_rank is 1, but the weights in .* with 0'),
    ({'model.qk_norm': True}, 'model.qk_norm is True, but the weights in'),
    ({'model.qk_norm': 1}, 'model.qk_norm is 1; allowed: true or false'),
    ({'model.mlp': []}, r'model.mlp is \[\]; allowed: a string'),
    ({'data.path': 5}, 'data: path is 5; allowed: a string'),
    ({'data.packing': 'no'}, "data: packing is 'no'; allowed: true or false"),
    ({'opt.ema_decay': {}}, 'opt: ema_decay is {}; allowed: a number'),
  ],
)
def test_a_config_that_cannot_be_is_named_by_file_and_field(
  copy, change, message
):
  config = json.loads((copy / CONFIG).read_text())
  for key, value in change.items():
    *groups, name = key.split('.')
    (config[groups[0]] if groups else config)[name] = value
  (copy / CONFIG).write_text(json.dumps(config))
  with pytest.raises(UserError, match=message) as e:
    load_model(copy)
  assert str(e.value).startswith(str(copy / CONFIG))


@pytest.mark.parametrize(
  'change',
  [
    {'best_loss': 0.465},
    {'plateau': {'best_loss': 0.465}},
    {'step': 19},
    {'elapsed_s': 0.0},
    {'validation': ''},
    {'model': {}},
    {'meta_checksum': None},
  ],
)
def test_changed_metadata_is_noticed(copy, change):
  meta = checkpoint.find(copy) / 'meta' / 'metadata'
  edit(meta, **change)
  with pytest.raises(UserError, match='has changed since it was written'):
    checkpoint.read_meta(checkpoint.find(copy))
  assert load_model(copy).which == 'latest'  # A damaged best is passed over.


def strip(workdir):
  """Makes every checkpoint look as 0.2 wrote it."""
  for path in workdir.glob('checkpoints/*/*/meta/metadata'):
    meta = json.loads(path.read_text())
    del meta['meta_checksum'], meta['model']
    path.write_text(json.dumps(meta))


def test_metadata_without_checksums_is_not_taken_for_an_older_run(copy):
  strip(copy)
  with pytest.raises(UserError, match='its meta_checksum is None'):
    load_model(copy)
  config = read_config(copy)
  save_config(copy, ConfigDict(config))  # A resume does not forget it.
  with pytest.raises(UserError, match='its meta_checksum is None'):
    load_model(copy)


def test_a_run_of_an_older_version_stays_one_until_its_checkpoints_are_gone(
  copy,
):
  strip(copy)
  edit(copy / CONFIG, sealed_checkpoints=None)
  save_config(copy, ConfigDict(read_config(copy)))
  assert not are_sealed(copy)
  load_model(copy)
  shutil.rmtree(copy / 'checkpoints')
  save_config(copy, ConfigDict(read_config(copy)))
  assert are_sealed(copy)
