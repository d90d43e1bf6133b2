"""deploy/slurm.sbatch under an srun that starts the tasks on this machine."""

import os
import pathlib
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest

from tests.support.workdirs import ROOT

SCRIPT = ROOT / 'deploy' / 'slurm.sbatch'
# As Slurm's: the variables JAX reads, an exit code per step, all end when one
# fails, SIGTERM for all tasks.
SRUN = """#!{python}
import os, signal, subprocess, sys
words = [w for w in sys.argv[1:]]
while words[0].startswith('--'):
  words.pop(0)
tasks = [
  subprocess.Popen(words, env=dict(os.environ, SLURM_PROCID=str(i),
    SLURM_LOCALID=str(i), SLURM_NTASKS='2', SLURM_STEP_NODELIST='localhost'))
  for i in range(2)]
open(os.environ['PIDS'], 'w').write(' '.join(str(t.pid) for t in tasks))
signal.signal(signal.SIGTERM, lambda *_: [t.terminate() for t in tasks])
codes = []
for task in tasks:
  codes.append(task.wait())
  if codes[-1] != 0:
    [t.kill() for t in tasks]
sys.exit(max(c if c >= 0 else 128 - c for c in codes))
"""
SCONTROL = """#!/bin/sh
echo "$@" >> "$REQUEUED"
"""


class Cluster:
  """A folder with srun and scontrol, and jobs of two tasks."""

  def __init__(self, folder: pathlib.Path) -> None:
    self.folder = folder
    self.requeued, self.pids = folder / 'requeued', folder / 'pids'
    for name, text in (('srun', SRUN), ('scontrol', SCONTROL)):
      path = folder / name
      path.write_text(text.replace('{python}', sys.executable))
      path.chmod(path.stat().st_mode | stat.S_IXUSR)
    python = folder / 'python'  # A link would lose its environment.
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)

  def submit(self, *args: str, **more: str) -> subprocess.Popen:
    """`sbatch deploy/slurm.sbatch ARGS`."""
    env = {
      **os.environ,
      'PATH': f'{self.folder}:{os.environ["PATH"]}',
      'PYTHONPATH': str(ROOT),
      'SLURM_JOB_ID': str(unused_job_id()),
      'REQUEUED': str(self.requeued),
      'PIDS': str(self.pids),
      **more,
    }
    return subprocess.Popen(
      ['bash', str(SCRIPT), *args],
      cwd=ROOT,
      env=env,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
    )


def unused_job_id() -> int:
  """A job whose coordinator's port (JAX derives it) is free."""
  for job in range(100, 5000):
    with socket.socket() as s:
      if s.connect_ex(('localhost', job % 2**12 + 65535 - 2**12 + 1)):
        return job
  raise AssertionError('no free port')


def test_the_script_is_valid_bash():
  assert subprocess.run(['bash', '-n', str(SCRIPT)]).returncode == 0


@pytest.mark.parametrize(
  'code, restarts, again',
  [
    (0, 0, False),
    (2, 0, False),
    (75, 0, True),
    (137, 3, True),
    (1, 100, False),
  ],
)
def test_a_job_goes_back_into_the_queue_unless_it_is_done(
  tmp_path, code, restarts, again
):
  """2 is a mistake in the arguments, which no restart fixes."""
  cluster = Cluster(tmp_path)
  (tmp_path / 'srun').write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n')
  job = cluster.submit(
    '--workdir=x y', SLURM_JOB_ID='7', SLURM_RESTART_COUNT=str(restarts)
  )
  out, _ = job.communicate(timeout=30)
  assert job.returncode == code
  assert 'launch.train --workdir=x y --config.parallel.distributed' in out
  assert cluster.requeued.exists() == again
  if again:
    assert cluster.requeued.read_text() == 'requeue 7\n'


@pytest.mark.slow
def test_a_job_is_preempted_killed_and_finishes(tmp_path):
  """SIGTERM saves and requeues; kill -9 of a task too; then it finishes."""
  cluster, workdir = Cluster(tmp_path), tmp_path / 'run'
  args = ['--config=smoke', f'--workdir={workdir}', '--config.total_steps=600']
  args += ['--config.eval.every=200', '--config.checkpoint.every=20']
  args += [
    '--config.parallel.num_cpu_devices=1',
    '--config.sample.max_tokens=1',
  ]

  def saved_after(job: subprocess.Popen, step: int) -> None:
    while not [
      x
      for x in workdir.glob('checkpoints/latest/*')
      if x.name.isdigit() and int(x.name) > step
    ]:
      assert job.poll() is None, job.communicate()
      time.sleep(0.05)

  job = cluster.submit(*args)
  saved_after(job, 0)
  # To the step, as Slurm does: to srun, which is the child of bash.
  children = pathlib.Path(f'/proc/{job.pid}/task/{job.pid}/children')
  os.kill(int(children.read_text().split()[0]), signal.SIGTERM)
  out, err = job.communicate(timeout=120)
  assert job.returncode == 75, err
  step = int(out.partition('Interrupted at step ')[2].partition('.')[0])

  job = cluster.submit(*args, SLURM_RESTART_COUNT='1')
  saved_after(job, step)
  os.kill(int(cluster.pids.read_text().split()[1]), signal.SIGKILL)
  out, err = job.communicate(timeout=120)
  assert job.returncode not in (0, 2), err
  assert f'resuming from step {step}' in out
  assert len(cluster.requeued.read_text().splitlines()) == 2

  job = cluster.submit(*args, SLURM_RESTART_COUNT='2')
  out, err = job.communicate(timeout=150)
  assert job.returncode == 0, err
  assert 'finished at step 600' in out
