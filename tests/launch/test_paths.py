"""Pipes, devices and strange directories as the paths of every flag."""

import os
import shutil

import pytest

from tests.support.commands import JAX, assert_refused, run_all


@pytest.fixture
def pipe(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  return tmp_path / 'pipe'


@pytest.mark.parametrize('kind', ['pipe', 'device'])
def test_a_pipe_or_a_device_is_answered_with_one_line(
  trained_workdir, tmp_path, pipe, kind
):
  """Nothing waits for a pipe that nobody writes to."""
  path = pipe if kind == 'pipe' else '/dev/zero'
  use, new = f'--workdir={trained_workdir}', f'--workdir={tmp_path / "new"}'
  train = ['launch.train', '--config=smoke', new]
  commands = [
    ['launch.evaluate', use, f'--data={path}'],
    ['launch.evaluate', use, f'--ids={path}', f'--logits_out={tmp_path}/x'],
    ['launch.tokenize', f'--tokenizer={path}'],
    ['launch.import_model', f'--input={path}', new],
    ['launch.import_rgpt', f'--input={path}', '--preset=xs', new],
    ['launch.import_rgpt', f'--chars={path}', new]
    + [f'--input={trained_workdir}/checkpoint.bin', f'--vocab={path}'],
    ['launch.export', use, '--format=rgpt', f'--output={path}'],
    ['launch.report', use, f'--output={path}'],
    ['launch.report', use, f'--png={path}'],
    [*train, f'--config.data.path={path}'],
    [*train, f'--config.data.tokenizer_path={path}'],
    [*train, f'--init_from={path}'],
    *(
      [f'launch.{name}', f'--workdir={path}']
      for name in ('info', 'generate', 'evaluate', 'report', 'chat', 'serve')
    ),
    ['launch.train', '--config=smoke', f'--workdir={path}'],
    ['launch.prepare_data', '--config=smoke', f'--workdir={path}'],
  ]
  for argv, done in zip(commands, run_all(commands, preload=JAX)):
    try:
      assert_refused(done)
    except AssertionError as e:
      raise AssertionError(argv) from e
  assert not (tmp_path / 'new' / 'config.json').exists()


def test_strange_names_beside_checkpoints_are_passed_over(
  trained_workdir, tmp_path
):
  run = shutil.copytree(trained_workdir, tmp_path / 'run')
  for name in ('\u00b2', '\u0663', '-1', '1e3', '9' * 30):
    (run / 'checkpoints' / 'latest' / name).mkdir()
  use = f'--workdir={run}'
  for done in run_all(
    [['launch.info', use], ['launch.report', use]], preload=JAX
  ):
    assert done.code == 0, done.err
