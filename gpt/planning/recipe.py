"""The family of recipes that a budget chooses from: configs/speedrun_*.py, for
every size, text and length.

Shape, text and length of a run decide its learning rates, batch, schedule and
regularisation. The constants interpolate the speedruns, which were tuned by
hand (docs/results.md).
"""

import math
from typing import Any

HEAD_DIM = 32
# The smallest batch, in tokens: that of speedrun_1min, which 2.4M tokens train.
BATCH_TOKENS = 2048
MUON_LR, ADAMW_LR = 0.03, 5e-3
# The pressure from which MLPs have gates, and dropout begins.
GATED_FROM = 4.0


def parameters(width: int, depth: int, vocab: int) -> int:
  """Parameters of a model of the family, about: 12 N D^2 + 2 V D.

  Its blocks have four matrices D x D and an MLP of two matrices D x 4 D, or of
  three D x F that are as large together (`mlp`); embedding and head are
  separate, and positions (RoPE) have no parameters.
  """
  return block_parameters(width, depth) + 2 * vocab * width


def block_parameters(width: int, depth: int) -> int:
  """Parameters of the blocks, but for the rounding of F: 12 N D^2."""
  return 12 * depth * width**2


def mlp(width: int, heat: float, kind: str = '') -> tuple[str, int]:
  """(kind of the MLP, its width F) for a pressure; `kind`: a given one.

  A gate takes more time than it is worth in a short run, and pays where a text
  is read often (docs/results.md). F is 4 D; with a gate a multiple of 32, about
  8/3 D, as its third matrix takes the rest.
  """
  kind = kind or ('swiglu' if heat > GATED_FROM else 'relu2')
  if kind == 'swiglu':
    return kind, 32 * max(1, round(width / 12))
  return kind, 4 * width


def batch_size(context: int, tokens_seen: float) -> int:
  """Sequences per step: more of them the longer the run.

  2,048 tokens for a minute (2.4M tokens in all), 4,096 for ten minutes (16M),
  doubling with every factor of 6.5. A multiple of 4, so that it splits over
  most machines' cores.
  """
  tokens = BATCH_TOKENS * max(1.0, tokens_seen / 2.4e6) ** 0.37
  return max(4, 4 * round(tokens / context / 4))


def pressure(parameters: int, tokens_seen: float, text_tokens: float) -> float:
  """How much a run tempts a model to learn its text by heart.

    P = passes sqrt(parameters / text_tokens)

  16 for speedrun_10min, which reads 1.0M characters 15 times; 2.4M tokens of
  the one-minute run have 1.6, a single pass of a large text less than 1.
  """
  return tokens_seen / text_tokens * (parameters / text_tokens) ** 0.5


def options(
  width: int,
  depth: int,
  vocab: int,
  context: int,
  tokens_seen: float,
  text_tokens: float,
  mlp_kind: str = '',
) -> dict[str, Any]:
  """Overrides of configs/default.py for a run of the family.

  Args:
    width: of the residual stream; a multiple of HEAD_DIM.
    depth: blocks.
    vocab: tokens of the vocabulary.
    context: tokens of a window.
    tokens_seen: tokens the run trains on, repeats included.
    text_tokens: tokens of the training split.
    mlp_kind: model.mlp, if it was given.

  Returns:
    {'model.n_embd': 128, 'total_steps': 3800, ...}, flat keys.
  """
  batch = batch_size(context, tokens_seen)
  steps = max(1, round(tokens_seen / (batch * context)))
  heat = pressure(parameters(width, depth, vocab), tokens_seen, text_tokens)
  length = (max(steps, 200) / 1150) ** -0.2  # 1,150 steps: speedrun_1min.
  narrow = (96 / width) ** 0.5
  kind, mlp_width = mlp(width, heat, mlp_kind)
  return {
    'lr': round(ADAMW_LR * min(1.0, (128 / width) ** 0.5), 6),
    'min_lr': 0.0,
    'batch_size': batch,
    'total_steps': steps,
    'model.arch': 'randy',
    'model.n_embd': width,
    'model.n_head': max(1, width // HEAD_DIM),
    'model.n_layer': depth,
    'model.block_size': context,
    'model.dropout': dropout(heat),
    'model.pos': 'rope',
    'model.mlp': kind,
    'model.mlp_width': mlp_width,
    'model.qk_norm': True,
    'model.exclusive_attention': True,
    'model.final_norm': True,
    'model.logit_softcap': 15.0,
    'model.zero_init': True,
    'opt.name': 'normuon',
    'opt.muon_lr': round(min(0.05, MUON_LR * narrow * length), 6),
    'opt.muon_momentum': 0.9,
    'opt.schedule': 'wsd',
    'opt.decay_fraction': 0.7,
    'opt.warmup_steps': min(100, max(5, steps // 60)),
    'opt.b2': 0.99,
    'opt.weight_decay': weight_decay(heat),
    'opt.plateau_patience': 0,
  }


def dropout(heat: float) -> float:
  """Drop probability for a pressure: 0 up to 4, 0.1 at 16, at most 0.3."""
  return round(min(0.3, 0.05 * math.log2(max(1.0, heat / GATED_FROM))), 3)


def weight_decay(heat: float) -> float:
  """Decoupled weight decay for a pressure: 0.02 to 0.3, 0.2 at 16."""
  return round(min(0.3, max(0.02, heat / 80)), 4)
