"""Optimizers: optax chains from gradients to update directions.

The learning rate is not part of the chain. The training step computes it from
the schedule and the plateau factor, applies params -= lr * direction, and
reports that same number.
"""

import functools
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from gpt.errors import UserError
from gpt.training import muon

# Values of opt.name whose matrices of blocks get Muon.
MUONS = ('muon', 'normuon')


def create(
  config: Any, mesh: Mesh | None = None, mixed: bool = False
) -> optax.GradientTransformation:
  """Gradient clipping, then AdamW, Muon or NorMuon, from `config.opt`.

  Args:
    config: Any; reads `lr` and `opt`.
    mesh: devices that share Muon's iterations; None: a single device.
    mixed: Muon iterates with bfloat16 operands, as the model's products.

  Returns:
    A transformation whose updates are directions, to be scaled by -lr.

  Raises:
    UserError: an unknown name or a value out of range.
  """
  opt = config.opt
  if opt.name == 'adamw':
    return optax.chain(clipping(opt), adamw(opt))
  if opt.name in MUONS:
    if opt.muon_lr <= 0 or opt.muon_steps < 1 or not 0 <= opt.muon_momentum < 1:
      raise UserError(
        f'opt.muon_lr {opt.muon_lr} must be positive, opt.muon_steps '
        f'{opt.muon_steps} at least 1 and opt.muon_momentum '
        f'{opt.muon_momentum} in [0, 1)'
      )
    return optax.chain(
      clipping(opt),
      muon.muon(
        adamw(opt),
        scale=opt.muon_lr / config.lr,
        momentum=opt.muon_momentum,
        steps=opt.muon_steps,
        mixed=mixed,
        weight_decay=opt.weight_decay,
        by_neuron=opt.name == 'normuon',
        mesh=mesh,
      ),
    )
  raise UserError(
    f'opt.name {opt.name!r} is not known; allowed: adamw, {", ".join(MUONS)}'
  )


def adamw(opt: Any) -> optax.GradientTransformation:
  """AdamW directions: Adam with decoupled weight decay.

    m_t = b1 m_{t-1} + (1 - b1) g_t
    v_t = b2 v_{t-1} + (1 - b2) g_t^2
    u_t = (m_t / (1 - b1^t)) / (sqrt(v_t / (1 - b2^t)) + eps)
          + weight_decay * params

  Matrices decay, embeddings included; gains and biases do not.

  Args:
    opt: ConfigDict `config.opt`; reads b1, b2, eps and weight_decay.

  Raises:
    UserError: a value out of range.

  References:
    Kingma & Ba 2015, Adam (https://arxiv.org/abs/1412.6980);
    Loshchilov & Hutter 2019, AdamW (https://arxiv.org/abs/1711.05101).
  """
  for name in ('b1', 'b2'):
    if not 0 <= opt[name] < 1:
      raise UserError(f'opt.{name} {opt[name]} is not in [0, 1)')
  if opt.weight_decay < 0 or opt.eps <= 0:
    raise UserError(
      f'opt.weight_decay must be >= 0 and opt.eps > 0, got {opt.weight_decay} '
      f'and {opt.eps}'
    )
  return optax.chain(
    optax.scale_by_adam(b1=opt.b1, b2=opt.b2, eps=opt.eps),
    # A mask of optax would add a level to the state, which checkpoints hold.
    optax.stateless(functools.partial(_decayed, opt.weight_decay))
    if opt.weight_decay
    else optax.identity(),
  )


def _decayed(weight_decay: float, updates: Any, params: Any) -> Any:
  return jax.tree.map(
    lambda u, p: u + weight_decay * p if p.ndim > 1 else u, updates, params
  )


def clipping(opt: Any) -> optax.GradientTransformation:
  """Gradient clipping by `opt.clip`, with c = opt.clip_value:

    'element': g_i = min(max(g_i, -c), c), RandyGPT's default
    'global_norm': g = g * min(1, c / |g|) (Pascanu et al. 2013)
    'none': g

  Raises:
    UserError: an unknown name; c <= 0.
  """
  if opt.clip != 'none' and opt.clip_value <= 0:
    raise UserError(f'opt.clip_value {opt.clip_value} must be positive')
  if opt.clip == 'element':
    return optax.clip(opt.clip_value)
  if opt.clip == 'global_norm':
    return optax.clip_by_global_norm(opt.clip_value)
  if opt.clip == 'none':
    return optax.identity()
  raise UserError(
    f'opt.clip {opt.clip!r} is not known; allowed: element, global_norm, none'
  )


def is_adam(x: Any) -> bool:
  """Whether a node of an optimizer state is Adam's."""
  return isinstance(x, optax.ScaleByAdamState)


def adam_state(opt_state: Any) -> optax.ScaleByAdamState | None:
  """Adam's (count, mu, nu) if they cover all params, else None.

  With Muon, Adam's state lacks the block matrices: None.
  """
  found = [x for x in jax.tree.leaves(opt_state, is_leaf=is_adam) if is_adam(x)]
  if len(found) != 1 or not jax.tree.leaves(muon.split_tree(found[0].mu)[0]):
    return None
  return found[0]


def with_adam_state(opt_state: Any, mu: Any, nu: Any, count: int) -> Any:
  """A copy of the optimizer state with Adam's moments and count replaced.

  Args:
    mu, nu: float32 trees like params, first and second moments.
    count: Adam's step, the number of updates that made the moments.
  """
  new = optax.ScaleByAdamState(np.asarray(count, np.int32), mu, nu)
  return jax.tree.map(
    lambda x: new if is_adam(x) else x, opt_state, is_leaf=is_adam
  )
