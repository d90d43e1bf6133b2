"""config.json and checkpoints carry a format number; newer ones are refused."""

import json
import shutil

import pytest

from gpt.errors import UserError
from gpt.runs import checkpoint
from gpt.runs.checkpoint_writer import Checkpoints
from gpt.runs.config_file import (
  CONFIG,
  FORMAT_KEY,
  FORMAT_VERSION,
  NewerFormat,
  read_config,
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
  edit(meta, **{FORMAT_KEY: FORMAT_VERSION + 1})
  for read in (load_model, Checkpoints):
    with pytest.raises(NewerFormat, match='upgrade rgpt'):
      read(copy)
  assert meta.exists() and not (copy / 'checkpoints' / 'damaged').exists()


def test_metadata_that_is_no_object_is_damage(copy):
  meta = checkpoint.find(copy) / 'meta' / 'metadata'
  meta.write_text('[]')
  assert load_model(copy).which == 'latest'
