"""Mesh, shardings and padding; then one run on two processes.

The second half starts real processes that connect over a local port, as the
hosts of a cluster do.
"""

import contextlib
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from gpt import devices, processor
from gpt.errors import UserError
from gpt.training.rows import local_rows, micro_batch_size
from tests.support.group import Group
from tests.support.train_process import (
  ROOT,
  arguments,
  latest,
  timeless,
  train,
)


class FakeDevice:
  """Just enough of a jax.Device to build a mesh."""

  def __init__(self, index):
    self.id = index
    self.process_index = 0


# (batch rows, devices) -> (devices used, rows on each).
@pytest.mark.parametrize(
  'rows, n_devices, used, each',
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
def test_mesh_uses_only_the_devices_the_batch_can_keep_busy(
  rows, n_devices, used, each
):
  mesh = devices.create_mesh(rows, [FakeDevice(i) for i in range(n_devices)])
  assert dict(mesh.shape) == {'data': used, 'fsdp': 1, 'tensor': 1}
  padded = devices.padded_batch_size(rows, mesh)
  assert padded == used * each and padded - rows < used
  # All devices together would not need fewer rows each.
  assert each == -(-rows // n_devices)


@pytest.mark.parametrize(
  'rows, n_devices, micro, padded',
  [
    (8, 2, 4, 8),
    (8, 2, 3, 12),
    (5, 2, 2, 8),
    (64, 4, 2, 64),
    (1, 1, 4, 4),
  ],
)
def test_padding_fills_whole_micro_batches(rows, n_devices, micro, padded):
  mesh = devices.create_mesh(rows, jax.devices()[:n_devices])
  assert devices.padded_batch_size(rows, mesh, micro) == padded


def test_padding_rows_have_weight_zero():
  batch = {
    'tokens': np.ones((3, 5), np.int32),
    'weights': np.ones((3, 4), np.float32),
    'rows': np.arange(3, dtype=np.int32),
  }
  padded = devices.pad_rows(batch, 8)
  assert {name: x.shape[0] for name, x in padded.items()} == dict.fromkeys(
    batch, 8
  )
  assert padded['weights'].sum() == batch['weights'].sum()
  for name, x in batch.items():
    np.testing.assert_array_equal(padded[name][:3], x)
    assert padded[name].dtype == x.dtype
  assert devices.pad_rows(batch, 3) is batch


def test_batch_is_sharded_and_params_are_replicated():
  mesh = devices.create_mesh(8, jax.devices()[:4])
  batch = devices.put_batch({'rows': np.arange(8, dtype=np.int32)}, mesh)
  shards = batch['rows'].addressable_shards
  assert [shard.data.tolist() for shard in shards] == [
    [0, 1],
    [2, 3],
    [4, 5],
    [6, 7],
  ]
  params = devices.put_replicated({'w': np.arange(3.0)}, mesh)
  assert params['w'].sharding.is_fully_replicated
  assert len(params['w'].addressable_shards) == 4


@pytest.mark.parametrize(
  'rows, n_devices, wanted, micro',
  [
    (8, 2, 1, 1),
    (8, 2, 4, 4),
    (8, 2, 100, 4),
    (6, 1, 4, 3),
    (7, 1, 4, 4),
    (8, 2, 0, 4),  # 0 means automatic: 512 tokens, or all rows.
  ],
)
def test_micro_batch_divides_the_rows_where_that_costs_little(
  rows, n_devices, wanted, micro
):
  from configs import smoke

  config = smoke.get_config()
  config.batch_size = rows
  config.parallel.micro_batch_size = wanted
  mesh = devices.create_mesh(rows, jax.devices()[:n_devices])
  assert micro_batch_size(config, mesh) == micro


@pytest.mark.parametrize(
  'share, micro',
  [
    (0, 4),  # Unknown.
    (64 << 20, 4),  # 512 tokens of 61 KB fit,
    (20 << 20, 2),  # 256 do,
    (4 << 20, 4),  # and neither: fewer at once would gain nothing.
  ],
)
def test_half_the_rows_run_at_once_where_only_they_fit_the_cache(
  share, micro, monkeypatch
):
  from configs import default

  monkeypatch.setattr(processor, 'l3_bytes', lambda sharers: share)
  config = default.get_config()
  config.model.update(
    n_layer=6, n_embd=128, block_size=128, mlp='swiglu', mlp_width=352
  )
  config.batch_size = 4
  mesh = devices.create_mesh(4, jax.devices()[:1])
  assert micro_batch_size(config, mesh) == micro


def test_processes_draw_disjoint_rows_of_the_same_batch(monkeypatch):
  class Dataset:
    def batch_at(self, step, rows):
      return {
        'rows': np.arange(10, dtype=np.int32)[rows],
        'weights': np.ones((10, 1), np.float32)[rows],
      }

  hosts = [FakeDevice(i) for i in range(4)]
  for i, device in enumerate(hosts):
    device.process_index = i
  mesh = devices.create_mesh(10, hosts)
  parts = []
  for index in range(4):
    monkeypatch.setattr(jax, 'process_index', lambda index=index: index)
    parts.append(local_rows(Dataset(), 0, 10, 16, mesh))
  assert [len(part['rows']) for part in parts] == [4] * 4
  weights = np.concatenate([part['weights'][:, 0] for part in parts])
  rows = np.concatenate([part['rows'] for part in parts])
  assert rows[weights > 0].tolist() == list(range(10))


def test_setup_warns_if_jax_already_runs_on_another_number_of_devices():
  warning = pytest.warns(UserWarning, match='already runs on 4 CPU devices; 3')
  if not hasattr(jax, 'shard_map'):
    warning = contextlib.nullcontext()  # jax 0.5 accepts any number.
  with warning:
    devices.setup_devices(3)
  devices.setup_devices(4)
  devices.setup_devices(0)  # Any number of devices is fine: no warning.
  with pytest.raises(UserError, match='num_cpu_devices -1 is negative'):
    devices.setup_devices(-1)


# --- several processes

SMALL = [
  '--config.total_steps=4',
  '--config.model.n_layer=1',
  '--config.eval.every=2',
  '--config.checkpoint.every=2',
  '--config.sample.max_tokens=2',
  '--config.eval.full_at_end',
]


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path):
  """Also with 5 rows, which two processes cannot share evenly; and resumed."""
  for name, batch_size in (('even', 8), ('odd', 5)):
    one, two = tmp_path / f'{name}-one', tmp_path / f'{name}-two'
    args = [*SMALL, f'--config.batch_size={batch_size}']
    train(one, *args, '--config.parallel.num_cpu_devices=2')
    Group(2, two, *args).finish()
    (given, meta), (wanted, _) = latest(two), latest(one)
    assert meta['step'] == 4
    # Sums over processes and sums over devices may round differently.
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
  out = Group(2, two, *args, '--additional_steps=2').finish()
  assert 'resuming from step 4' in out
  assert latest(two)[1]['step'] == 6


@pytest.mark.slow
def test_interrupting_one_of_two_processes_stops_both(tmp_path):
  pair = Group(
    2,
    tmp_path,
    *SMALL,
    '--config.total_steps=100000',
    '--config.eval.every=1000',
  )
  pair.processes[0].wait_for('step 0 | val')
  pair.processes[1].send(signal.SIGTERM)
  out = pair.finish()
  step = latest(tmp_path)[1]['step']
  assert f'Interrupted at step {step}. Saved in' in out


def test_a_missing_coordinator_is_explained(tmp_path):
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
