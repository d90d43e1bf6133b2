"""Peer of the recipes: nanoGPT's CPU recipe in PyTorch, start to finish.

    python -m launch.bench.peers.nanogpt_cpu --workdir=runs/nanogpt_cpu

Architecture (GPT-2: LayerNorm, GELU, tied embeddings) and hyperparameters are
those of the command for CPUs in nanoGPT's README; the code is our own. The
validation loss is computed like our full pass: the last 10 % of the text, every
target once, in windows of 64.
"""

import json
import math
import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F
from absl import flags
from torch import nn

from gpt import devices
from launch import cli

WORKDIR = flags.DEFINE_string(
  'workdir', 'runs/nanogpt_cpu', 'Directory for metrics.jsonl.'
)
SEED = flags.DEFINE_integer('seed', 1337, 'Seed of weights and windows.')

N_LAYER, N_HEAD, N_EMBD, BLOCK_SIZE = 4, 4, 128, 64
BATCH_SIZE, STEPS, WARMUP, EVAL_EVERY = 12, 2000, 100, 250
LR, MIN_LR, BETAS, WEIGHT_DECAY, CLIP = 1e-3, 1e-4, (0.9, 0.99), 0.1, 1.0


def layer_norm() -> nn.LayerNorm:
  return nn.LayerNorm(N_EMBD, bias=False)


def linear(fan_in: int, fan_out: int) -> nn.Linear:
  return nn.Linear(fan_in, fan_out, bias=False)


class Block(nn.Module):
  def __init__(self):
    super().__init__()
    self.norm1, self.norm2 = layer_norm(), layer_norm()
    self.qkv, self.out = linear(N_EMBD, 3 * N_EMBD), linear(N_EMBD, N_EMBD)
    self.fc1, self.fc2 = linear(N_EMBD, 4 * N_EMBD), linear(4 * N_EMBD, N_EMBD)

  def forward(self, x):
    B, L, D = x.shape
    q, k, v = (
      self.qkv(self.norm1(x)).view(B, L, 3, N_HEAD, -1).permute(2, 0, 3, 1, 4)
    )
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + self.out(y.transpose(1, 2).reshape(B, L, D))
    return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class NanoGPT(nn.Module):
  """Tokens and targets int64[B, L] -> cross-entropy (mean or sum), nats."""

  def __init__(self, vocab_size: int):
    super().__init__()
    self.wte = nn.Embedding(vocab_size, N_EMBD)
    self.wpe = nn.Embedding(BLOCK_SIZE, N_EMBD)
    self.blocks = nn.Sequential(*[Block() for _ in range(N_LAYER)])
    self.norm = layer_norm()
    for name, p in self.named_parameters():
      if p.dim() == 2:
        residual = name.endswith(('out.weight', 'fc2.weight'))
        depth = 2 * N_LAYER if residual else 1
        nn.init.normal_(p, std=0.02 / depth**0.5)

  def forward(self, tokens, targets, reduction='mean'):
    x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
    logits = self.norm(self.blocks(x)) @ self.wte.weight.T
    return F.cross_entropy(
      logits.flatten(0, 1), targets.flatten(), reduction=reduction
    )


def learning_rate(step: int) -> float:
  """Linear warmup, then cosine decay to MIN_LR at STEPS."""
  if step < WARMUP:
    return LR * (step + 1) / (WARMUP + 1)
  part = (step - WARMUP) / (STEPS - WARMUP)
  return MIN_LR + 0.5 * (1 + math.cos(math.pi * part)) * (LR - MIN_LR)


@torch.inference_mode()
def full_pass(model: NanoGPT, ids: np.ndarray) -> float:
  """Mean nats of all targets of int64[n] ids, in consecutive windows."""
  ids, total = torch.from_numpy(ids), 0.0
  n = len(ids) - 1
  whole = n // BLOCK_SIZE * BLOCK_SIZE
  x = ids[:whole].view(-1, BLOCK_SIZE)
  y = ids[1 : whole + 1].view(-1, BLOCK_SIZE)
  for i in range(0, len(x), 128):
    total += model(x[i : i + 128], y[i : i + 128], 'sum').item()
  if whole < n:
    total += model(ids[None, whole:-1], ids[None, whole + 1 :], 'sum').item()
  return total / n


def main(_):
  from gpt.data.sources import find_sources

  began = time.perf_counter()
  (source,) = find_sources('shakespeare').items
  with source.open() as file:
    text = file.read().decode()
  vocabulary = {c: i for i, c in enumerate(sorted(set(text)))}
  ids = np.array([vocabulary[c] for c in text], np.int64)
  train, val = np.split(ids, [int(0.9 * len(ids))])

  torch.manual_seed(SEED.value)
  torch.set_num_threads(devices.num_cores())
  rng = np.random.default_rng(SEED.value)
  model = NanoGPT(len(vocabulary))
  decayed = [p for p in model.parameters() if p.dim() == 2]
  others = [p for p in model.parameters() if p.dim() != 2]
  optimizer = torch.optim.AdamW(
    [
      {'params': decayed, 'weight_decay': WEIGHT_DECAY},
      {'params': others, 'weight_decay': 0.0},
    ],
    lr=LR,
    betas=BETAS,
    fused=True,
  )
  workdir = pathlib.Path(WORKDIR.value)
  workdir.mkdir(parents=True, exist_ok=True)
  with (workdir / 'metrics.jsonl').open('w') as metrics:

    def record(step, **values):
      elapsed = time.perf_counter() - began
      line = json.dumps({'step': step, 'elapsed_s': elapsed, **values})
      metrics.write(line + '\n')
      print(line, flush=True)

    for step in range(STEPS):
      if step % EVAL_EVERY == 0:
        record(step, val_loss=full_pass(model, val[: 20 * 12 * BLOCK_SIZE + 1]))
      for group in optimizer.param_groups:
        group['lr'] = learning_rate(step)
      start = rng.integers(0, len(train) - BLOCK_SIZE, BATCH_SIZE)
      windows = torch.from_numpy(
        train[start[:, None] + np.arange(BLOCK_SIZE + 1)]
      )
      model(windows[:, :-1], windows[:, 1:]).backward()
      torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
      optimizer.step()
      optimizer.zero_grad(set_to_none=True)
    loss = full_pass(model, val)
    record(
      STEPS,
      val_loss=loss,
      full_final_nats_per_token=loss,
      full_final_bits_per_byte=loss / math.log(2),
      full_final_tokens=len(val) - 1,
    )


if __name__ == '__main__':
  cli.run(main)
