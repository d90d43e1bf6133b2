"""Deep models are planned from shallow ones."""

import dataclasses

import pytest

from gpt.planning import kinds, layers
from gpt.planning.cluster import Plan


def plan(n_layer, mesh=8):
  numbers = {
    field.name: 7.0 + 3.0 * n_layer
    for field in dataclasses.fields(Plan)
    if field.type in (float, 'float')
  }
  whole = dict.fromkeys(('params', 'tokens', 'rows', 'micro'), 5 * n_layer)
  sent = {'all-reduce': (1, 10.0), 'all-gather': (2 * n_layer, 4.0 * n_layer)}
  return Plan(
    kind=kinds.find('h100'),
    mesh={'data': 1, 'fsdp': mesh, 'tensor': 1},
    collectives=sent,
    **numbers,
    **whole,
  )


def test_every_number_lies_on_a_line_through_two_depths():
  assert layers.extended(plan(2), plan(4), (2, 4, 24)) == plan(24)


def test_plans_of_different_meshes_are_not_mixed():
  with pytest.raises(ValueError, match='different mesh'):
    layers.extended(plan(2), plan(4, mesh=4), (2, 4, 24))
