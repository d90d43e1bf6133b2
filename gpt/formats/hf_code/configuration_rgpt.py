"""Configuration of an rgpt model for the `transformers` library."""

from transformers import PretrainedConfig


class RgptConfig(PretrainedConfig):
  """A small GPT's shape and options.

  Args:
    vocab_size, n_embd, n_head, n_layer, block_size: the shape; block_size is
      the trained context.
    n_kv_head: key/value heads (0: n_head).
    head_dim: width of a head (0: n_embd / n_head).
    mlp_width: width of the MLP (0: 4 n_embd).
    mlp: 'relu2', 'relu', 'gelu' or 'swiglu'.
    pos: 'learned' or 'rope'.
    arch: 'randy' or 'microgpt', informative: the other options decide.
    rope_base: RoPE's angles are position * rope_base^(-2i / head_dim).
    rope_rule: '', 'linear:FACTOR' or 'llama3:FACTOR,LOW,HIGH,CONTEXT'.
    norm: 'rms' or 'layer', with norm_eps; qk_norm is always RMSNorm.
    norm_gain: a gain in every norm of the residual stream (with norm='layer'
      and bias also a bias). qk_gain: one on queries and keys.
    bias: a bias on every matrix of a layer.
    embed_norm, qk_norm, final_norm: a norm on the embedding, on queries and
      keys, before the head.
    exclusive_attention: attention's output loses its part along the position's
      own value.
    logit_softcap: c tanh(logits / c); 0: off.
    tied_embeddings: one matrix for embedding and head.
    dropout: after the attention projection and the MLP, in training.
    init_std: standard deviation of a new model's weights.
  """

  model_type = 'rgpt'
  keys_to_ignore_at_inference = ['past_key_values']
  attribute_map = {
    'hidden_size': 'n_embd',
    'num_attention_heads': 'n_head',
    'num_hidden_layers': 'n_layer',
    'max_position_embeddings': 'block_size',
  }

  def __init__(
    self,
    vocab_size=67,
    n_embd=256,
    n_head=8,
    n_layer=6,
    block_size=256,
    n_kv_head=0,
    arch='randy',
    mlp='relu2',
    pos='learned',
    head_dim=0,
    mlp_width=0,
    rope_base=10_000.0,
    rope_rule='',
    norm='rms',
    norm_gain=False,
    norm_eps=1e-5,
    bias=False,
    qk_gain=False,
    embed_norm=False,
    qk_norm=False,
    exclusive_attention=False,
    final_norm=False,
    logit_softcap=0.0,
    tied_embeddings=False,
    dropout=0.0,
    init_std=0.02,
    use_cache=True,
    **kwargs,
  ):
    self.vocab_size = vocab_size
    self.n_embd = n_embd
    self.n_head = n_head
    self.n_layer = n_layer
    self.block_size = block_size
    self.n_kv_head = n_kv_head
    self.arch = arch
    self.mlp = mlp
    self.pos = pos
    self.head_dim = head_dim or n_embd // n_head
    self.mlp_width = mlp_width or 4 * n_embd
    self.rope_base = rope_base
    self.rope_rule = rope_rule
    self.norm = norm
    self.norm_gain = norm_gain
    self.norm_eps = norm_eps
    self.bias = bias
    self.qk_gain = qk_gain
    self.embed_norm = embed_norm
    self.qk_norm = qk_norm
    self.exclusive_attention = exclusive_attention
    self.final_norm = final_norm
    self.logit_softcap = logit_softcap
    self.tied_embeddings = tied_embeddings
    self.dropout = dropout
    self.init_std = init_std
    self.use_cache = use_cache
    # Not transformers' own tying: a tied model has no lm_head module at all.
    kwargs['tie_word_embeddings'] = False
    super().__init__(**kwargs)
