"""Model shapes of the benchmarks: our presets, and shapes of peers."""

import importlib

from ml_collections import ConfigDict

from configs import default
from gpt.errors import UserError

# name -> (n_layer, n_head, n_embd, block_size)
SHAPES = {
  'nanogpt_cpu': (4, 4, 128, 64),
  'gpt2_124m': (12, 12, 768, 1024),
}
PRESETS = ('xs', 's', 'ds', 'm', 'l', 'deep', 'xl')


def get_config(name: str) -> ConfigDict:
  """The configuration of a preset or shape."""
  if name in PRESETS:
    return importlib.import_module(f'configs.model_{name}').get_config()
  if name not in SHAPES:
    raise UserError(
      f'--preset={name} is not known; allowed: {", ".join((*PRESETS, *SHAPES))}'
    )
  config = default.get_config()
  m = config.model
  m.n_layer, m.n_head, m.n_embd, m.block_size = SHAPES[name]
  return config


def model_config(name: str) -> ConfigDict:
  """`config.model` of a preset or shape."""
  return get_config(name).model
