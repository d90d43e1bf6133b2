"""GPT-2: LayerNorm, biases, learned positions; GPT2LMHeadModel.

Its Conv1D stores matrices as ours, [in, out], and one of them holds queries,
keys and values side by side.
"""

from gpt.formats.architectures.family import ACTIVATIONS, Family, Key, Row
from gpt.formats.architectures.llama import SIZES

# 'gelu_new' is GPT-2's own name for the tanh form, and the one to write.
NAMES = {'gelu_new': 'gelu', **ACTIVATIONS}

GPT2 = Family(
  model_type='gpt2',
  hf_class='GPT2LMHeadModel',
  prefix='transformer',
  keys=(
    Key('vocab_size', 'vocab_size', 50_257),
    Key('n_embd', 'n_embd', 768),
    Key('n_inner', 'mlp_width', 0, null=0),
    Key('n_layer', 'n_layer', 12),
    Key('n_head', 'n_head', 12),
    Key('n_positions', 'block_size', 1024),
    Key('layer_norm_epsilon', 'norm_eps', 1e-5),
    Key('activation_function', 'mlp', 'gelu_new', NAMES),
    Key('tie_word_embeddings', 'tied_embeddings', True),
    Key('initializer_range', 'init_std', 0.02),
    Key('resid_pdrop', 'dropout', 0.1),
  ),
  holds={
    **{k: v for k, v in SIZES.items() if k != 'n_kv_head'},
    'mlp': ('gelu', 'relu2', 'relu'),
    'pos': ('learned',),
    'norm': ('layer',),
    'norm_gain': (True,),
    'bias': (True,),
    'final_norm': (True,),
  },
  tensors=(
    Row('wte.weight', ('wte',)),
    Row('wpe.weight', ('wpe',)),
    Row('lm_head.weight', ('lm_head',), outside=True),
    Row('h.{i}.ln_1.weight', ('attn_norm',)),
    Row('h.{i}.ln_1.bias', ('attn_norm_bias',)),
    Row('h.{i}.attn.c_attn.weight', ('wq', 'wk', 'wv')),
    Row('h.{i}.attn.c_attn.bias', ('bq', 'bk', 'bv')),
    Row('h.{i}.attn.c_proj.weight', ('wo',)),
    Row('h.{i}.attn.c_proj.bias', ('bo',)),
    Row('h.{i}.ln_2.weight', ('mlp_norm',)),
    Row('h.{i}.ln_2.bias', ('mlp_norm_bias',)),
    Row('h.{i}.mlp.c_fc.weight', ('fc1',)),
    Row('h.{i}.mlp.c_fc.bias', ('b1',)),
    Row('h.{i}.mlp.c_proj.weight', ('fc2',)),
    Row('h.{i}.mlp.c_proj.bias', ('b2',)),
    Row('ln_f.weight', ('final_norm',)),
    Row('ln_f.bias', ('final_norm_bias',)),
  ),
  fixed={
    'scale_attn_weights': True,
    'scale_attn_by_inverse_layer_idx': False,
  },
  written={'embd_pdrop': 0.0, 'attn_pdrop': 0.0},
  buffers=r'(h\.\d+\.)?attn\.(masked_)?bias',
  rotary=False,
)
