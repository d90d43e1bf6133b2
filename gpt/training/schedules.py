"""Learning-rate schedules: functions of the 0-based step, as in optax.

Step s is the update from s to s + 1 completed steps. A schedule depends only
on the step and on `total_steps`, so a resumed run continues on the same curve.
The plateau factor (plateau.py) is applied by the training step, see `scale_lr`.

A schedule takes another number of total steps as its second argument, which may
be traced: a run with a budget moves its target (gpt/planning/clock.py), and its
step is not compiled again.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from gpt.errors import UserError


def randy(
  lr: float, min_lr: float, total_steps: int, decay_fraction: float = 0.4
) -> optax.Schedule:
  """Constant, then cosine decay to min_lr: RandyGPT's schedule.

  With S = total_steps and s0 = (1 - decay_fraction) S:

    p = clip((s - s0) / (S - s0), 0, 1)
    lr_s = min_lr + (lr - min_lr) (1 + cos(pi p)) / 2

  Args:
    lr: the constant rate.
    min_lr: the rate at total_steps and after.
    total_steps: S.
    decay_fraction: fraction of the steps that decay, in [0, 1].

  Returns:
    (step, total_steps) -> float32[] learning rate.
  """

  def schedule(step: ArrayLike, total_steps: Any = total_steps) -> jax.Array:
    start = total_steps * (1 - decay_fraction)
    p = (step - start) / at_least(total_steps - start, 1e-9)
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(p, 0.0, 1.0)))
    return min_lr + (lr - min_lr) * cosine

  return schedule


def linear_warmup(
  lr: float, total_steps: int, warmup_steps: int = 200
) -> optax.Schedule:
  """Linear warmup, then linear decay to 0: microgpt's schedule.

  With S = total_steps and W = warmup_steps:

    lr_s = lr (s + 1) / W          if s < W
           lr (S - s) / (S - W)    otherwise, clipped to [0, lr]

  Args:
    lr: the peak rate, reached at the last warmup step.
    total_steps: S.
    warmup_steps: W; the first step uses lr / W.

  Returns:
    (step, total_steps) -> float32[] learning rate.
  """

  def schedule(step: ArrayLike, total_steps: Any = total_steps) -> jax.Array:
    up = (step + 1) / max(warmup_steps, 1)
    down = (total_steps - step) / at_least(total_steps - warmup_steps, 1)
    return lr * jnp.clip(
      jnp.where(jnp.less(step, warmup_steps), up, down), 0.0, 1.0
    )

  return schedule


def wsd(
  lr: float,
  min_lr: float,
  total_steps: int,
  warmup_steps: int = 0,
  decay_fraction: float = 0.4,
) -> optax.Schedule:
  """Warmup, stable, decay: linear up, constant, linear down to min_lr.

  With S = total_steps, W = warmup_steps and s0 = (1 - decay_fraction) S:

    p = clip((s - s0) / (S - s0), 0, 1)
    lr_s = min(lr (s + 1) / W, lr + (min_lr - lr) p)

  Args:
    lr: the constant rate.
    min_lr: the rate at total_steps and after.
    total_steps: S.
    warmup_steps: W; 0 starts at the constant rate.
    decay_fraction: fraction of the steps that decay, in [0, 1].

  Returns:
    (step, total_steps) -> float32[] learning rate.

  References:
    Zhai et al. 2022 (https://arxiv.org/abs/2106.04560), section 3.5;
    Hu et al. 2024, MiniCPM (https://arxiv.org/abs/2404.06395), section 4.
  """

  def schedule(step: ArrayLike, total_steps: Any = total_steps) -> jax.Array:
    start = total_steps * (1 - decay_fraction)
    up = jnp.clip((step + 1) / max(warmup_steps, 1), 0.0, 1.0)
    p = jnp.clip((step - start) / at_least(total_steps - start, 1e-9), 0.0, 1.0)
    return jnp.minimum(lr * up, lr + (min_lr - lr) * p)

  return schedule


def at_least(x: Any, least: float) -> Any:
  """max(x, least), of a Python number or of a traced one."""
  return max(x, least) if isinstance(x, int | float) else jnp.maximum(x, least)


def scale_lr(lr: ArrayLike, scale: ArrayLike, min_lr: float) -> jax.Array:
  """max(lr * scale, min(lr, min_lr)): the plateau factor with a floor.

  The factor never takes the rate below min_lr, and never above the schedule,
  which may itself be below min_lr (during warmup).
  """
  return jnp.maximum(lr * scale, jnp.minimum(lr, min_lr))


def from_config(config: Any) -> optax.Schedule:
  """The schedule `config.opt.schedule` over `config.total_steps`.

  Args:
    config: ConfigDict; reads lr, min_lr, total_steps and opt.

  Raises:
    UserError: an unknown name; a value out of range; warmup with 'randy'.
  """
  name, opt = config.opt.schedule, config.opt
  if not 0 < config.lr:
    raise UserError(f'lr {config.lr} must be positive')
  if not 0 <= config.min_lr <= config.lr:
    raise UserError(
      f'min_lr {config.min_lr} must be between 0 and lr {config.lr}; '
      'set both, e.g. --config.lr=1e-5 --config.min_lr=1e-6'
    )
  if not 0 <= opt.decay_fraction <= 1:
    raise UserError(f'opt.decay_fraction {opt.decay_fraction} is not in [0, 1]')
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
