"""Plans of deep models from those of shallow ones, which compile in seconds.

All layers are alike, so that every number of a plan is a + b n_layer. Muon is
an exception: it stacks the matrices of all layers, and pads the stacks.
"""

import dataclasses

from gpt.planning.cluster import Plan


def extended(fewer: Plan, more: Plan, layers: tuple[int, int, int]) -> Plan:
  """The plan of a model of layers[2] layers on a straight line through two.

  Args:
    fewer, more: the same model on the same mesh, with layers[0] and layers[1]
      layers.
  """
  first, second, wanted = layers
  share = (wanted - first) / (second - first)

  def line(a: float, b: float) -> float:
    return a + share * (b - a)

  values = {}
  for field in dataclasses.fields(Plan):
    a, b = getattr(fewer, field.name), getattr(more, field.name)
    if field.name == 'collectives':
      none = 0, 0.0
      values[field.name] = {
        kind: (
          round(line(a.get(kind, none)[0], b.get(kind, none)[0])),
          line(a.get(kind, none)[1], b.get(kind, none)[1]),
        )
        for kind in {**a, **b}
      }
    elif isinstance(a, int | float):
      values[field.name] = type(a)(line(a, b))
    elif a == b:
      values[field.name] = a
    else:
      raise ValueError(f'plans of different {field.name}: {a} and {b}')
  return Plan(**values)
