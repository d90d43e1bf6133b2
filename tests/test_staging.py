"""A directory is complete or as it was before."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from gpt import files, staging, unfinished
from tests.support.train_process import snapshot
from tests.support.workdirs import ROOT


def fill(directory, names=('a', 'z')) -> None:
  for name in names:
    (directory / name).write_text(f'new {name}')


def everything(path) -> list[str]:
  return sorted(str(p.relative_to(path)) for p in path.rglob('*'))


@pytest.mark.parametrize('before', ['absent', 'empty', 'full'])
def test_a_failure_leaves_everything_as_it_was(tmp_path, before):
  target = tmp_path / 'parent' / 'target'
  if before != 'absent':
    target.mkdir(parents=True)
  if before == 'full':
    fill(target, ['a', 'mine'])
  names, content = everything(tmp_path), snapshot(tmp_path)
  with pytest.raises(KeyError), staging.directory(target) as staged:
    fill(staged)
    raise KeyError
  assert (everything(tmp_path), snapshot(tmp_path)) == (names, content)


def test_entries_that_are_not_named_stay(tmp_path):
  fill(tmp_path, ['mine'])
  for name in ('a', 'old'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'inner').write_text('old')
  with staging.directory(tmp_path, replaced=['a', 'old', 'none']) as staged:
    fill(staged)
  assert snapshot(tmp_path) == {
    'a': b'new a',
    'mine': b'new mine',
    'z': b'new z',
  }


def test_a_rename_that_fails_is_undone(tmp_path, monkeypatch):
  target = tmp_path / 'target'
  target.mkdir()
  fill(target, ['a', 'b', 'c'])
  before, rename = snapshot(tmp_path), pathlib.Path.rename

  def failing(self, to):
    if self.parent.name.startswith('.target.tmp') and self.name == 'b':
      raise OSError(28, 'No space left on device')
    return rename(self, to)

  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, 'rename', failing)
    with pytest.raises(OSError), staging.directory(target) as staged:
      for name in ('a', 'b', 'd'):
        (staged / name).write_text('changed')
  assert snapshot(tmp_path) == before


def test_a_link_to_a_directory_stays_one(tmp_path):
  (tmp_path / 'real').mkdir()
  (tmp_path / 'link').symlink_to('real')
  with staging.directory(tmp_path / 'link') as staged:
    fill(staged)
  assert (tmp_path / 'link').is_symlink()
  assert everything(tmp_path / 'real') == ['a', 'z']


def test_a_name_of_the_greatest_length_can_be_written(tmp_path):
  files.write_atomic(tmp_path / ('\u20ac' * 85), b'x')
  with staging.directory(tmp_path / ('d' * 255)) as staged:
    fill(staged)
  assert len(list(tmp_path.iterdir())) == 2


ENDED = """
import os, signal, sys
from gpt import files, staging
from launch import signals

signals.take_over()
with staging.directory('target') as staged, files.replacing('file') as file:
  (staged / 'a').write_text('half')
  file.write(b'half')
  print(os.listdir('.'), flush=True)
  os.kill(os.getpid(), signal.SIGINT)
"""


def test_ctrl_c_leaves_nothing_unfinished(tmp_path):
  done = subprocess.run(
    [sys.executable, '-c', ENDED],
    cwd=tmp_path,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 128 + signal.SIGINT
  assert done.stderr == '\ninterrupted\n'
  assert done.stdout.count('.tmp-') == 2 and not os.listdir(tmp_path)


def test_finished_names_are_forgotten(tmp_path):
  files.write_atomic(tmp_path / 'a', b'1')
  with staging.directory(tmp_path / 'd') as staged:
    fill(staged)
  assert not unfinished._names


KILLED = """
import os, signal
from gpt import files, staging

with staging.directory('target') as staged, files.replacing('file') as file:
  (staged / 'a').write_text('half')
  print(os.listdir('.'), flush=True)
  os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path):
  done = subprocess.run(
    [sys.executable, '-c', KILLED],
    cwd=tmp_path,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert done.stdout.count('.tmp-') == 2
  left = sorted(os.listdir(tmp_path))
  file, target = left
  others = [
    target.replace('target', 'other'),  # Of another target,
    target.replace('.tmp-', '.tmp-x'),  # of no process,
    target.replace(f'-{unfinished._host()}-', '-00000000-'),  # host,
    f'.target.tmp-{os.getpid()}-{unfinished._host()}-0',  # and of a live one.
  ]
  for name in others:
    (tmp_path / name).touch()
  with staging.directory(tmp_path / 'target') as staged:
    fill(staged)
  assert sorted(os.listdir(tmp_path)) == sorted([*others, file, 'target'])
  files.write_atomic(tmp_path / 'file', b'')
  assert sorted(os.listdir(tmp_path)) == sorted([*others, 'file', 'target'])
