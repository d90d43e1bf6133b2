"""A few training steps on eight devices of a CPU, for each of several meshes.

    python -m tests.support.sharded_steps adamw 1x8x1 2x2x2

A process of its own, because the other tests share one with four devices.
Prints one line of JSON: what each mesh gave, beside a single device.
"""

import json
import sys

import jax
import numpy as np
import optax

from configs import default
from gpt import devices, sharding
from gpt.model import GPT, GPTConfig
from gpt.training import optimizer
from gpt.training.state import create_state
from gpt.training.step import jit_eval_step, jit_train_step

ROWS, LENGTH, VOCAB = 16, 12, 24
CFG = GPTConfig(
  vocab_size=VOCAB,
  n_embd=64,
  n_head=8,
  n_layer=1,
  block_size=LENGTH,
  init_std=0.1,
  dropout=0.2,
  attention='blocked',
  qk_norm=True,
)
STEPS = 4


def random_batch(seed):
  rng = np.random.default_rng(seed)
  return {
    'tokens': rng.integers(0, VOCAB, (ROWS, LENGTH + 1)).astype(np.int32),
    'weights': (rng.random((ROWS, LENGTH)) < 0.7).astype(np.float32),
    'rows': np.arange(ROWS, dtype=np.int32),
  }


def bytes_per_device(tree):
  return max(
    sum(x.addressable_shards[i].data.nbytes for x in jax.tree.leaves(tree))
    for i in range(len(jax.tree.leaves(tree)[0].addressable_shards))
  )


def run(name, axes, micro):
  """(state on the mesh, its numbers) after STEPS steps."""
  config = default.get_config()
  config.opt.name = name
  n = int(np.prod(axes))
  parallel = dict(zip(('data', 'fsdp', 'tensor'), axes))
  mesh = devices.create_mesh(ROWS, jax.devices()[:n], parallel)
  model, tx = GPT(CFG), optimizer.create(config, mesh)
  state = sharding.place(
    jax.jit(lambda key: create_state(model, tx, key, ema=True))(
      jax.random.key(0)
    ),
    mesh,
  )
  step = jit_train_step(
    model,
    tx,
    optax.constant_schedule(config.lr),
    mesh,
    micro_batch_size=micro,
    ema_decay=0.5,
  )
  history = []
  for i in range(STEPS):
    batch = devices.put_batch(random_batch(i), mesh)
    state, metrics = step(state, batch, jax.random.key(3), {})
    history.append([float(metrics[x]) for x in ('loss', 'grad_norm', 'tokens')])
  sums = jit_eval_step(model, mesh)(
    state.params,
    devices.put_batch(random_batch(9), mesh),
    np.ones(VOCAB, np.float32),
    {},
  )
  return state, {'history': history, 'eval': np.asarray(sums).tolist()}


def main(name, *meshes):
  jax.config.update('jax_num_cpu_devices', 8)
  one, found = run(name, (1, 1, 1), 0)
  results = {'one': found}
  for mesh in meshes:
    axes = tuple(map(int, mesh.split('x')))
    state, found = run(name, axes, 2 if axes == (2, 2, 2) else 0)
    found['bytes'] = bytes_per_device((state.params, state.opt_state))
    found['whole'] = sum(
      x.nbytes for x in jax.tree.leaves((state.params, state.opt_state))
    )
    found['apart'] = max(
      float(np.max(np.abs(np.asarray(a) - np.asarray(b))))
      for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(one))
    )
    results[mesh] = found
  print(json.dumps(results))


if __name__ == '__main__':
  main(*sys.argv[1:])
