"""NanoChat: norms without gains everywhere, the embedding included.

It applies RoPE before it norms queries and keys. Ours has the other order; a
rotation keeps the mean square, so both give the same.
"""

from gpt.formats.architectures.family import (
  ACTIVATIONS,
  MIRRORED,
  OUT_IN,
  Family,
  Key,
  Row,
)
from gpt.formats.architectures.llama import ANY, ROTARY, SHAPE, TABLES

DEFAULTS = {
  'vocab_size': 50_304,
  'hidden_size': 768,
  'intermediate_size': 8192,
  'num_hidden_layers': 12,
  'num_attention_heads': 6,
}

NANOCHAT = Family(
  model_type='nanochat',
  hf_class='NanoChatForCausalLM',
  prefix='model',
  keys=(
    *(Key(k.hf, k.ours, DEFAULTS.get(k.hf, k.default)) for k in SHAPE),
    Key('num_key_value_heads', 'n_kv_head', 0, null=0, resolved='kv_heads'),
    Key('hidden_act', 'mlp', 'relu2', ACTIVATIONS),
    Key('final_logit_softcapping', 'logit_softcap', 15.0, null=0.0),
  ),
  holds={
    **ROTARY,
    'mlp': ('relu2', 'relu', 'gelu'),
    'embed_norm': (True,),
    'qk_norm': (True,),
    'logit_softcap': ANY,
  },
  tensors=(
    *TABLES,
    Row('layers.{i}.self_attn.q_proj.weight', ('wq',), MIRRORED),
    Row('layers.{i}.self_attn.k_proj.weight', ('wk',), MIRRORED),
    Row('layers.{i}.self_attn.v_proj.weight', ('wv',), OUT_IN),
    Row('layers.{i}.self_attn.o_proj.weight', ('wo',), OUT_IN),
    Row('layers.{i}.mlp.fc1.weight', ('fc1',), OUT_IN),
    Row('layers.{i}.mlp.fc2.weight', ('fc2',), OUT_IN),
  ),
  fixed={'attention_bias': False},
)
