"""What training changes, arrays only: all a checkpoint must hold to go on.

There is no random state: every key is folded from (seed, step), and the data
order is a function of (seed, step) too.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class TrainState:
  """Attributes:
  step: int32[], completed optimizer steps.
  params: float32 tree of the model.
  opt_state: the optax state; Adam's count is its own step.
  lr_scale: float32[], the plateau factor on the learning rate.
  ema: running average of params, or None.
  """

  step: Any
  params: Any
  opt_state: Any
  lr_scale: Any
  ema: Any = None


def create(model, tx, key, *, ema: bool = False) -> TrainState:
  """A fresh state; pure, so it can be jitted or traced abstractly."""
  params = model.init(key, jnp.zeros((1, 1), jnp.int32))['params']
  return from_params(params, tx, ema=ema)


def from_params(params, tx, *, ema: bool = False) -> TrainState:
  """A state at step 0 around given weights."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=tx.init(params),
    lr_scale=jnp.ones((), jnp.float32),
    ema=jax.tree.map(jnp.copy, params) if ema else None,
  )


def eval_params(state: TrainState):
  """The weights to judge and to sample with: the average where there is one."""
  return state.params if state.ema is None else state.ema
