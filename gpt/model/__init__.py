"""The model: `GPT` maps tokens to logits, `GPTConfig` holds its options.

Names that need JAX are imported when they are first used, so that launchers
can read `gpt.model.config` before they choose devices.
"""

import importlib
from typing import TYPE_CHECKING

from gpt.model.config import GPTConfig

if TYPE_CHECKING:
  from gpt.model.transformer import GPT, abstract_params, num_params

__all__ = ['GPT', 'GPTConfig', 'abstract_params', 'num_params']


def __getattr__(name: str):
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module('gpt.model.transformer'), name)
