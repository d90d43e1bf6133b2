"""What is measured of a machine, and remembered."""

import jax
import pytest

from gpt import processor
from gpt.planning import machine

KIND = ('cpu', 'cpu', 2)


def rates(factor=1.0):
  return {'float32': {96: 7e10 * factor, 256: 9e10}, 'mixed': {96: 2e11}}


@pytest.mark.parametrize('able', [True, False])
def test_this_machine_has_rates_memory_and_devices(tmp_path, monkeypatch, able):
  """Of bfloat16 products only if the processor has instructions for them."""
  monkeypatch.setenv('RGPT_CACHE', str(tmp_path))
  monkeypatch.setattr(machine, 'CPU_WIDTHS', (32,))
  monkeypatch.setattr(machine, 'ROUNDS', 1)
  monkeypatch.setattr(processor, 'multiplies_bfloat16', lambda: able)
  found = machine.measure()
  assert found.devices == jax.local_device_count()
  assert 1e7 < found.memory < 1e15
  assert ('mixed' in found.rates) == able
  assert 1e6 < found.rate('float32', 32) == found.rate('float32', 1000) < 1e15
  assert (tmp_path / machine.FILE).is_file()


def test_rates_are_interpolated_between_widths():
  where = machine.Machine(*KIND, 1e9, rates())
  assert where.rate('float32', 96) < where.rate('float32', 150) < 9e10


def test_a_measurement_that_agrees_with_the_last_one_gives_way(tmp_path):
  path = tmp_path / 'deep/machine.json'
  assert machine.remembered(path, KIND, rates()) == rates()
  assert machine.remembered(path, KIND, rates(1.05)) == rates()
  assert machine.remembered(path, KIND, rates(2)) == rates(2)  # Another hour.
  assert machine.remembered(path, KIND, rates(1.9)) == rates(2)
  assert machine.remembered(path, ('gpu', 'H100', 1), rates()) == rates()
  for damage in ('', '[]', '{"kind": 1}', '{"kind": [], "rates": [[1]]}'):
    path.write_text(damage)
    assert machine.remembered(path, KIND, rates()) == rates()
  assert machine.remembered(tmp_path, KIND, rates()) == rates()
