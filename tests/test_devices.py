"""What goes where: the mesh, padding, and one run spread over two processes.

The second half starts real processes that find each other over a local port,
as hosts of a cluster would.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from gpt import devices as sharding
from gpt.errors import UserError
from gpt.train import local_rows, micro_batch_size
from tests.support.train_process import (
  ROOT,
  Training,
  arguments,
  environment,
  latest,
  timeless,
  train,
)


class FakeDevice:
  """Enough of a device to stand in a mesh."""

  def __init__(self, index):
    self.id = index


# (batch rows, devices) -> (devices used, rows on each).
@pytest.mark.parametrize(
  'rows, devices, used, each',
  [
    (64, 12, 11, 6),  # 12 devices would take 6 rows each too.
    (64, 1, 1, 64),
    (64, 4, 4, 16),
    (3, 2, 2, 2),
    (2, 3, 2, 1),
    (1, 8, 1, 1),
    (5, 4, 3, 2),
    (16, 5, 4, 4),
    (7, 7, 7, 1),
  ],
)
def test_mesh_has_the_devices_that_the_batch_can_keep_busy(
  rows, devices, used, each
):
  mesh = sharding.create_mesh(rows, [FakeDevice(i) for i in range(devices)])
  assert mesh.size == used and mesh.axis_names == (sharding.DATA,)
  padded = sharding.padded_batch_size(rows, mesh)
  assert padded == used * each and padded - rows < used
  # No smaller number of rows would do with all the devices.
  assert each == -(-rows // devices)


@pytest.mark.parametrize(
  'rows, devices, micro, padded',
  [
    (8, 2, 4, 8),
    (8, 2, 3, 12),
    (5, 2, 2, 8),
    (64, 4, 2, 64),
    (1, 1, 4, 4),
  ],
)
def test_padding_fills_whole_micro_batches(rows, devices, micro, padded):
  mesh = sharding.create_mesh(rows, jax.devices()[:devices])
  assert sharding.padded_batch_size(rows, mesh, micro) == padded


def test_padding_rows_weigh_nothing():
  batch = {
    'tokens': np.ones((3, 5), np.int32),
    'weights': np.ones((3, 4), np.float32),
    'rows': np.arange(3, dtype=np.int32),
  }
  padded = sharding.pad_rows(batch, 8)
  assert {name: x.shape[0] for name, x in padded.items()} == dict.fromkeys(
    batch, 8
  )
  assert padded['weights'].sum() == batch['weights'].sum()
  for name, x in batch.items():
    np.testing.assert_array_equal(padded[name][:3], x)
    assert padded[name].dtype == x.dtype
  assert sharding.pad_rows(batch, 3) is batch


def test_batch_is_split_and_parameters_are_everywhere():
  mesh = sharding.create_mesh(8, jax.devices()[:4])
  batch = sharding.put_batch({'rows': np.arange(8, dtype=np.int32)}, mesh)
  shards = batch['rows'].addressable_shards
  assert [shard.data.tolist() for shard in shards] == [
    [0, 1],
    [2, 3],
    [4, 5],
    [6, 7],
  ]
  params = sharding.put_replicated({'w': np.arange(3.0)}, mesh)
  assert params['w'].sharding.is_fully_replicated
  assert len(params['w'].addressable_shards) == 4


@pytest.mark.parametrize(
  'rows, devices, wanted, micro',
  [
    (8, 2, 1, 1),
    (8, 2, 4, 4),
    (8, 2, 100, 4),
    (6, 1, 4, 3),
    (7, 1, 4, 4),
    (8, 2, 0, 4),  # Chosen by us: 512 tokens, or all there are.
  ],
)
def test_micro_batches_divide_the_rows_where_that_costs_little(
  rows, devices, wanted, micro
):
  from configs import smoke

  config = smoke.get_config()
  config.batch_size = rows
  config.parallel.micro_batch_size = wanted
  mesh = sharding.create_mesh(rows, jax.devices()[:devices])
  assert micro_batch_size(config, mesh) == micro


def test_hosts_draw_their_own_rows_of_the_same_batch(monkeypatch):
  class Dataset:
    def batch_at(self, step, rows):
      return {
        'rows': np.arange(10, dtype=np.int32)[rows],
        'weights': np.ones((10, 1), np.float32)[rows],
      }

  monkeypatch.setattr(jax, 'process_count', lambda: 4)
  parts = []
  for index in range(4):
    monkeypatch.setattr(jax, 'process_index', lambda index=index: index)
    parts.append(local_rows(Dataset(), 0, 10, 16))
  assert [len(part['rows']) for part in parts] == [4] * 4
  weights = np.concatenate([part['weights'][:, 0] for part in parts])
  rows = np.concatenate([part['rows'] for part in parts])
  assert rows[weights > 0].tolist() == list(range(10))


def test_more_devices_than_there_are_is_said_once_jax_runs():
  said = pytest.warns(UserWarning, match='already runs on 4 CPU devices; 3 w')
  if not hasattr(jax, 'shard_map'):
    said = contextlib.nullcontext()  # jax 0.5 does not refuse, so who knows.
  with said:
    sharding.setup_devices(3)
  sharding.setup_devices(4)
  sharding.setup_devices(0)  # As many as there are: nothing to say.
  with pytest.raises(UserError, match='num_cpu_devices -1 is negative'):
    sharding.setup_devices(-1)


# --- several processes

SMALL = [
  '--config.total_steps=4',
  '--config.model.n_layer=1',
  '--config.eval.every=2',
  '--config.checkpoint.every=2',
  '--config.sample.max_tokens=2',
  '--config.eval.full_at_end',
]


class Pair:
  """Two processes of one run."""

  def __init__(self, workdir, *args):
    with socket.socket() as free:
      free.bind(('localhost', 0))
      port = free.getsockname()[1]
    self.processes = [
      Training(
        workdir,
        *args,
        '--config.parallel.distributed',
        '--config.parallel.num_cpu_devices=1',
        env=environment(
          JAX_COORDINATOR_ADDRESS=f'localhost:{port}',
          JAX_NUM_PROCESSES='2',
          JAX_PROCESS_ID=str(index),
        ),
      )
      for index in range(2)
    ]

  def finish(self):
    """What the first has printed; both must have ended well."""
    results = [process.finish() for process in self.processes]
    for code, out, err in results:
      assert code == 0 and 'Traceback' not in err, (out, err)
    assert 'step ' not in results[1][1]  # One of them does the talking.
    return results[0][1]


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path):
  """Also a batch of 5 rows that two do not share evenly; and they resume."""
  for name, batch_size in (('even', 8), ('odd', 5)):
    one, two = tmp_path / f'{name}-one', tmp_path / f'{name}-two'
    args = [*SMALL, f'--config.batch_size={batch_size}']
    train(one, *args, '--config.parallel.num_cpu_devices=2')
    Pair(two, *args).finish()
    (given, meta), (wanted, _) = latest(two), latest(one)
    assert meta['step'] == 4
    # Sums over processes and over devices need not round alike.
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
      given,
      wanted,
    )
    for a, b in zip(timeless(two), timeless(one), strict=True):
      assert a.keys() == b.keys() and a['step'] == b['step']
      for key in (
        'loss',
        'val_loss',
        'full_final_nats_per_token',
        'full_final_tokens',
      ):
        if key in b:
          assert a[key] == pytest.approx(b[key], rel=1e-4)
    names = {path.name for path in one.iterdir()}
    assert {path.name for path in two.iterdir()} == names

  args = [x for x in args if not x.startswith('--config.total_steps')]
  out = Pair(two, *args, '--additional_steps=2').finish()
  assert 'resuming from step 4' in out
  assert latest(two)[1]['step'] == 6


@pytest.mark.slow
def test_interrupting_one_of_two_processes_stops_both(tmp_path):
  pair = Pair(
    tmp_path, *SMALL, '--config.total_steps=100000', '--config.eval.every=1000'
  )
  pair.processes[0].wait_for('step 0 | val')
  pair.processes[1].send(signal.SIGTERM)
  out = pair.finish()
  step = latest(tmp_path)[1]['step']
  assert f'Interrupted at step {step}. Saved in' in out


def test_joining_nobody_is_explained(tmp_path):
  env = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(('JAX_COORD', 'JAX_NUM_P', 'JAX_PROCESS', 'SLURM'))
  }
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'launch.train',
      *arguments(tmp_path / 'run', '--config.parallel.distributed'),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env=env,
  )
  assert done.returncode == 2 and 'Traceback' not in done.stderr
  assert 'JAX_COORDINATOR_ADDRESS=HOST:PORT' in done.stderr
