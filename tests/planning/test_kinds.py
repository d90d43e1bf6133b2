"""The table of accelerators."""

import pytest

from gpt.errors import UserError
from gpt.planning import kinds


def test_the_kind_of_a_device_is_found_by_its_name():
  names = {
    'NVIDIA H100 80GB HBM3': 'h100',
    'NVIDIA A100-SXM4-80GB': 'a100',
    'NVIDIA H200': 'h200',
    'NVIDIA L4': 'l4',
    'TPU v5 lite': 'v5e',
    'NVIDIA GeForce RTX 4090': 'rtx4090',
  }
  found = {name: kinds.of_device(name) for name in names}
  assert {name: kind and kind.name for name, kind in found.items()} == names
  assert kinds.of_device('cpu') is None
  assert kinds.of_device('NVIDIA L40S') is None
  with pytest.raises(UserError, match='allowed: a100'):
    kinds.find('gtx')
