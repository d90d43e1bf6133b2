"""The model: `GPT` maps tokens to logits, `GPTConfig` is its shape."""

from gpt.model.transformer import (
  GPT,
  GPTConfig,
  abstract_params,
  num_params,
)

__all__ = ['GPT', 'GPTConfig', 'abstract_params', 'num_params']
