"""Meshes that shard the params: the same numbers, a part of the memory."""

import json
import subprocess
import sys

import httpx
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gpt import devices, sharding
from gpt.errors import UserError
from gpt.model import GPT, GPTConfig
from gpt.training import optimizer
from gpt.training.state import abstract_state
from tests.support.train_process import train
from tests.support.workdirs import ROOT

needs_jax_06 = pytest.mark.skipif(
  not hasattr(jax, 'shard_map'), reason='sharded params need JAX 0.6'
)
CFG = GPTConfig(vocab_size=24, n_embd=32, n_head=4, n_layer=1, block_size=8)

ALL = ['8x1x1', '1x8x1', '2x2x2', '1x1x8']


def mesh_of(data, fsdp, tensor):
  parallel = {'data': data, 'fsdp': fsdp, 'tensor': tensor}
  return devices.create_mesh(8, jax.devices()[:4], parallel)


@needs_jax_06
@pytest.mark.parametrize(
  'name, meshes',
  [
    ('adamw', ['1x8x1']),
    pytest.param('adamw', ALL, marks=pytest.mark.slow),
    pytest.param('muon', ALL, marks=pytest.mark.slow),
    pytest.param('normuon', ALL, marks=pytest.mark.slow),
  ],
)
def test_the_result_does_not_depend_on_the_mesh(name, meshes):
  """8 devices (data x fsdp x tensor) beside one device."""
  done = subprocess.run(
    [sys.executable, '-m', 'tests.support.sharded_steps', name, *meshes],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert 'full rematerialization' not in done.stderr  # XLA found no good way.
  results = json.loads(done.stdout)
  one = results.pop('one')
  assert [*results] == meshes
  for mesh, given in results.items():
    for a, b in zip(given['history'], one['history'], strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=mesh)
    np.testing.assert_allclose(given['eval'], one['eval'], rtol=1e-5)
    # Adam magnifies rounding by 1 / sqrt(v); an update is about lr = 1e-3.
    assert given['apart'] < 1e-4, mesh
  if '8x1x1' in results:
    assert results['8x1x1']['bytes'] == results['8x1x1']['whole']
  assert results['1x8x1']['bytes'] <= results['1x8x1']['whole'] / 7


@needs_jax_06
@pytest.mark.parametrize('name', ['adamw', 'muon', 'normuon'])
def test_every_matrix_of_the_state_is_sharded(name):
  from configs import default

  config = default.get_config()
  config.opt.name = name
  mesh = mesh_of(1, 2, 2)
  state = abstract_state(GPT(CFG), optimizer.create(config, mesh), ema=True)
  places = sharding.shardings(mesh, state)
  for x, place in zip(jax.tree.leaves(state), jax.tree.leaves(places)):
    whole = place.shard_shape(x.shape) == x.shape
    assert whole == (len(x.shape) != 2), (x, place)
  assert places.params['block_0']['wq'].spec == PartitionSpec('fsdp', 'tensor')
  assert places.params['block_0']['wo'].spec == PartitionSpec('tensor', 'fsdp')


@needs_jax_06
def test_a_vocabulary_that_tensor_does_not_divide_stays_whole():
  cfg = GPTConfig(vocab_size=23, n_embd=32, n_head=4, n_layer=1, block_size=8)
  mesh = mesh_of(1, 1, 4)
  sharding.check_model(cfg, mesh)
  place = sharding.shardings(
    mesh, {'wte': jax.ShapeDtypeStruct((23, 32), 'float32')}
  )
  assert place['wte'].is_fully_replicated


@needs_jax_06
@pytest.mark.parametrize(
  'axes, message',
  [
    (('auto', 3, 1), 'parallel.data 1 x fsdp 3 x tensor 1 is 3 devices'),
    (('3', 2, 1), 'is 6 devices, and there are 4: choose axes that multiply'),
    (('two', 2, 1), "parallel.data 'two' is neither a number of devices nor"),
    (('auto', 0, 1), 'parallel.fsdp 0 must be at least 1'),
    (('auto', 1, -2), 'parallel.tensor -2 must be at least 1'),
  ],
)
def test_an_impossible_mesh_is_explained(axes, message):
  with pytest.raises(UserError, match=message):
    mesh_of(*axes)


@needs_jax_06
@pytest.mark.parametrize(
  'change, axes, message',
  [
    (
      {'n_embd': 30, 'n_head': 2},
      (1, 4, 1),
      'fsdp 4 does not divide model.n_e',
    ),
    ({'n_head': 2}, (1, 1, 4), 'tensor 4 does not divide model.n_head 2; allo'),
    ({'n_kv_head': 2}, (1, 1, 4), 'tensor 4 does not divide model.n_kv_head 2'),
  ],
)
def test_a_mesh_that_does_not_divide_the_model_is_refused(
  change, axes, message
):
  cfg = GPTConfig(**{**vars(CFG), 'mlp_width': 0, **change})
  with pytest.raises(UserError, match=message):
    sharding.check_model(cfg, mesh_of(*axes))


def test_jax_before_06_refuses_sharded_params_by_name(monkeypatch):
  monkeypatch.delattr(jax, 'shard_map', raising=False)
  with pytest.raises(UserError, match='parallel.fsdp 2 .* need JAX 0.6'):
    devices.mesh_axes({'data': 'auto', 'fsdp': 2, 'tensor': 1})
  assert devices.mesh_axes({}) == (None, 1, 1)


@needs_jax_06
@pytest.mark.slow
def test_a_sharded_run_resumes_elsewhere_and_is_used_like_any_other(tmp_path):
  """2 x 2 x 2 devices, then two: served, evaluated, sampled, exported."""
  from tests.support.serving_tools import serving
  from tests.support.workdirs import launch

  args = ['--config.opt.name=muon', '--config.eval.full_at_end']
  args += ['--config.min_lr=3e-3']  # That of the start, whatever the target.
  whole, split = tmp_path / 'whole', tmp_path / 'split'
  mesh = [
    '--config.parallel.num_cpu_devices=8',
    '--config.parallel.fsdp=2',
    '--config.parallel.tensor=2',
  ]
  train(whole, *args, '--config.parallel.num_cpu_devices=1')
  train(split, *args, *mesh, '--config.total_steps=10')
  with serving(split) as server, httpx.Client(base_url=server.url) as client:
    asked = {'prompt': 'a', 'max_tokens': 5}
    reply = client.post('/v1/completions', json=asked, timeout=60)
    assert reply.json()['usage']['completion_tokens'] == 5, reply.text
  train(split, *args, '--config.parallel.num_cpu_devices=2')
  ends = []
  for workdir in (whole, split):
    out, _ = launch('evaluate', f'--workdir={workdir}')
    ends.append(json.loads(out.splitlines()[-1])['nats_per_token'])
    launch('generate', f'--workdir={workdir}', '--max_tokens=5')
  assert ends[1] == pytest.approx(ends[0], abs=1e-4)
  launch(
    'export', f'--workdir={split}', f'--output={tmp_path}/hf', '--format=hf'
  )
