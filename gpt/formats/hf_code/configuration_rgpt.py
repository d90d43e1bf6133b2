"""Configuration of an rgpt model for the `transformers` library."""

from transformers import PretrainedConfig


class RgptConfig(PretrainedConfig):
  """A small GPT's shape and options.

  Args:
    vocab_size, n_embd, n_head, n_layer, block_size: the shape; block_size is
      the trained context.
    n_kv_head: key/value heads (0: n_head).
    mlp: 'relu2', 'relu', 'gelu' or 'swiglu'.
    pos: 'learned' or 'rope'.
    arch: 'randy' or 'microgpt', informative: the other options decide.
    embed_norm, qk_norm, final_norm: RMSNorm (no gain) on the embedding, on
      queries and keys, before the head.
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
    embed_norm=False,
    qk_norm=False,
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
    self.embed_norm = embed_norm
    self.qk_norm = qk_norm
    self.final_norm = final_norm
    self.logit_softcap = logit_softcap
    self.tied_embeddings = tied_embeddings
    self.dropout = dropout
    self.init_std = init_std
    self.use_cache = use_cache
    # Not transformers' own tying: a tied model has no lm_head module at all.
    kwargs['tie_word_embeddings'] = False
    super().__init__(**kwargs)
