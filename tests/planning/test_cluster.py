"""launch.plan --devices: compiled for devices that are not there."""

import json

import pytest

from tests.support.commands import assert_refused, run_all

SMOKE = ['launch.plan', '--config=smoke', '--vocab_size=96', '--json']
ADAM = ['--devices=8', *SMOKE[1:]]


def plans(*more: list[str]) -> list[dict]:
  done = run_all([[*SMOKE, *args] for args in more])
  assert not [one.err for one in done if one.code]
  return [json.loads(one.out) for one in done]


@pytest.mark.slow
def test_sharding_divides_the_state_and_adds_communication():
  whole, shards = plans(
    ['--devices=8'], ['--devices=8', '--config.parallel.fsdp=8']
  )
  size = 4 * whole['params']
  assert whole['params_bytes'] == size
  assert whole['optimizer_bytes'] == pytest.approx(2 * size, rel=0.01)
  for name in ('params_bytes', 'optimizer_bytes'):
    assert shards[name] < whole[name] / 7
  assert whole['collectives'].keys() == {'all-reduce'}
  sent = whole['collectives']['all-reduce'][1]
  assert sent == pytest.approx(2 * size * 7 / 8, rel=0.01)
  gathered = shards['collectives']['all-gather'][1]
  assert gathered == pytest.approx(size * 7 / 8, rel=0.1)
  assert shards['flops'] == pytest.approx(whole['flops'], rel=0.05)


@pytest.mark.slow
def test_a_plan_knows_the_work_and_the_memory_of_a_step():
  one, half, micro, remat, muon = plans(
    ['--devices=1'],
    ['--devices=1', '--config.model.dtype=bfloat16'],
    ['--devices=1', '--config.parallel.micro_batch_size=2'],
    ['--devices=1', '--config.model.remat'],
    ['--devices=1', '--config.opt.name=muon'],
  )
  assert one['collectives'] == {} and one['communication_s'] == 0
  # Six operations per parameter and token; blocked attention computes more
  # than half of the square.
  assert 1.0 < one['flops'] / one['model_flops'] < 1.2
  # Float32 products are made in TF32.
  assert one['compute_s'] == pytest.approx(2 * half['compute_s'], rel=0.01)
  assert (one['micro'], micro['micro']) == (8, 2)
  assert micro['activation_bytes'] < one['activation_bytes'] / 2
  assert micro['flops'] == pytest.approx(one['flops'])
  assert remat['flops'] > 1.15 * one['flops']
  assert muon['optimizer_bytes'] < one['optimizer_bytes']
  assert muon['flops'] > one['flops']


@pytest.mark.slow
def test_impossible_plans_are_refused():
  cases = {
    'keeps 8 of 16 devices busy': ['--devices=16'],
    'multiply to 8': ['--devices=8', '--config.parallel.fsdp=3'],
    '--kind=h1000 is not known; allowed: a100': ['--devices=8', '--kind=h1000'],
    'a step of adapters is not planned': [
      '--devices=8',
      '--config.opt.lora_rank=4',
    ],
    'n_head': ['--devices=8', '--config.parallel.tensor=8'],
  }
  done = run_all([[*SMOKE, *args] for args in cases.values()])
  for one, message in zip(done, cases):
    assert_refused(one, message)
