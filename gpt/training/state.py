"""Training state: the arrays that change during training, and no others.

There is no random state. Every key is folded from (seed, step) and the data
order is a function of (seed, step), so this is all a checkpoint needs to resume
exactly.
"""

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from gpt.model import GPT
from gpt.model.params import Params
from gpt.training.lora import Adapted

if TYPE_CHECKING:
  import optax  # Slow, and loading a model does not need it.


@struct.dataclass
class TrainState:
  """Attributes:
  step: int32[], number of completed optimizer steps.
  params: float32 tree: the model's weights or, with LoRA, its adapters.
  opt_state: state of the optax transformation; Adam counts its own steps.
  lr_scale: float32[], plateau factor on the learning rate.
  ema: exponential moving average of params, or None.
  """

  step: jax.Array
  params: Params
  opt_state: Any
  lr_scale: jax.Array
  ema: Params | None = None


def create_state(
  model: GPT | Adapted,
  tx: 'optax.GradientTransformation',
  key: jax.Array,
  *,
  ema: bool = False,
) -> TrainState:
  """Initialises a state at step 0; pure, so it can be jitted or eval_shaped.

  Args:
    key: the initialisation key (`jax.random.key`).
    ema: whether to keep an average of the params.
  """
  params = model.init(key, jnp.zeros((1, 1), jnp.int32))['params']
  return state_from_params(params, tx, ema=ema)


def abstract_state(
  model: GPT | Adapted,
  tx: 'optax.GradientTransformation',
  *,
  ema: bool = False,
) -> TrainState:
  """A state as ShapeDtypeStructs; see `create_state`."""
  create = functools.partial(create_state, model, tx, ema=ema)
  return jax.eval_shape(create, jax.eval_shape(jax.random.key, 0))


def state_from_params(
  params: Params, tx: 'optax.GradientTransformation', *, ema: bool = False
) -> TrainState:
  """A state at step 0 with the given params."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=tx.init(params),
    lr_scale=jnp.ones((), jnp.float32),
    ema=jax.tree.map(jnp.copy, params) if ema else None,
  )


def untrained_state(
  step: int, params: Params, ema: Params | None = None
) -> TrainState:
  """Weights on the host without optimizer state, which is None."""
  values: dict[str, Any] = {
    'step': np.asarray(step, np.int32),
    'lr_scale': np.ones((), np.float32),
  }
  return TrainState(params=params, opt_state=None, ema=ema, **values)


def eval_params(state: TrainState) -> Params:
  """The params to evaluate and sample with: the EMA if there is one."""
  return state.params if state.ema is None else state.ema
