"""RoPE in config.json: rope_theta and rope_scaling, or rope_parameters.

transformers 5 has moved both into one dictionary. Both spellings are read, and
both are written: older versions ignore the new one, newer ones prefer it.
"""

from collections.abc import Mapping
from typing import Any

from gpt.errors import UserError
from gpt.formats.architectures.features import quoted
from gpt.model import GPTConfig

BASE = 10_000.0
# rope_type -> its numbers, in the order of model.rope_scaling.
CONTEXT = 'original_max_position_embeddings'
SCALINGS = {
  'linear': ('factor',),
  'llama3': ('factor', 'low_freq_factor', 'high_freq_factor', CONTEXT),
}


def read_rope(config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """The options rope_base and rope_scaling of a config.json.

  Raises:
    UserError: a scaling that rgpt lacks, or values of the wrong type.
  """
  given: dict[str, Any] = {}
  for name in ('rope_parameters', 'rope_scaling'):
    entry = config.get(name) or {}
    if not isinstance(entry, dict):
      raise UserError(
        f'{where}: {name} is {quoted(entry)}; an object is needed'
      )
    given |= entry
  if any(isinstance(value, dict) for value in given.values()):
    raise UserError(
      f'{where}: RoPE differs between layers (rope_parameters), which rgpt '
      'lacks'
    )
  theta = given.get('rope_theta', config.get('rope_theta'))
  base = BASE if theta is None else _number(theta, 'rope_theta', where)
  kind = given.get('rope_type', given.get('type')) or 'default'
  if kind == 'default':
    return {'rope_base': base, 'rope_scaling': ''}
  if not isinstance(kind, str) or kind not in SCALINGS:
    raise UserError(
      f'{where}: this model scales RoPE by {quoted(kind)}, which rgpt does not '
      f'support; known: default, {", ".join(SCALINGS)}'
    )
  given.setdefault(
    CONTEXT, config.get(CONTEXT, config.get('max_position_embeddings'))
  )
  numbers = [_number(given.get(n), n, where) for n in SCALINGS[kind]]
  return {
    'rope_base': base,
    'rope_scaling': f'{kind}:{",".join(_short(x) for x in numbers)}',
  }


def write_rope(cfg: GPTConfig) -> dict[str, Any]:
  """The entries of config.json, in both spellings."""
  scaling: dict[str, Any] = {'rope_type': 'default'}
  if cfg.rope_scaling:
    kind, _, numbers = cfg.rope_scaling.partition(':')
    values = [float(x) for x in numbers.split(',')]
    scaling = {'rope_type': kind, **dict(zip(SCALINGS[kind], values))}
    if CONTEXT in scaling:
      scaling[CONTEXT] = int(scaling[CONTEXT])
  return {
    'rope_theta': cfg.rope_base,
    'rope_scaling': scaling if cfg.rope_scaling else None,
    'rope_parameters': {**scaling, 'rope_theta': cfg.rope_base},
  }


def _number(value: Any, name: str, where: str) -> float:
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise UserError(f'{where}: {name} is {quoted(value)}; a number is needed')
  return float(value)


def _short(x: float) -> str:
  return str(int(x)) if x.is_integer() else repr(x)
