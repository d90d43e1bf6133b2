"""One optimizer step and one evaluation step: pure functions.

`train_step` and `eval_step` know nothing of jit, donation or devices and are
tested as they are; `jit_train_step` and `jit_eval_step` attach all of that.

    (state, batch, key) -> (state, metrics)

A batch is a dict: tokens int32[B, T+1], weights float32[B, T] (1 where the
target counts), rows int32[B] (the row's place in the global batch; it keys the
dropout), and segments int32[B, T+1] where sequences share a row.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from gpt import devices
from gpt.model.dropout import row_seeds
from gpt.model.losses import cross_entropy, weighted_sum
from gpt.training.schedules import scale_lr
from gpt.training.state import TrainState


def batch_nats(model, params, batch, dropout_key=None):
  """float32[B, T]: nats of every target of the batch."""
  tokens_BT = batch['tokens']
  segments = batch.get('segments')
  logits_BLV = model.apply(
    {'params': params},
    tokens_BT[:, :-1],
    positions_BL=batch.get('positions'),
    segments_BL=None if segments is None else segments[:, :-1],
    seeds_Bx2=None
    if dropout_key is None or model.cfg.dropout == 0
    else row_seeds(dropout_key, batch['rows']),
  )
  return cross_entropy(logits_BLV, tokens_BT[:, 1:])


def gradients(model, params, batch, dropout_key, micro_batch_size=0, axis=None):
  """Gradient of the mean loss over the whole batch, and the loss (sum, count).

  Args:
    batch: this device's rows.
    micro_batch_size: rows worked on at once; must divide the rows. 0: all.
    axis: mesh axis to add up over, or None for a single device.

  Returns:
    (grads, nats sum, count): the tree of parameters, float32[], float32[].
  """
  rows = batch['rows'].shape[0]
  micro = micro_batch_size or rows
  total = jnp.sum(batch['weights'])
  if axis is not None:
    total = jax.lax.psum(total, axis)
  total = jnp.maximum(total, 1.0)

  def mean_loss(params, batch):
    nats_BT = batch_nats(model, params, batch, dropout_key)
    return weighted_sum(nats_BT, batch['weights'])[0] / total

  grad_fn = jax.value_and_grad(mean_loss)
  if micro == rows:
    loss, grads = grad_fn(params, batch)
  else:
    slices = jax.tree.map(
      lambda x: x.reshape(rows // micro, micro, *x.shape[1:]), batch
    )

    def accumulate(carry, batch):
      return jax.tree.map(jnp.add, carry, grad_fn(params, batch)), None

    zeros = jax.tree.map(jnp.zeros_like, (jnp.float32(0), params))
    (loss, grads), _ = jax.lax.scan(accumulate, zeros, slices)
  if axis is not None:
    loss, grads = jax.lax.psum((loss, grads), axis)
  return grads, loss * total, total


def train_step(
  state: TrainState,
  batch,
  key,
  *,
  model,
  tx: optax.GradientTransformation,
  schedule,
  min_lr: float = 0.0,
  ema_decay: float = 0.0,
  gradients_fn=gradients,
):
  """One update of the parameters.

  Args:
    batch: see the module's docstring.
    key: the run's dropout key; folded with the step here.
    min_lr: the plateau factor does not take the learning rate below it.
    gradients_fn: `gradients`, or a version of it spread over devices.

  Returns:
    (state, metrics): loss (nats/token, mean over the batch), lr, grad_norm
    (before clipping), tokens (targets that counted).
  """
  dropout_key = jax.random.fold_in(key, state.step)
  grads, nats, count = gradients_fn(model, state.params, batch, dropout_key)
  directions, opt_state = tx.update(grads, state.opt_state, state.params)
  lr = scale_lr(schedule(state.step), state.lr_scale, min_lr)
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
  state = state.replace(
    step=state.step + 1, params=params, opt_state=opt_state, ema=ema
  )
  return state, metrics


def eval_step(params, batch, bytes_V, *, model):
  """Sums over a batch: nats, count, and the UTF-8 bytes of the targets.

  Args:
    bytes_V: float32[V], bytes of each token.

  Returns:
    float32[3].
  """
  nats_BT = batch_nats(model, params, batch)
  nats, count = weighted_sum(nats_BT, batch['weights'])
  n_bytes_BT = bytes_V[batch['tokens'][:, 1:]]
  return jnp.stack([nats, count, jnp.sum(n_bytes_BT * batch['weights'])])


def jit_train_step(model, tx, schedule, mesh, *, micro_batch_size=0, **kwargs):
  """`train_step` compiled for a mesh, the state donated."""

  def gradients_fn(model, params, batch, dropout_key):
    fn = functools.partial(gradients, model, micro_batch_size=micro_batch_size)
    if mesh.size == 1:
      return fn(params, batch, dropout_key)
    return devices.map_over_data(
      functools.partial(fn, axis=devices.DATA),
      mesh,
      in_specs=(devices.REPLICATED, devices.SHARDED, devices.REPLICATED),
      out_specs=devices.REPLICATED,
    )(params, batch, dropout_key)

  step = functools.partial(
    train_step,
    model=model,
    tx=tx,
    schedule=schedule,
    gradients_fn=gradients_fn,
    **kwargs,
  )
  whole, split = devices.replicated_sharding(mesh), devices.batch_sharding(mesh)
  return jax.jit(
    step,
    in_shardings=(whole, split, whole),
    out_shardings=(whole, whole),
    donate_argnums=0,
  )


def jit_eval_step(model, mesh):
  """`eval_step` compiled for a mesh; the parameters are kept."""
  whole, split = devices.replicated_sharding(mesh), devices.batch_sharding(mesh)

  def step(params, batch, bytes_V):
    fn = functools.partial(eval_step, model=model)
    if mesh.size == 1:
      return fn(params, batch, bytes_V)
    return devices.map_over_data(
      lambda *args: jax.lax.psum(fn(*args), devices.DATA),
      mesh,
      in_specs=(devices.REPLICATED, devices.SHARDED, devices.REPLICATED),
      out_specs=devices.REPLICATED,
    )(params, batch, bytes_V)

  return jax.jit(step, in_shardings=(whole, split, whole), out_shardings=whole)
