"""Names of options and tensors in our own PyTorch code (hf_code)."""

# transformers 5 takes `rope_scaling` for a dictionary of its own.
OPTIONS = {'rope_scaling': 'rope_rule'}
# Vectors of a layer that have a module of their own, and biases of matrices.
GAINS = {'attn_q_gain': 'attn_q_norm', 'attn_k_gain': 'attn_k_norm'}
BIASES = {
  'attn_bq': 'attn_wq',
  'attn_bk': 'attn_wk',
  'attn_bv': 'attn_wv',
  'attn_bo': 'attn_wo',
  'mlp_b1': 'mlp_fc1',
  'mlp_bgate': 'mlp_gate',
  'mlp_b2': 'mlp_fc2',
}


def hf_tensor_name(name: str) -> str:
  """The name in hf_code: 'layer0.attn_wq' -> 'layers.0.attn_wq.weight'."""
  layer, _, leaf = name.rpartition('.')
  kind = 'weight'
  if leaf in BIASES:
    leaf, kind = BIASES[leaf], 'bias'
  elif leaf.endswith('_bias'):
    leaf, kind = leaf.removesuffix('_bias'), 'bias'
  leaf = GAINS.get(leaf, leaf)
  start = f'layers.{layer.removeprefix("layer")}.' if layer else ''
  return f'{start}{leaf}.{kind}'


def tensor_name(hf_name: str) -> str:
  """The inverse of `hf_tensor_name`; other names stay as they are."""
  path, _, kind = hf_name.rpartition('.')
  layer, _, leaf = path.rpartition('.')
  leaf = {theirs: ours for ours, theirs in GAINS.items()}.get(leaf, leaf)
  if kind == 'bias':
    biases = {theirs: ours for ours, theirs in BIASES.items()}
    leaf = biases.get(leaf, f'{leaf}_bias')
  if kind not in ('weight', 'bias'):
    return hf_name
  start = f'layer{layer.removeprefix("layers.")}.' if layer else ''
  return f'{start}{leaf}'
