"""Learning-rate schedules: functions of the 0-based step, as in optax.

Step s is the update that takes the run from s to s + 1 completed steps. Each
schedule is pure in the step and in `total_steps`, so a resumed run continues
on the same curve. The plateau factor is applied outside (plateau.py).
"""

import jax.numpy as jnp
import optax

from gpt.errors import UserError


def randy(lr, min_lr, total_steps, decay_fraction=0.4) -> optax.Schedule:
  """Constant lr, then cosine to min_lr over the last part (RandyGPT).

  lr_s = min_lr + (lr - min_lr) (1 + cos(pi p)) / 2,
  p = clip((s - s0) / (total_steps - s0), 0, 1), s0 = total (1 - fraction).
  """
  start = total_steps * (1 - decay_fraction)

  def schedule(step):
    p = (step - start) / max(total_steps - start, 1e-9)
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(p, 0.0, 1.0)))
    return min_lr + (lr - min_lr) * cosine

  return schedule


def linear_warmup(lr, total_steps, warmup_steps=200) -> optax.Schedule:
  """Linear to lr, then linear to 0 (microgpt); the first step is lr/warmup.

  lr_s = lr (s + 1) / warmup for s < warmup, else
  lr (total - s) / (total - warmup).
  """

  def schedule(step):
    up = (step + 1) / max(warmup_steps, 1)
    down = (total_steps - step) / max(total_steps - warmup_steps, 1)
    return lr * jnp.clip(jnp.where(step < warmup_steps, up, down), 0.0, 1.0)

  return schedule


def wsd(lr, min_lr, total_steps, warmup_steps=0, decay_fraction=0.4):
  """Warmup, stable, decay: linear up, constant, linear down to min_lr.

  The trapezoid of Zhai et al. 2022 and Hu et al. 2024 (MiniCPM).
  """
  start = total_steps * (1 - decay_fraction)

  def schedule(step):
    up = jnp.clip((step + 1) / max(warmup_steps, 1), 0.0, 1.0)
    p = jnp.clip((step - start) / max(total_steps - start, 1e-9), 0.0, 1.0)
    return jnp.minimum(lr * up, lr + (min_lr - lr) * p)

  return schedule


def scale_lr(lr, scale, min_lr):
  """lr * scale (the plateau factor), but not below min_lr nor above lr."""
  return jnp.maximum(lr * scale, jnp.minimum(lr, min_lr))


def from_config(config) -> optax.Schedule:
  """The schedule `config.opt.schedule` names, for `config.total_steps`."""
  name, opt = config.opt.schedule, config.opt
  if not 0 < config.lr:
    raise UserError(f'lr {config.lr} must be positive')
  if not 0 <= config.min_lr <= config.lr:
    raise UserError(
      f'min_lr {config.min_lr} must be between 0 and lr {config.lr}; '
      'set both, e.g. --config.lr=1e-5 --config.min_lr=1e-6'
    )
  if not 0 <= opt.decay_fraction <= 1:
    raise UserError(f'opt.decay_fraction {opt.decay_fraction} not in [0, 1]')
  if opt.warmup_steps < 0:
    raise UserError(f'opt.warmup_steps {opt.warmup_steps} is negative')
  if name == 'randy':
    if opt.warmup_steps:
      raise UserError(
        f'opt.warmup_steps {opt.warmup_steps}: opt.schedule randy has no '
        'warmup; set --config.opt.schedule=wsd (or linear_warmup)'
      )
    return randy(
      config.lr, config.min_lr, config.total_steps, opt.decay_fraction
    )
  if name == 'linear_warmup':
    return linear_warmup(config.lr, config.total_steps, opt.warmup_steps)
  if name == 'wsd':
    return wsd(
      config.lr,
      config.min_lr,
      config.total_steps,
      opt.warmup_steps,
      opt.decay_fraction,
    )
  raise UserError(
    f'opt.schedule {name!r} is not known; allowed: randy, linear_warmup, wsd'
  )
