"""Qwen3: Llama with a norm on queries and keys; Qwen3ForCausalLM."""

from gpt.formats.architectures.family import GATED_ACTIVATIONS, Family, Key, Row
from gpt.formats.architectures.llama import (
  ANY,
  GATE,
  MATRICES,
  NORMS,
  ROTARY,
  SHAPE,
  TABLES,
  UP_DOWN,
)

QK_NORMS = (
  Row('layers.{i}.self_attn.q_norm.weight', ('q_gain',)),
  Row('layers.{i}.self_attn.k_norm.weight', ('k_gain',)),
)
DEFAULTS = {
  'vocab_size': 151_936,
  'intermediate_size': 22_016,
  'max_position_embeddings': 32_768,
}

QWEN3 = Family(
  model_type='qwen3',
  hf_class='Qwen3ForCausalLM',
  prefix='model',
  keys=(
    *(Key(k.hf, k.ours, DEFAULTS.get(k.hf, k.default)) for k in SHAPE),
    Key('num_key_value_heads', 'n_kv_head', 32, null=0, resolved='kv_heads'),
    Key('head_dim', 'head_dim', 128),
    Key('hidden_act', 'mlp', 'silu', GATED_ACTIVATIONS),
  ),
  holds={
    **ROTARY,
    'head_dim': ANY,
    'mlp': ('swiglu',),
    'norm_gain': (True,),
    'qk_norm': (True,),
    'qk_gain': (True,),
  },
  tensors=(*TABLES, *MATRICES, *GATE, *UP_DOWN, *NORMS, *QK_NORMS),
  fixed={'attention_bias': False, 'use_sliding_window': False},
  even=False,
)
