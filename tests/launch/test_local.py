"""launch.local: real processes, which fail, hang and are killed."""

import os
import signal
import subprocess
import sys
import time

import pytest

from gpt import devices
from gpt.errors import UserError
from launch import local
from tests.support.commands import is_running
from tests.support.serving_tools import wait_until
from tests.support.workdirs import ROOT, command

SCRIPT = """
import os, signal, sys, time
me, n = int(os.environ['JAX_PROCESS_ID']), int(os.environ['JAX_NUM_PROCESSES'])
"""
RUN = """
import asyncio, sys
from launch import local
words = [sys.executable, '-c', sys.argv[1]]
processes, grace = int(sys.argv[2]), float(sys.argv[3])
sys.exit(asyncio.run(local.Group().run(words, processes, grace)))
"""


def start(script, processes=2, grace=10.0, **kwargs):
  """A launcher whose processes run a Python script."""
  return subprocess.Popen(
    [sys.executable, '-c', RUN, SCRIPT + script, str(processes), str(grace)],
    cwd=ROOT,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    **kwargs,
  )


def run(script, processes=2, grace=10.0):
  """(exit code, lines of stdout, stderr)."""
  process = start(script, processes, grace)
  out, err = process.communicate(timeout=60)
  return process.returncode, out.splitlines(), err


def test_every_process_knows_its_number_and_the_same_coordinator():
  code, lines, _ = run(
    "print(me, n, os.environ['JAX_COORDINATOR_ADDRESS'])", processes=3
  )
  assert code == 0
  found = [line.partition('] ')[::2] for line in lines]
  assert sorted(number for number, _ in found) == ['[0', '[1', '[2']
  assert all(number[1:] == text.split()[0] for number, text in found)
  assert {text.split()[1] for _, text in found} == {'3'}
  assert len({text.split()[2] for _, text in found}) == 1


def test_lines_are_shown_whole_behind_the_number_of_their_process():
  code, lines, err = run(
    "for i in range(200): print(me, 'x' * 300, me)\n"
    "sys.stdout.write('no newline'); print('bad', file=sys.stderr)"
  )
  assert code == 0
  for me in '01':
    own = [line for line in lines if line.startswith(f'[{me}]')]
    assert own[:-1] == [f'[{me}] {me} {"x" * 300} {me}'] * 200
    assert own[-1] == f'[{me}] no newline'
  assert sorted(err.splitlines()) == ['[0] bad', '[1] bad']


def test_one_process_that_fails_ends_the_others():
  began = time.monotonic()
  code, _, err = run('time.sleep(0 if me == 1 else 60); sys.exit(7)', 3)
  assert code == 7 and time.monotonic() - began < 30
  assert 'process 1 failed with exit code 7; ending the others' in err


def test_a_process_that_is_killed_ends_the_others():
  code, _, err = run(
    'if me == 0: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)'
  )
  assert code == 128 + signal.SIGKILL
  assert 'process 0 was ended by SIGKILL; ending the others' in err


def test_a_process_that_does_not_end_is_killed_after_the_grace_time():
  code, lines, _ = run(
    'signal.signal(signal.SIGTERM, lambda *_: print("asked"))\n'
    "if me == 0: print('ready')\n"
    'time.sleep(0.5)\n'
    'if me == 1: sys.exit(3)\n'
    'while True: time.sleep(1)',
    grace=0.5,
  )
  assert code == 3 and '[0] asked' in lines


def test_signals_are_passed_on_and_a_clean_end_is_a_success():
  process = start(
    'def end(*_): print("ended"); sys.exit(0)\n'
    'signal.signal(signal.SIGTERM, end)\n'
    "print('ready')\n"
    'while True: time.sleep(1)'
  )
  for _ in range(2):
    assert process.stdout.readline().endswith('ready\n')
  process.send_signal(signal.SIGTERM)
  out, _ = process.communicate(timeout=30)
  assert sorted(out.splitlines()) == ['[0] ended', '[1] ended']
  assert process.returncode == 0


@pytest.mark.skipif(sys.platform != 'linux', reason='prctl is of Linux')
def test_processes_do_not_outlive_a_launcher_that_is_killed():
  process = start('print(os.getpid(), flush=True)\ntime.sleep(600)')
  pids = [int(process.stdout.readline().split()[1]) for _ in range(2)]
  process.kill()
  process.communicate(timeout=30)
  wait_until(lambda: not any(map(is_running, pids)))


def test_a_reader_that_has_left_does_not_end_the_run(tmp_path):
  done = tmp_path / 'done'
  process = start(
    'for i in range(50): print(i)\n'
    'time.sleep(0.5)\n'
    'for i in range(50): print(i)\n'
    f"open({str(done)!r} + str(me), 'w').close()"
  )
  process.stdout.readline()
  process.stdout.close()
  with process.stderr:
    process.stderr.read()
  assert process.wait(timeout=30) == 0
  assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize('words', ['launch.train', 'train', 'rgpt train'])
def test_a_command_joins_and_shares_the_cores(words, monkeypatch):
  monkeypatch.setattr(devices, 'num_cores', lambda: 8)
  made = local.command([*words.split(), '--workdir=x'], 4)
  assert made[1:] == [
    *('-m', 'launch.train', '--workdir=x', '--config.parallel.distributed'),
    '--config.parallel.num_cpu_devices=2',
  ]
  given = ['train', '--config.parallel.num_cpu_devices=1']
  assert local.command(given, 4)[-2:] == [
    given[1],
    '--config.parallel.distributed',
  ]


@pytest.mark.parametrize(
  'words, problem',
  [
    ([], 'what to start is missing'),
    (['launch.serve'], 'launch.serve does'),
    (
      ['launch.train', '--config.parallel.distributed=false'],
      'starts 2 runs in one workdir',
    ),
  ],
)
def test_other_commands_are_refused(words, problem):
  with pytest.raises(UserError, match=problem):
    local.command(words, 2)


def test_gpus_are_divided_evenly_or_refused(monkeypatch):
  monkeypatch.setattr(local, 'num_gpus', lambda: 8)
  ids = [local.environment(i, 4, 1)['JAX_LOCAL_DEVICE_IDS'] for i in range(4)]
  assert ids == ['0,1', '2,3', '4,5', '6,7']
  with pytest.raises(UserError, match='8 GPUs cannot be divided evenly'):
    local.environment(0, 3, 1)


@pytest.mark.slow
def test_a_run_survives_the_death_of_a_process_and_goes_on(tmp_path):
  """kill -9 of one of two ends both; the same command goes on."""
  words = ['train', '--config=smoke', f'--workdir={tmp_path}']
  words += ['--config.total_steps=400', '--config.checkpoint.every=20']
  words += ['--config.eval.every=100', '--config.sample.max_tokens=1']
  args = command('local', '--processes=2', '--', *words)
  process = subprocess.Popen(
    args,
    cwd=ROOT,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )
  saved = tmp_path / 'checkpoints' / 'latest'
  while not list(saved.glob('*0')):
    assert process.poll() is None, process.communicate()
    time.sleep(0.05)
  children = subprocess.run(
    ['pgrep', '-P', str(process.pid)], capture_output=True, text=True
  ).stdout.split()
  os.kill(int(children[1]), signal.SIGKILL)
  out, err = process.communicate(timeout=120)
  assert process.returncode == 128 + signal.SIGKILL, err
  assert 'was ended by SIGKILL; ending the others' in err
  done = subprocess.run(args, cwd=ROOT, text=True, capture_output=True)
  assert done.returncode == 0, done.stderr
  assert 'resuming from step' in done.stdout
  assert 'finished at step 400' in done.stdout
