"""Features of other models that ours lack, recognized by config.json.

A model with one of them would load and compute something else, so each is
refused by its name.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gpt.errors import UserError

LONGEST_QUOTE = 60

# Model types we know to be another function, and what it is they have.
FOREIGN_TYPES = {
  'qwen2': 'biases on queries, keys and values alone (attention_bias of Qwen2)',
  'gpt_neox': 'parallel attention and MLP, and partial rotary embedding',
  'gptj': 'parallel attention and MLP, and partial rotary embedding',
  'phi': 'parallel attention and MLP, and partial rotary embedding',
  'phi3': 'fused projections of its own',
  'gemma': 'norms with gain 1 + w and a scaled embedding',
  'gemma2': 'norms with gain 1 + w, a scaled embedding and sliding windows',
  'gemma3_text': 'norms with gain 1 + w, a scaled embedding, sliding windows',
  'bloom': 'ALiBi',
  'mpt': 'ALiBi',
  'falcon': 'parallel attention and MLP',
  'opt': 'learned positions with an offset',
  'gpt_neo': 'local attention windows',
  'olmo2': 'norms after attention and MLP',
  'smollm3': 'layers without RoPE',
  'cohere': 'parallel attention and MLP',
  'mixtral': 'experts (MoE)',
  'granite': 'multipliers of embeddings, residuals and logits',
}
EXPERTS = (
  'num_local_experts',
  'num_experts',
  'n_routed_experts',
  'moe_num_experts',
)
HEAD_SIZES = ('v_head_dim', 'qk_rope_head_dim', 'qk_nope_head_dim')
PARALLEL = ('use_parallel_residual', 'parallel_attn')
PARTIAL_ROTARY = ('partial_rotary_factor', 'rotary_pct', 'rope_pct')


def quoted(value: Any) -> str:
  """A value of a file for a message, cut to a readable length."""
  text = value if isinstance(value, str) else json.dumps(value, default=str)
  text = text if len(text) <= LONGEST_QUOTE else f'{text[:LONGEST_QUOTE]}...'
  return repr(text) if isinstance(value, str) else text


def missing_feature(config: Mapping[str, Any]) -> str:
  """The name of a feature that rgpt lacks; '' if none is found."""
  for name in EXPERTS:
    if isinstance(config.get(name), int) and config[name] > 0:
      return f'experts (MoE): {name} is {config[name]}'
  if config.get('alibi') or config.get('position_embedding_type') == 'alibi':
    return 'ALiBi'
  for name in HEAD_SIZES:
    if config.get(name):
      return f'heads of different sizes ({name} is {quoted(config[name])})'
  for name in PARALLEL:
    if config.get(name):
      return f'parallel attention and MLP ({name})'
  rotary = config.get('rope_parameters') or config.get('rope_scaling') or {}
  both = {**(rotary if isinstance(rotary, dict) else {}), **config}
  for name in PARTIAL_ROTARY:
    if both.get(name) not in (None, 1, 1.0):
      return f'partial rotary embedding ({name} is {quoted(both[name])})'
  if (window := _window(config)) is not None:
    return f'sliding windows (sliding_window is {quoted(window)})'
  if kinds := _other_layers(config):
    return f'layers of the types {quoted(kinds)} (layer_types)'
  if config.get('quantization_config'):
    return 'quantized weights (quantization_config); a GGUF file can be read'
  if config.get('is_encoder_decoder') or config.get('add_cross_attention'):
    return 'an encoder (cross attention)'
  if any(config.get(k) for k in ('text_config', 'vision_config')):
    return 'input that is not text (text_config, vision_config)'
  no_rope = config.get('no_rope_layers')
  if isinstance(no_rope, list) and 0 in no_rope:
    return 'layers without RoPE (no_rope_layers)'
  return FOREIGN_TYPES.get(str(config.get('model_type')), '')


def _window(config: Mapping[str, Any]) -> Any:
  """The sliding window that is used; None if there is none."""
  window = config.get('sliding_window')
  # Qwen's configs name a window that is switched off.
  if not window or config.get('use_sliding_window') is False:
    return None
  if config.get('model_type') == 'qwen3' and not config.get(
    'use_sliding_window'
  ):
    return None
  layers = config.get('num_hidden_layers')
  from_layer = config.get('max_window_layers', 0)
  if isinstance(layers, int) and isinstance(from_layer, int):
    return window if from_layer < layers else None
  return window


def _other_layers(config: Mapping[str, Any]) -> list[str]:
  kinds = config.get('layer_types')
  if not isinstance(kinds, list):
    return []
  return sorted({str(k) for k in kinds} - {'full_attention'})


def one_for_all(
  config: Mapping[str, Any], names: Sequence[str], where: str
) -> bool:
  """The value that several switches share.

  Raises:
    UserError: they differ.
  """
  values = {name: config.get(name) or False for name in names}
  if wrong := {k: v for k, v in values.items() if not isinstance(v, bool)}:
    name, value = next(iter(wrong.items()))
    raise UserError(
      f'{where}: {name} is {quoted(value)}; true or false is needed'
    )
  if len(set(values.values())) > 1:
    on = ', '.join(name for name, value in values.items() if value)
    off = ', '.join(name for name, value in values.items() if not value)
    raise UserError(
      f'{where}: this model has biases on some layers only ({on} without '
      f'{off}), which rgpt does not support: model.bias is all or none'
    )
  return next(iter(values.values()), False)
