"""Optax chains: gradients -> directions; the step multiplies by -lr.

The learning rate stays outside the chain: train_step computes it from the step
and the plateau factor and reports the very number it used.
"""

import jax
import numpy as np
import optax

from gpt.errors import UserError
from gpt.training import muon


def create(config, mesh=None, mixed=False) -> optax.GradientTransformation:
  """The chain `config.opt` describes; updates are to be scaled by -lr.

  Args:
    mesh: devices over which Muon shares its iterations out; None: one.
    mixed: whether Muon's products are in mixed precision, as the model's.
  """
  opt = config.opt
  if opt.name == 'adamw':
    return optax.chain(clipping(opt), adamw(opt))
  if opt.name == 'muon':
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
        mesh=mesh,
      ),
    )
  raise UserError(f'opt.name {opt.name!r} is not known; allowed: adamw, muon')


def adamw(opt) -> optax.GradientTransformation:
  """Adam with decoupled decay on every tensor (Loshchilov & Hutter 2019)."""
  for name in ('b1', 'b2'):
    if not 0 <= opt[name] < 1:
      raise UserError(f'opt.{name} {opt[name]} is not in [0, 1)')
  if opt.weight_decay < 0 or opt.eps <= 0:
    raise UserError('opt.weight_decay must be >= 0 and opt.eps > 0')
  return optax.chain(
    optax.scale_by_adam(b1=opt.b1, b2=opt.b2, eps=opt.eps),
    optax.add_decayed_weights(opt.weight_decay)
    if opt.weight_decay
    else optax.identity(),
  )


def clipping(opt) -> optax.GradientTransformation:
  """'element' clamps every gradient entry to +-clip_value (RandyGPT)."""
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


def is_adam(x) -> bool:
  return isinstance(x, optax.ScaleByAdamState)


def adam_state(opt_state):
  """The ScaleByAdamState (count, mu, nu) of all parameters, or None.

  Under Muon there is one, but not for the matrices of the blocks: None.
  """
  found = [x for x in jax.tree.leaves(opt_state, is_leaf=is_adam) if is_adam(x)]
  if len(found) != 1 or not any(map(muon.is_block, found[0].mu)):
    return None
  return found[0]


def with_adam_state(opt_state, mu, nu, count: int):
  """The same optax state with Adam's moments and step replaced."""
  new = optax.ScaleByAdamState(np.asarray(count, np.int32), mu, nu)
  return jax.tree.map(
    lambda x: new if is_adam(x) else x, opt_state, is_leaf=is_adam
  )
