"""Runs on one, two and four processes: the same run, and checkpoints of all."""

import json
import shutil
import signal

import jax
import numpy as np
import pytest

from gpt.errors import LOST_PEER
from gpt.runs import checkpoint, metrics
from gpt.runs.checkpoint import LATEST
from tests.support.group import Group
from tests.support.train_process import kill_at, latest, train
from tests.support.workdirs import launch

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not hasattr(jax, 'shard_map'), reason='several processes need JAX 0.6'
  ),
]
ARGS = (
  '--config.total_steps=50',
  '--config.eval.every=25',
  '--config.checkpoint.every=10',
  '--config.model.n_layer=1',
  '--config.sample.max_tokens=2',
  '--config.min_lr=3e-3',  # That of the start: no target changes the losses.
)
FSDP = ('--config.parallel.fsdp=2',)


def losses(workdir) -> list[float]:
  lines = metrics.read(workdir / metrics.FILE)
  return [line['loss'] for line in lines if 'loss' in line]


@pytest.fixture(scope='module')
def one(tmp_path_factory):
  """A run of 50 steps in one process."""
  workdir = tmp_path_factory.mktemp('one') / 'run'
  train(workdir, *ARGS, '--config.parallel.num_cpu_devices=1')
  return workdir


@pytest.fixture(scope='module')
def four(tmp_path_factory):
  """The same on four processes, their params sharded."""
  workdir = tmp_path_factory.mktemp('four') / 'run'
  Group(4, workdir, *ARGS, *FSDP).finish()
  return workdir


def test_four_processes_train_like_one(one, four):
  assert len(losses(four)) == 50
  np.testing.assert_allclose(losses(four), losses(one), atol=1e-5, rtol=0)


def test_a_run_moves_from_one_process_to_four_and_to_two(one, tmp_path):
  """And is then used by one, whatever wrote its checkpoints."""
  workdir = tmp_path / 'run'
  train(
    workdir,
    *ARGS,
    '--config.total_steps=20',
    '--config.parallel.num_cpu_devices=1',
  )
  assert 'checksum' in latest(workdir)[1]
  out = Group(4, workdir, *ARGS, '--config.total_steps=30', *FSDP).finish()
  assert 'resuming from step 20' in out
  params, meta = latest(workdir)
  assert set(meta['sums']) == {'params', 'rest'} and meta['step'] == 30
  out = Group(2, workdir, *ARGS, '--config.total_steps=40').finish()
  assert 'resuming from step 30' in out
  out, _ = train(workdir, *ARGS, '--config.parallel.num_cpu_devices=1')
  assert 'resuming from step 40' in out
  np.testing.assert_allclose(losses(workdir), losses(one), atol=2e-5, rtol=0)
  out, _ = launch('evaluate', f'--workdir={workdir}')
  assert json.loads(out.splitlines()[-1])['step'] == 50


def test_a_changed_byte_of_any_shard_is_noticed(four, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(four, workdir)
  path = checkpoint.find(workdir, LATEST)
  files = sorted(
    (x for x in (path / 'params').rglob('*') if x.is_file()),
    key=lambda x: x.stat().st_size,
  )
  data = bytearray(files[-1].read_bytes())
  data[len(data) // 2] ^= 1
  files[-1].write_bytes(data)
  target = Group(4, workdir, *ARGS, *FSDP, '--config.total_steps=60')
  target.finish()
  assert (workdir / 'checkpoints/damaged/latest-50').is_dir()


@pytest.mark.parametrize(
  'index, point',
  [
    (0, ('os.mkdir', 'latest/20.orbax-checkpoint-tmp')),
    (0, ('os.rename', 'latest/20.orbax-checkpoint-tmp')),
    # Others than the first write without Python: as their second save begins.
    (1, ('_thread.start_.*', 'async_save', 2)),
    (3, ('_thread.start_.*', 'async_save', 2)),
  ],
)
def test_any_process_may_be_killed_and_the_run_ends_with_the_same_bits(
  four, tmp_path, index, point
):
  workdir = tmp_path / 'run'
  group = Group(4, workdir, *ARGS, *FSDP, signal_at={index: kill_at(*point)})
  ends = group.end()
  assert ends[index][0] != 0
  Group(4, workdir, *ARGS, *FSDP).finish()
  assert losses(workdir) == losses(four)
  jax.tree.map(
    np.testing.assert_array_equal, latest(workdir)[0], latest(four)[0]
  )


def test_sigterm_to_one_process_saves_and_ends_all(tmp_path):
  group = Group(
    4, tmp_path, *ARGS, '--config.total_steps=100000', '--config.eval.every=999'
  )
  group.processes[0].wait_for('step 0 | val')
  group.processes[2].send(signal.SIGTERM)
  out = group.finish()
  step = latest(tmp_path)[1]['step']
  assert f'Interrupted at step {step}. Saved in' in out


@pytest.mark.parametrize('victim', [0, 1])
def test_a_process_that_dies_ends_the_others_with_one_line(tmp_path, victim):
  group = Group(
    3,
    tmp_path,
    *ARGS,
    '--config.total_steps=100000',
    '--config.parallel.heartbeat_s=5',
  )
  # The metrics of the first steps are there, and their checkpoint.
  group.processes[0].wait_for('step 25/')
  group.processes[victim].send(signal.SIGKILL)
  ends = group.end()
  assert ends[victim][0] == -signal.SIGKILL
  for i, (code, _, err) in enumerate(ends):
    if i == victim:
      continue
    assert code == LOST_PEER, err
    assert err.count('\n') == 1, err
    line = err.rstrip('\n')
    assert line.startswith(f'error: process {victim} of the run ')
    assert 'Run the same command again on every process: step ' in line


@pytest.mark.parametrize(
  'index, missing',
  [
    (0, 'the other processes of 2'),
    (1, 'process 0 at localhost:'),
  ],
)
def test_peers_that_never_come_are_waited_for_aloud_and_not_forever(
  tmp_path, index, missing
):
  group = Group(2, tmp_path, *ARGS, '--config.parallel.join_s=12', only=[index])
  ((code, out, err),) = group.end()
  assert code == LOST_PEER  # A scheduler starts it again.
  assert f'waiting for {missing}' in out and ': 10 s of 12 s' in out
  (line,) = err.splitlines()
  assert f'{missing}' in line and 'did not come within 12 s' in line


def test_a_mistake_is_explained_by_the_process_that_makes_it(tmp_path):
  """It leaves at once; one that comes later makes it too, or says who left."""
  broken = ('--config.parallel.heartbeat_s=5', '--config.parallel.fsdp=3')
  group = Group(2, tmp_path, *ARGS, *broken)
  (code, _, err), (other, _, told) = group.end()
  message = 'parallel.data 1 x fsdp 3 x tensor 1 is 3 devices'
  assert code == 2 and message in err
  if other == 2:
    assert message in told
  else:
    assert other == LOST_PEER
    assert told.startswith('error: process 0 of the run has ended')
  assert not list(tmp_path.iterdir())  # Nothing was written.
