"""--output never costs a file that nobody meant to replace."""

import os
import shutil

import numpy as np
import pytest

from gpt.errors import UserError
from gpt.formats.directories import check_output
from gpt.runs.output import check_file
from tests.support.commands import JAX, assert_refused, run_all
from tests.support.train_process import snapshot


@pytest.fixture
def run(tmp_path, trained_workdir):
  return shutil.copytree(trained_workdir, tmp_path / 'run')


OWN = (
  'config.json',
  'data.json',
  'metrics.jsonl',
  'checkpoint.bin',
  'tokenizer/tokenizer.json',
  'tokenizer/new',
  'checkpoints/latest/x',
  'cache/x.bin',
)


@pytest.mark.parametrize('name', OWN)
@pytest.mark.parametrize('overwrite', [False, True])
def test_files_of_a_run_are_never_an_output(run, tmp_path, name, overwrite):
  (tmp_path / 'link').symlink_to(run)
  before = snapshot(run)
  for path in (run / name, tmp_path / 'link' / name):
    for check in (
      lambda path: check_file(path, overwrite=overwrite),
      lambda path: check_output(path, 'hf', overwrite),
      lambda path: check_output(path, 'rgpt', overwrite),
    ):
      with pytest.raises(UserError, match='belongs to the run in'):
        check(path)
  assert snapshot(run) == before
  check_file(run / 'report.html')
  check_file(run / 'model.bin')


def test_unrelated_files_and_links_need_overwrite(tmp_path):
  (tmp_path / 'mine').write_text('precious')
  (tmp_path / 'link').symlink_to('mine')
  (tmp_path / 'dangling').symlink_to('nothing')
  (tmp_path / 'directory').mkdir()
  (tmp_path / 'dlink').symlink_to('directory')
  for name in ('mine', 'link', 'dangling'):
    for format in ('rgpt', 'safetensors'):
      with pytest.raises(UserError, match='add --overwrite to replace it'):
        check_output(tmp_path / name, format)
    check_file(tmp_path / name, overwrite=True)
  with pytest.raises(UserError, match='is a link: add --overwrite'):
    check_output(tmp_path / 'dlink', 'hf')
  check_output(tmp_path / 'directory', 'hf')
  check_file(tmp_path / 'mine', earlier=b'cious')
  with pytest.raises(UserError):
    check_file(tmp_path / 'link', earlier=b'cious')


def test_pipes_and_devices_are_no_output(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  for path in (tmp_path / 'pipe', '/dev/null', '/dev/full'):
    for format in ('rgpt', 'hf'):
      with pytest.raises(UserError, match='is a pipe or a device'):
        check_output(path, format, overwrite=True)
  for name in ('a\0b', 'x' * 300, 'loop/x'):
    (tmp_path / 'loop').unlink(missing_ok=True)
    (tmp_path / 'loop').symlink_to('loop')
    with pytest.raises(UserError, match='cannot write|no directory'):
      check_file(tmp_path / name)


def test_commands_ask_before_they_replace_a_file(run, tmp_path):
  workdir = f'--workdir={run}'
  mine = tmp_path / 'mine.html'
  mine.write_text('<!doctype html>\n<html lang="en">precious')
  np.save(tmp_path / 'ids.npy', np.zeros((1, 4), np.int32))
  before = snapshot(tmp_path)
  ids = ['launch.evaluate', workdir, f'--ids={tmp_path / "ids.npy"}']
  report = ['launch.report', workdir]
  done = run_all(
    [
      [*report, f'--output={mine}'],
      [*report, f'--output={run / "config.json"}', '--overwrite'],
      [*report, f'--png={mine}'],
      [*ids, f'--logits_out={tmp_path / "ids.npy"}'],
      [*ids, f'--logits_out={run / "config.json"}', '--overwrite'],
    ],
    preload=JAX,
  )
  for one, text in zip(
    done,
    (
      'exists already: add --overwrite',
      'belongs to the run',
      'choose another --png',
      'choose another --logits_out',
      'belongs to the run',
    ),
  ):
    assert_refused(one, text)
  assert snapshot(tmp_path) == before
  page, png = tmp_path / 'page.html', tmp_path / 'loss.png'
  twice = [*report, f'--output={page}', f'--png={png}']
  for one in run_all([twice, twice, report, report], preload=JAX):
    assert one.code == 0, one.err  # Earlier reports are replaced.
  shutil.copy(mine, page)
  assert_refused(run_all([twice], preload=JAX)[0], 'exists already')
