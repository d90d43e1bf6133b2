"""Arcee: Llama with an ungated MLP, by default relu squared."""

from gpt.formats.architectures.family import ACTIVATIONS, Family, Key
from gpt.formats.architectures.llama import (
  ANY,
  BIASES,
  MATRICES,
  NORMS,
  ROTARY,
  SHAPE,
  TABLES,
  UP_DOWN,
)

DEFAULTS = {
  'hidden_size': 2560,
  'intermediate_size': 18_432,
  'max_position_embeddings': 4096,
  'rms_norm_eps': 1e-5,
}

ARCEE = Family(
  model_type='arcee',
  hf_class='ArceeForCausalLM',
  prefix='model',
  keys=(
    *(Key(k.hf, k.ours, DEFAULTS.get(k.hf, k.default)) for k in SHAPE),
    Key('num_key_value_heads', 'n_kv_head', 0, null=0, resolved='kv_heads'),
    Key('head_dim', 'head_dim', 0, null=0),
    Key('hidden_act', 'mlp', 'relu2', ACTIVATIONS),
  ),
  holds={
    **ROTARY,
    'head_dim': ANY,
    'mlp': ('relu2', 'relu', 'gelu'),
    'norm_gain': (True,),
    'bias': (False, True),
  },
  tensors=(*TABLES, *MATRICES, *BIASES, *UP_DOWN, *NORMS),
  biases=('attention_bias', 'mlp_bias'),
)
