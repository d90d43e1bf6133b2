"""Llama 2 and 3, TinyLlama, SmolLM2, stories15M: LlamaForCausalLM."""

from gpt.formats.architectures.family import (
  GATED_ACTIVATIONS,
  OUT_IN,
  Family,
  Key,
  Row,
)

# What the classes with RMSNorm and RoPE share. Defaults are the class's own.
SHAPE = (
  Key('vocab_size', 'vocab_size', 32_000),
  Key('hidden_size', 'n_embd', 4096),
  Key('intermediate_size', 'mlp_width', 11_008),
  Key('num_hidden_layers', 'n_layer', 32),
  Key('num_attention_heads', 'n_head', 32),
  Key('max_position_embeddings', 'block_size', 2048),
  Key('rms_norm_eps', 'norm_eps', 1e-6),
  Key('tie_word_embeddings', 'tied_embeddings', False),
  Key('initializer_range', 'init_std', 0.02),
)
TABLES = (
  Row('embed_tokens.weight', ('wte',)),
  Row('lm_head.weight', ('lm_head',), outside=True),
)
MATRICES = (
  Row('layers.{i}.self_attn.q_proj.weight', ('wq',), OUT_IN),
  Row('layers.{i}.self_attn.k_proj.weight', ('wk',), OUT_IN),
  Row('layers.{i}.self_attn.v_proj.weight', ('wv',), OUT_IN),
  Row('layers.{i}.self_attn.o_proj.weight', ('wo',), OUT_IN),
)
BIASES = (
  Row('layers.{i}.self_attn.q_proj.bias', ('bq',)),
  Row('layers.{i}.self_attn.k_proj.bias', ('bk',)),
  Row('layers.{i}.self_attn.v_proj.bias', ('bv',)),
  Row('layers.{i}.self_attn.o_proj.bias', ('bo',)),
)
NORMS = (
  Row('layers.{i}.input_layernorm.weight', ('attn_norm',)),
  Row('layers.{i}.post_attention_layernorm.weight', ('mlp_norm',)),
  Row('norm.weight', ('final_norm',)),
)
UP_DOWN = (
  Row('layers.{i}.mlp.up_proj.weight', ('fc1',), OUT_IN),
  Row('layers.{i}.mlp.down_proj.weight', ('fc2',), OUT_IN),
  Row('layers.{i}.mlp.up_proj.bias', ('b1',)),
  Row('layers.{i}.mlp.down_proj.bias', ('b2',)),
)
GATE = (
  Row('layers.{i}.mlp.gate_proj.weight', ('gate',), OUT_IN),
  Row('layers.{i}.mlp.gate_proj.bias', ('bgate',)),
)

ANY = None
SIZES = {
  'n_embd': ANY,
  'n_head': ANY,
  'n_layer': ANY,
  'block_size': ANY,
  'n_kv_head': ANY,
  'mlp_width': ANY,
  'norm_eps': ANY,
  'tied_embeddings': ANY,
  'arch': ('randy',),
}
ROTARY = {
  **SIZES,
  'pos': ('rope',),
  'rope_base': ANY,
  'rope_scaling': ANY,
  'norm': ('rms',),
  'final_norm': (True,),
}

LLAMA = Family(
  model_type='llama',
  hf_class='LlamaForCausalLM',
  prefix='model',
  keys=(
    *SHAPE,
    Key('num_key_value_heads', 'n_kv_head', 0, null=0, resolved='kv_heads'),
    Key('head_dim', 'head_dim', 0, null=0),
    Key('hidden_act', 'mlp', 'silu', GATED_ACTIVATIONS),
  ),
  holds={
    **ROTARY,
    'head_dim': ANY,
    'mlp': ('swiglu',),
    'norm_gain': (True,),
    'bias': (False, True),
  },
  tensors=(*TABLES, *MATRICES, *BIASES, *GATE, *UP_DOWN, *NORMS),
  biases=('attention_bias', 'mlp_bias'),
)
