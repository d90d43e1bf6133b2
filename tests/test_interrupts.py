"""Ctrl-C and kill -9 at any moment of any command."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from gpt.runs.load import load_model
from tests.support.train_process import environment, snapshot
from tests.support.workdirs import ROOT, command

INTERRUPTED = 128 + signal.SIGINT
SWALLOWED = """
import os, signal, time
from launch import cli

def main(_):
  try:  # As in a library's callback, whose exceptions are lost.
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
  except BaseException:
    print('swallowed')

cli.run(main)
"""
ACROSS_EXEC = """
import os, signal, sys
from launch import signals

signals.hold()
os.kill(os.getpid(), signal.SIGINT)
os.execv(sys.executable, [sys.executable, '-m', 'launch.info', '--help'])
"""
WHILE_PYTHON_ENDS = """
import os, signal
from launch import cli

class Late:
  def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGINT):
    kill(pid, number)

def main(_):
  cli.late = Late()
  print('done')

cli.run(main)
"""


def test_an_interrupt_after_the_end_of_a_command_is_none():
  done = subprocess.run(
    [sys.executable, '-c', WHILE_PYTHON_ENDS],
    cwd=ROOT,
    env=environment(),
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stdout, done.stderr) == (0, 'done\n', '')


@pytest.mark.parametrize('program', [SWALLOWED, ACROSS_EXEC])
def test_an_interrupt_cannot_be_lost(program):
  done = subprocess.run(
    [sys.executable, '-c', program],
    cwd=ROOT,
    env=environment(),
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stderr) == (INTERRUPTED, '\ninterrupted\n')
  assert done.stdout == ''


TRAIN = ['train', '--config=smoke', '--config.data.path=sample']


def commands(run, there) -> list[list[str]]:
  """One of each kind, on a finished run; what they write is in `there`."""
  use = f'--workdir={run}'
  return [
    [*TRAIN, f'--workdir={there}/train', '--config.total_steps=3'],
    ['generate', use, '--max_tokens=100000'],
    ['export', use, '--format=hf', f'--output={there}/hf'],
    ['evaluate', use],
    ['serve', use, '--port=0'],
    ['report', use, f'--output={there}/report.html'],
    ['info', use],
    ['import_rgpt', f'--input={run}/checkpoint.bin', f'--vocab={run}']
    + [f'--workdir={there}/imported'],
    ['export', use, '--format=rgpt', f'--output={there}/model.bin'],
    ['prepare_data', *TRAIN[1:], f'--workdir={there}/prepared'],
  ]


def start(words) -> subprocess.Popen:
  """With the re-exec for huge pages, as a user has it."""
  env = environment()
  del env['RGPT_HUGE_PAGES']
  return subprocess.Popen(
    command(*words),
    cwd=ROOT,
    env=env,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def leftovers(path) -> list[str]:
  return [str(p) for p in path.rglob('*') if '.tmp-' in p.name]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize('first', [0, 15, 30, 45])
def test_sixty_interrupts_in_the_first_three_seconds(
  trained_workdir, tmp_path, first
):
  """Every command ends with 130, or had finished, or saved and ended with 0.

  Half of them train, each in the workdir that the one before has left, until
  that run is complete.
  """
  run = shutil.copytree(trained_workdir, tmp_path / 'run')
  before = snapshot(run)
  there = tmp_path / 'there'
  there.mkdir()
  ended, complete = [], 0
  for i in range(first, first + 15):
    words = commands(run, there)[i // 2 % 10]
    if i % 2:
      words = [*TRAIN, f'--workdir={there}/run{complete}']
      words += ['--config.total_steps=3']
    process = start(words)
    time.sleep(0.1 + 2.9 * random.Random(i).random())
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=200)
    code = process.returncode
    ended.append(code)
    note = f'{i}: {words[0]} ended with {code}\n{out}\n{err}'
    assert 'Traceback' not in err and 'Error' not in err, note
    assert code in (INTERRUPTED, 0), note
    assert code == 0 or err.endswith('\ninterrupted\n'), note
    assert not leftovers(tmp_path), note
    for lock in there.rglob('.lock'):  # A workdir with nothing in it is gone.
      assert len(os.listdir(lock.parent)) > 1, note
    complete += (there / f'run{complete}/checkpoints/latest/3').is_dir()
  assert ended.count(INTERRUPTED) >= 10, ended
  assert snapshot(run) == before
  for name in ('train', 'imported'):
    workdir = there / name
    if (workdir / 'config.json').exists() and name == 'imported':
      assert load_model(workdir).step
  process = start(commands(run, there)[0])
  _, err = process.communicate(timeout=200)
  assert process.returncode == 0, err


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize('first', [0, 5, 10, 15])
def test_twenty_kills_lose_nothing(trained_workdir, tmp_path, first):
  run = shutil.copytree(trained_workdir, tmp_path / 'run')
  before = snapshot(run)
  there = tmp_path / 'there'
  there.mkdir()
  repeatable = [
    [*words, *(['--overwrite'] if words[0] == 'export' else [])]
    for words in commands(run, there)
    if words[0] in ('train', 'export', 'import_rgpt', 'report', 'prepare_data')
  ]
  for i in range(first, first + 5):
    process = start(repeatable[i % len(repeatable)])
    time.sleep(1 + 5 * random.Random(i).random())
    process.kill()
    process.communicate()
  assert snapshot(run) == before
  for words in repeatable:
    if words[0] == 'import_rgpt' and (there / 'imported').exists():
      assert load_model(there / 'imported').step  # It was complete.
      continue
    process = start(words)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, (words, out, err)
    assert 'Traceback' not in err and 'damaged' not in err
  assert load_model(there / 'train').step == 3
  for path in leftovers(there):  # An hour later they are removed.
    os.utime(path, (0, 0))
