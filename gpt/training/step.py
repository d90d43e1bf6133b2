"""One optimizer step and one evaluation step: pure functions.

    (state, batch, key) -> (state, metrics)

`train_step` and `eval_step` know nothing of jit, donation or devices, and are
tested as they are; `jit_train_step` and `jit_eval_step` add those.

A batch is a dict of B rows with T targets each:
  tokens: int32[B, T+1]
  weights: float32[B, T], 0/1 loss mask of the targets
  rows: int32[B], index of the row in the global batch; it keys the dropout
  segments: optional int32[B, T+1], packed documents; attention stays within
  positions: optional int32[B, T], position of each token in its document
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.typing import ArrayLike

from gpt import devices, sharding
from gpt.model import GPT
from gpt.model.dropout import row_seeds
from gpt.model.losses import cross_entropy, weighted_sum
from gpt.model.params import Params
from gpt.training import lora
from gpt.training.lora import Adapted
from gpt.training.schedules import scale_lr
from gpt.training.state import TrainState, abstract_state

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
Model = GPT | Adapted
Frozen = Mapping[str, Any]  # {} or, with LoRA, {'base': params}.
NOTHING: Frozen = {}


def batch_nats(
  model: Model,
  params: Params,
  batch: Batch,
  dropout_key: jax.Array | None = None,
  frozen: Frozen = NOTHING,
) -> jax.Array:
  """float32[B, T]: cross-entropy of every target, in nats.

  Args:
    dropout_key: None disables dropout.
    frozen: variables of the model besides its params.
  """
  tokens_BT = batch['tokens']
  segments = batch.get('segments')
  logits_BTV: Any = model.apply(
    {'params': params, **frozen},
    tokens_BT[:, :-1],
    positions_BL=batch.get('positions'),
    segments_BL=None if segments is None else segments[:, :-1],
    seeds_Bx2=None
    if dropout_key is None or model.cfg.dropout == 0
    else row_seeds(dropout_key, batch['rows']),
  )
  return cross_entropy(logits_BTV, tokens_BT[:, 1:])


def gradients(
  model: Model,
  params: Params,
  batch: Batch,
  dropout_key: jax.Array | None,
  frozen: Frozen = NOTHING,
  micro_batch_size: int = 0,
  axis: str | None = None,
  shards: int = 1,
) -> tuple[Params, jax.Array, jax.Array]:
  """Gradient of the mean loss over the global batch.

  The mean is over all targets of weight 1, so the result does not depend on
  how the batch is divided into devices and micro-batches (up to rounding).

  Args:
    batch: this device's rows.
    dropout_key: None disables dropout.
    frozen: variables of the model that get no gradient.
    micro_batch_size: rows per forward and backward pass; must divide the
      number of rows. 0: all of them.
    axis: mesh axis to sum over; None: a single device, or a program that XLA
      divides.
    shards: in the latter, the parts that a batch is split into; each works on
      micro_batch_size rows at a time.

  Returns:
    (grads, nats, count): a tree like params, the float32[] sum of the losses
    and the float32[] sum of the weights, at least 1.
  """
  rows = batch['rows'].shape[0]
  micro = micro_batch_size * shards or rows
  total = jnp.sum(batch['weights'])
  if axis is not None:
    total = jax.lax.psum(total, axis)
  total = jnp.maximum(total, 1.0)

  def mean_loss(params: Params, batch: Batch) -> jax.Array:
    nats_BT = batch_nats(model, params, batch, dropout_key, frozen)
    return weighted_sum(nats_BT, batch['weights'])[0] / total

  grad_fn = jax.value_and_grad(mean_loss)
  if micro == rows:
    loss, grads = grad_fn(params, batch)
  else:
    micro_batches = jax.tree.map(
      functools.partial(_micro_batches, rows // micro, shards), batch
    )

    def accumulate(
      carry: tuple[jax.Array, Params], batch: Batch
    ) -> tuple[tuple[jax.Array, Params], None]:
      loss, grads = jax.tree.map(jnp.add, carry, grad_fn(params, batch))
      return (loss, sharding.constrain_tree(grads)), None

    zeros = jax.tree.map(jnp.zeros_like, (jnp.float32(0), params))
    (loss, grads), _ = jax.lax.scan(accumulate, zeros, micro_batches)
  if axis is not None:
    loss, grads = jax.lax.psum((loss, grads), axis)
  return grads, loss * total, total


def _micro_batches(n: int, shards: int, x: jax.Array) -> jax.Array:
  """[rows, ...] -> [n, rows / n, ...], without moving rows between devices."""
  if shards == 1:
    return x.reshape(n, -1, *x.shape[1:])
  x = x.reshape(shards, n, -1, *x.shape[1:]).swapaxes(0, 1)
  x = x.reshape(n, -1, *x.shape[3:])
  return sharding.constrain(x, None, 'batch', *[None] * (x.ndim - 2))


def train_step(
  state: TrainState,
  batch: Batch,
  key: jax.Array,
  frozen: Frozen = NOTHING,
  total_steps: jax.Array | None = None,
  *,
  model: Model,
  tx: optax.GradientTransformation,
  schedule: Callable[..., ArrayLike],
  min_lr: float = 0.0,
  ema_decay: float = 0.0,
  gradients_fn: Callable[..., tuple[Params, jax.Array, jax.Array]] = gradients,
) -> tuple[TrainState, Metrics]:
  """One optimizer step.

    params -= lr_s * tx(grads),  lr_s = scale_lr(schedule(s), lr_scale, min_lr)
    ema = ema_decay * ema + (1 - ema_decay) * params, if the state has one

  Args:
    batch: see the module docstring.
    key: the run's dropout key; folded with the step here.
    frozen: variables of the model that are not trained (the base of LoRA).
    total_steps: int32[], the target in force; None: that of the schedule.
    tx: gradients to directions, without the learning rate (optimizer.create).
    schedule: (step, total_steps) -> learning rate.
    min_lr: floor of the learning rate under the plateau factor.
    ema_decay: decay of the average of the params.
    gradients_fn: `gradients`, or a version sharded over devices.

  Returns:
    (state, metrics) with float32[] metrics: loss (nats/token, mean over the
    batch), lr, grad_norm (global, before clipping), tokens (sum of weights).
  """
  dropout_key = jax.random.fold_in(key, state.step)
  grads, nats, count = gradients_fn(
    model, state.params, batch, dropout_key, frozen
  )
  directions, opt_state = tx.update(grads, state.opt_state, state.params)
  target = () if total_steps is None else (total_steps,)
  lr = scale_lr(schedule(state.step, *target), state.lr_scale, min_lr)
  params = jax.tree.map(lambda p, u: p - lr * u, state.params, directions)
  ema = state.ema
  if ema is not None:
    ema = optax.incremental_update(params, ema, 1 - ema_decay)
  metrics = {
    'loss': nats / count,
    'lr': lr,
    'grad_norm': optax.tree.norm(grads),
    'tokens': count,
  }
  state = dataclasses.replace(
    state, step=state.step + 1, params=params, opt_state=opt_state, ema=ema
  )
  return state, metrics


def eval_step(
  params: Params,
  batch: Batch,
  bytes_V: jax.Array,
  frozen: Frozen = NOTHING,
  *,
  model: Model,
) -> jax.Array:
  """Sums over a batch, without dropout.

  Args:
    batch: its weights may also be float32[B, K, T], K masks of one batch.
    bytes_V: float32[V], UTF-8 bytes of each token.
    frozen: variables of the model besides its params.

  Returns:
    float32[3]: nats, number of targets, UTF-8 bytes of the targets; each
    weighted by the loss mask. float32[K, 3] for K masks.
  """
  nats_BT = batch_nats(model, params, batch, frozen=frozen)
  n_bytes_BT = bytes_V[batch['tokens'][:, 1:]]

  def sums(weights_BT: jax.Array) -> jax.Array:
    nats, count = weighted_sum(nats_BT, weights_BT)
    return jnp.stack([nats, count, jnp.sum(n_bytes_BT * weights_BT)])

  weights = batch['weights']
  if weights.ndim == 2:
    return sums(weights)
  return jnp.stack([sums(weights[:, k]) for k in range(weights.shape[1])])


def jit_train_step(
  model: Model,
  tx: optax.GradientTransformation,
  schedule: Callable[..., ArrayLike],
  mesh: Mesh,
  *,
  moving_target: bool = False,
  micro_batch_size: int = 0,
  min_lr: float = 0.0,
  ema_decay: float = 0.0,
) -> Callable[..., tuple[TrainState, Metrics]]:
  """`train_step` compiled for a mesh: the state in its place, and donated.

  The fourth argument, `frozen`, is never donated.

  Args:
    moving_target: whether `total_steps` is given too, as the fifth argument.
    micro_batch_size: see `gradients`.
    model, tx, schedule, min_lr, ema_decay: see `train_step`.
  """

  def gradients_fn(
    model: Model,
    params: Params,
    batch: Batch,
    dropout_key: jax.Array | None,
    frozen: Frozen,
  ) -> tuple[Params, jax.Array, jax.Array]:
    fn = functools.partial(gradients, model, micro_batch_size=micro_batch_size)
    if sharding.is_sharded(mesh):
      shards = devices.batch_shards(mesh)
      return fn(params, batch, dropout_key, frozen, shards=shards)
    if mesh.size == 1:
      return fn(params, batch, dropout_key, frozen)
    every, own = devices.REPLICATED, devices.SHARDED
    return devices.map_over_data(
      functools.partial(fn, axis=devices.DATA),
      mesh,
      in_specs=(every, own, every, every),
      out_specs=every,
    )(params, batch, dropout_key, frozen)

  def step(state: TrainState, *args: Any) -> tuple[TrainState, Metrics]:
    with sharding.tracing(mesh):
      return train_step(
        state,
        *args,
        model=model,
        tx=tx,
        schedule=schedule,
        min_lr=min_lr,
        ema_decay=ema_decay,
        gradients_fn=gradients_fn,
      )

  replicated = devices.replicated_sharding(mesh)
  state_sharding: Any = replicated
  if sharding.is_sharded(mesh):
    state_sharding = sharding.shardings(
      mesh, abstract_state(model, tx, ema=ema_decay > 0)
    )
  return jax.jit(
    step,
    in_shardings=(
      state_sharding,
      devices.batch_sharding(mesh),
      replicated,
      _frozen_sharding(model, mesh),
      *([replicated] if moving_target else []),
    ),
    out_shardings=(state_sharding, replicated),
    donate_argnums=0,
  )


def _frozen_sharding(model: Model, mesh: Mesh) -> Any:
  if isinstance(model, GPT) or not sharding.is_sharded(mesh):
    return devices.replicated_sharding(mesh)
  return {'base': sharding.shardings(mesh, lora.abstract(model.model))}


def jit_eval_step(
  model: Model, mesh: Mesh
) -> Callable[[Params, Batch, ArrayLike, Frozen], jax.Array]:
  """`eval_step` compiled for a mesh: params in their place, not donated."""
  replicated = devices.replicated_sharding(mesh)

  def step(
    params: Params, batch: Batch, bytes_V: jax.Array, frozen: Frozen
  ) -> jax.Array:
    fn = functools.partial(eval_step, model=model)
    if sharding.is_sharded(mesh):
      with sharding.tracing(mesh):
        return fn(params, batch, bytes_V, frozen)
    if mesh.size == 1:
      return fn(params, batch, bytes_V, frozen)
    every, own = devices.REPLICATED, devices.SHARDED
    return devices.map_over_data(
      lambda *args: jax.lax.psum(fn(*args), devices.DATA),
      mesh,
      in_specs=(every, own, every, every),
      out_specs=every,
    )(params, batch, bytes_V, frozen)

  params_sharding: Any = replicated
  if sharding.is_sharded(mesh):
    params_sharding = sharding.shardings(mesh, lora.abstract(model))
  return jax.jit(
    step,
    in_shardings=(
      params_sharding,
      devices.batch_sharding(mesh),
      replicated,
      _frozen_sharding(model, mesh),
    ),
    out_shardings=replicated,
  )
