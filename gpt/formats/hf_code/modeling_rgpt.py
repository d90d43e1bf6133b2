"""An rgpt model in PyTorch, for the `transformers` library.

Architecture `randy`: token + learned position embedding, then for each layer
  x += drop(Wo attn(rms(x)));  x += drop(W2 relu(W1 rms(x))^2)
and a head on the raw residual stream: no biases, no gains, no final norm.
`microgpt`: RMSNorm after the embedding, ReLU instead of its square. The options
of RgptConfig add the rest.

Norms, softmax and logits are float32 for any dtype of the weights. `generate`
can exceed the trained context: it then drops the older half of the window and
recomputes the rest from position 0.

Shapes: B batch, L queries, S keys, D width, H heads, K head width.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_rgpt import RgptConfig

MASKED = -1e9  # Finite, so that rows of padding, which see nothing, are no NaN.
OWN_VALUE_EPS = 1e-6


class Norm(nn.Module):
  """RMSNorm or LayerNorm over the last axis, in float32."""

  def __init__(self, config, width, kind, gain):
    super().__init__()
    self.eps, self.centred = config.norm_eps, kind == 'layer'
    self.weight = nn.Parameter(torch.ones(width)) if gain else None
    biased = gain and self.centred and config.bias
    self.bias = nn.Parameter(torch.zeros(width)) if biased else None

  def forward(self, x):
    x32 = x.float()
    if self.centred:
      x32 = x32 - x32.mean(-1, keepdim=True)
    x32 = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)
    if self.weight is not None:
      x32 = x32 * self.weight.float()
    if self.bias is not None:
      x32 = x32 + self.bias.float()
    return x32.to(x.dtype)


def stream_norm(config):
  """A norm of the residual stream."""
  return Norm(config, config.n_embd, config.norm, config.norm_gain)


def rope_frequencies(config, device):
  """float32[K / 2]: radians per position of each rotated pair."""
  half = config.head_dim // 2
  steps = torch.arange(half, dtype=torch.float32, device=device)
  freqs = config.rope_base ** (-steps / half)
  kind, _, numbers = config.rope_rule.partition(':')
  if not kind:
    return freqs
  values = [float(x) for x in numbers.split(',')]
  if kind == 'linear':
    return freqs / values[0]
  if kind == 'llama3':
    factor, low, high, context = values
    turns = context * freqs / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return freqs * (kept + (1 - kept) / factor)
  raise ValueError(f'unknown rope_rule {config.rope_rule!r}')


def rope(x, positions, freqs):
  """Rotary embedding of [B, L, H, K], halves paired."""
  angles = positions[:, :, None].float() * freqs
  cos, sin = angles.cos()[:, :, None], angles.sin()[:, :, None]
  a, b = x.float().chunk(2, dim=-1)
  return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def exclusive(out, own):
  """Attention's output without what lies along each position's own value."""
  y, v = out.float(), own.float()
  along = (y * v).sum(-1, keepdim=True)
  along = along / ((v * v).sum(-1, keepdim=True) + OWN_VALUE_EPS)
  return (y - along * v).to(out.dtype)


class RgptBlock(nn.Module):
  def __init__(self, config, index):
    super().__init__()
    D, F, K, bias = (
      config.n_embd,
      config.mlp_width,
      config.head_dim,
      config.bias,
    )
    self.config, self.index, self.head_dim = config, index, K
    self.kv_heads = config.n_kv_head or config.n_head
    self.attn_norm = stream_norm(config)
    self.attn_wq = nn.Linear(D, config.n_head * K, bias=bias)
    self.attn_wk = nn.Linear(D, self.kv_heads * K, bias=bias)
    self.attn_wv = nn.Linear(D, self.kv_heads * K, bias=bias)
    if config.qk_norm:
      self.attn_q_norm = Norm(config, K, 'rms', config.qk_gain)
      self.attn_k_norm = Norm(config, K, 'rms', config.qk_gain)
    self.attn_wo = nn.Linear(config.n_head * K, D, bias=bias)
    self.mlp_norm = stream_norm(config)
    self.mlp_fc1 = nn.Linear(D, F, bias=bias)
    if config.mlp == 'swiglu':
      self.mlp_gate = nn.Linear(D, F, bias=bias)
    self.mlp_fc2 = nn.Linear(F, D, bias=bias)

  def forward(self, x, positions, mask, cache):
    attended = self.attention(self.attn_norm(x), positions, mask, cache)
    x = x + self.drop(attended)
    return x + self.drop(self.mlp(self.mlp_norm(x)))

  def drop(self, x):
    return F.dropout(x, self.config.dropout, self.training)

  def attention(self, x, positions, mask, cache):
    B, L, _ = x.shape
    q = self.attn_wq(x).view(B, L, -1, self.head_dim)
    k = self.attn_wk(x).view(B, L, -1, self.head_dim)
    v = self.attn_wv(x).view(B, L, -1, self.head_dim)
    if self.config.qk_norm:
      q, k = self.attn_q_norm(q), self.attn_k_norm(k)
    if self.config.pos == 'rope':
      freqs = rope_frequencies(self.config, x.device)
      q, k = rope(q, positions, freqs), rope(k, positions, freqs)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    own = v
    if cache is not None:
      k, v = cache.update(k, v, self.index)
    k, v = self.for_queries(k), self.for_queries(v)
    scores = (q @ k.transpose(2, 3)).float() * self.head_dim**-0.5
    scores = scores.masked_fill(~mask, MASKED)
    out = scores.softmax(-1).to(v.dtype) @ v
    if self.config.exclusive_attention:
      out = exclusive(out, self.for_queries(own))
    return self.attn_wo(out.transpose(1, 2).reshape(B, L, -1))

  def for_queries(self, kv):
    """Each key/value head repeated for its query heads."""
    repeats = self.config.n_head // self.kv_heads
    return kv if repeats == 1 else kv.repeat_interleave(repeats, dim=1)

  def mlp(self, x):
    h = self.mlp_fc1(x)
    if self.config.mlp == 'swiglu':
      h = F.silu(self.mlp_gate(x)) * h
    elif self.config.mlp == 'gelu':
      h = F.gelu(h, approximate='tanh')
    elif self.config.mlp == 'relu2':
      h = F.relu(h).square()
    elif self.config.mlp == 'relu':
      h = F.relu(h)
    else:
      raise ValueError(f'unknown mlp {self.config.mlp!r}')
    return self.mlp_fc2(h)


class RgptForCausalLM(PreTrainedModel, GenerationMixin):
  config_class = RgptConfig
  main_input_name = 'input_ids'
  _no_split_modules = ['RgptBlock']
  _supports_cache_class = True
  # The loss is a mean over the batch, which Trainer scales itself.
  accepts_loss_kwargs = False

  def __init__(self, config):
    super().__init__(config)
    self.wte = nn.Embedding(config.vocab_size, config.n_embd)
    if config.pos == 'learned':
      self.wpe = nn.Embedding(config.block_size, config.n_embd)
    if config.embed_norm:
      self.embed_norm = stream_norm(config)
    self.layers = nn.ModuleList(
      RgptBlock(config, i) for i in range(config.n_layer)
    )
    if config.final_norm:
      self.final_norm = stream_norm(config)
    if not config.tied_embeddings:
      self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
    self.post_init()

  def get_input_embeddings(self):
    return self.wte

  def set_input_embeddings(self, value):
    self.wte = value

  def get_output_embeddings(self):
    return None if self.config.tied_embeddings else self.lm_head

  def set_output_embeddings(self, value):
    self.lm_head = value

  def _init_weights(self, module):
    if isinstance(module, (nn.Linear, nn.Embedding)):
      nn.init.normal_(module.weight, std=self.config.init_std)
    if isinstance(module, Norm) and module.weight is not None:
      nn.init.ones_(module.weight)
    if getattr(module, 'bias', None) is not None:
      nn.init.zeros_(module.bias)

  def forward(
    self,
    input_ids,
    attention_mask=None,
    position_ids=None,
    past_key_values=None,
    labels=None,
    use_cache=None,
    return_dict=None,
    **kwargs,
  ):
    """Logits float32[B, L, V] of the token after each position.

    Args:
      input_ids: int[B, L].
      attention_mask: [B, S]; 0 marks padding among all S tokens so far.
      position_ids: int[B, L]; default: positions without padding.
      past_key_values: the cache of the preceding tokens.
      labels: int[B, L], -100 where there is none; the loss is the mean
        cross-entropy of each label given the tokens before it.
    """
    config = self.config
    use_cache = config.use_cache if use_cache is None else use_cache
    if use_cache and past_key_values is None:
      past_key_values = DynamicCache()
    past = 0 if past_key_values is None else past_key_values.get_seq_length()
    B, L = input_ids.shape
    S = past + L
    steps = torch.arange(S, device=input_ids.device)
    mask = (steps[None] <= steps[past:, None])[None, None]
    if attention_mask is not None:
      if attention_mask.shape != (B, S):
        raise ValueError(
          f'attention_mask is {tuple(attention_mask.shape)}, not {(B, S)}: '
          'one entry for each token so far'
        )
      mask = mask & attention_mask.bool()[:, None, None]
    if position_ids is None:
      if attention_mask is None:
        position_ids = steps[None, past:].expand(B, L)
      else:
        counted = attention_mask.long().cumsum(-1) - 1
        position_ids = counted[:, past:].clamp(min=0)
    if int(position_ids.max()) >= config.block_size:
      raise ValueError(
        f'position {int(position_ids.max())} is outside the trained context '
        f'of {config.block_size} tokens: give at most that many (generate() '
        'can exceed it)'
      )

    x = self.wte(input_ids)
    if config.pos == 'learned':
      x = x + self.wpe(position_ids)
    if config.embed_norm:
      x = self.embed_norm(x)
    for layer in self.layers:
      x = layer(x, position_ids, mask, past_key_values)
    if config.final_norm:
      x = self.final_norm(x)
    head = self.wte if config.tied_embeddings else self.lm_head
    logits = F.linear(x, head.weight).float()
    if config.logit_softcap:
      logits = config.logit_softcap * torch.tanh(logits / config.logit_softcap)

    loss = None
    if labels is not None:
      loss = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten().to(logits.device)
      )
    if return_dict is False:
      out = (logits, past_key_values) if use_cache else (logits,)
      return out if loss is None else (loss, *out)
    return CausalLMOutputWithPast(
      loss=loss, logits=logits, past_key_values=past_key_values
    )

  def window_start(self, n):
    """First token of the window of n tokens; 0 while they fit."""
    size = self.config.block_size
    stride = max(1, size // 2)
    return 0 if n <= size else stride * -(-(n - size) // stride)

  def prepare_inputs_for_generation(
    self,
    input_ids,
    past_key_values=None,
    attention_mask=None,
    use_cache=None,
    **kwargs,
  ):
    """The part of the window of the tokens so far that the cache lacks."""
    n = input_ids.shape[1]
    start = self.window_start(n)
    if attention_mask is None:
      attention_mask = torch.ones_like(input_ids)
    window, seen = input_ids[:, start:], attention_mask[:, start:]
    positions = (seen.long().cumsum(-1) - 1).clamp(min=0)
    cached = 0
    if past_key_values is not None:
      cached = past_key_values.get_seq_length()
      moved = start > 0 and cached != window.shape[1] - 1
      if cached and (moved or cached >= window.shape[1]):
        past_key_values, cached = DynamicCache(), 0
    return {
      'input_ids': window[:, cached:],
      'attention_mask': seen,
      'position_ids': positions[:, cached:],
      'past_key_values': past_key_values,
      'use_cache': use_cache,
    }
