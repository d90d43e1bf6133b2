"""PyTorch peer: our architecture `randy` with PyTorch's fastest settings.

Scaled-dot-product attention (flash attention on CUDA), fused AdamW, eager or
compiled, optional autocast to bfloat16, and a decode loop with a cache.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def rms_norm(x: torch.Tensor) -> torch.Tensor:
  """RMSNorm without gain."""
  return F.rms_norm(x, (x.shape[-1],), eps=1e-5)


class Block(nn.Module):
  def __init__(self, n_embd: int, n_head: int, dropout: float):
    super().__init__()
    self.n_head, self.dropout = n_head, dropout
    self.wqkv = nn.Linear(n_embd, 3 * n_embd, bias=False)
    self.wo = nn.Linear(n_embd, n_embd, bias=False)
    self.fc1 = nn.Linear(n_embd, 4 * n_embd, bias=False)
    self.fc2 = nn.Linear(4 * n_embd, n_embd, bias=False)

  def forward(self, x, cache=None, length: int = 0):
    B, L, D = x.shape
    qkv = self.wqkv(rms_norm(x)).view(B, L, 3, self.n_head, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    if cache is None:
      out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
      cache[0][:, :, length : length + L] = k
      cache[1][:, :, length : length + L] = v
      k, v = cache[0][:, :, : length + L], cache[1][:, :, : length + L]
      out = F.scaled_dot_product_attention(q, k, v, is_causal=L > 1)
    out = self.wo(out.transpose(1, 2).reshape(B, L, D))
    x = x + F.dropout(out, self.dropout, self.training)
    out = self.fc2(F.relu(self.fc1(rms_norm(x))).square())
    return x + F.dropout(out, self.dropout, self.training)


class TorchGPT(nn.Module):
  """Tokens int64[B, L] -> logits float32[B, L, V]."""

  def __init__(self, cfg):
    super().__init__()
    self.cfg = cfg
    self.wte = nn.Embedding(cfg.vocab_size, cfg.n_embd)
    self.wpe = nn.Embedding(cfg.block_size, cfg.n_embd)
    self.blocks = nn.ModuleList(
      Block(cfg.n_embd, cfg.n_head, cfg.dropout) for _ in range(cfg.n_layer)
    )
    self.lm_head = nn.Linear(cfg.n_embd, cfg.vocab_size, bias=False)
    for name, p in self.named_parameters():
      std = 0.01 if name.startswith('wpe') else 0.02
      if name.endswith(('wo.weight', 'fc2.weight')):
        std = 0.02 / (2 * cfg.n_layer) ** 0.5
      nn.init.normal_(p, std=std)

  def forward(self, tokens, caches=None, length: int = 0):
    position = torch.arange(
      length, length + tokens.shape[1], device=tokens.device
    )
    x = self.wte(tokens) + self.wpe(position)
    for i, block in enumerate(self.blocks):
      x = block(x, None if caches is None else caches[i], length)
    return self.lm_head(x)

  def loss(self, tokens):
    """Mean next-token cross-entropy of int64[B, T+1]."""
    logits = self(tokens[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


class TorchTrainer:
  """One optimizer step per call: element-wise clipping, fused AdamW."""

  def __init__(
    self, cfg, lr: float, *, compiled: bool, device='cpu', bf16=False
  ):
    torch.manual_seed(0)
    self.model = TorchGPT(cfg).to(device).train()
    self.device, self.bf16 = device, bf16
    self.optimizer = torch.optim.AdamW(
      self.model.parameters(),
      lr=lr,
      betas=(0.9, 0.999),
      eps=1e-8,
      weight_decay=0.1,
      fused=True,
    )
    loss = self.model.loss
    self._loss = torch.compile(loss) if compiled else loss

  def step(self, tokens: np.ndarray, wait: bool = True) -> float | torch.Tensor:
    """Trains on int64[B, T+1]; returns the loss, a tensor unless `wait`."""
    tokens = torch.from_numpy(tokens).to(self.device)
    with torch.autocast(
      torch.device(self.device).type, torch.bfloat16, enabled=self.bf16
    ):
      loss = self._loss(tokens)
    loss.backward()
    torch.nn.utils.clip_grad_value_(self.model.parameters(), 1.0)
    self.optimizer.step()
    self.optimizer.zero_grad(set_to_none=True)
    return loss.item() if wait else loss


@torch.inference_mode()
def decode(model: TorchGPT, batch: int, tokens: int) -> int:
  """Samples `tokens` tokens for each of `batch` streams; returns the total."""
  cfg = model.cfg
  head_dim = cfg.n_embd // cfg.n_head
  device = next(model.parameters()).device
  shape = (batch, cfg.n_head, cfg.block_size, head_dim)
  caches = [
    (torch.zeros(shape, device=device), torch.zeros(shape, device=device))
    for _ in range(cfg.n_layer)
  ]
  token = torch.ones((batch, 1), dtype=torch.long, device=device)
  for i in range(tokens):
    logits = model(token, caches, i)[:, -1]
    token = torch.multinomial(torch.softmax(logits, -1), 1)
  token.cpu()
  return batch * tokens
