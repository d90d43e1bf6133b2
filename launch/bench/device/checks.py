"""Checks that matter on an accelerator; part of launch.bench.gpu.

    python -m launch.bench.device.checks

Prints a JSON object after every check, with those before it: what was found,
what is allowed, whether it passed, or the error. `ok`: all have run and passed.
"""

import json
import traceback
from collections.abc import Callable
from typing import Any

from absl import flags

from launch import cli

SMALL = flags.DEFINE_bool('small', False, 'A smaller model, for a CPU.')


def make(dtype: str, **options: Any) -> tuple[Any, Any, Any]:
  """(model, params, int32[B, T+1] tokens) of a modern GPT."""
  import jax
  import jax.numpy as jnp

  from configs import default
  from gpt.model import GPT, GPTConfig

  model = default.get_config().model
  wide = (64, 2, 2, 64) if SMALL.value else (512, 8, 4, 256)
  model.n_embd, model.n_head, model.n_layer, model.block_size = wide
  model.update(pos='rope', qk_norm=True, final_norm=True, dropout=0.0)
  model.update(dtype=dtype, **options)
  gpt = GPT(GPTConfig.from_config(model, 256))
  init = jax.jit(lambda key: gpt.init(key, jnp.zeros((1, 1), jnp.int32)))
  tokens = jax.random.randint(
    jax.random.key(1), (4, model.block_size + 1), 2, 256
  )
  return gpt, init(jax.random.key(0))['params'], tokens


def batch_of(tokens: Any, **more: Any) -> dict[str, Any]:
  """A batch whose targets all count."""
  import jax.numpy as jnp

  rows, length = tokens.shape
  weights = jnp.ones((rows, length - 1), jnp.float32)
  return {
    'tokens': tokens,
    'weights': weights,
    'rows': jnp.arange(rows, dtype=jnp.int32),
    **more,
  }


def gradient(dtype: str, packed: bool = False, **options: Any) -> Any:
  """float32[P]: the gradient of the mean loss, all parameters in one vector."""
  import jax
  import jax.numpy as jnp

  from gpt.training.step import gradients

  model, params, tokens = make(dtype, **options)
  more = {}
  if packed:
    place = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    more = {
      'segments': place // 24,
      'positions': (place % 24)[:, :-1],
    }
  fn = jax.jit(lambda p, b: gradients(model, p, b, None)[0])
  tree = fn(params, batch_of(tokens, **more))
  return jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)])


def cosine_distance(a: Any, b: Any) -> float:
  """1 - a b / |a| |b|."""
  import jax.numpy as jnp

  norms = jnp.linalg.norm(a) * jnp.linalg.norm(b)
  return float(1 - jnp.vdot(a, b) / norms)


def bf16_gradients() -> float:
  """Gradients in bfloat16 point where those in float32 do."""
  return cosine_distance(gradient('bfloat16'), gradient('float32'))


def attention_kernel() -> float:
  """The kernel of `auto` in bfloat16 has the gradient of the formula."""
  plain = gradient('bfloat16', attention='plain')
  return cosine_distance(gradient('bfloat16'), plain)


def packed_attention() -> float:
  """The same for packed documents, of which none attends to another."""
  plain = gradient('bfloat16', packed=True, attention='plain')
  return cosine_distance(gradient('bfloat16', packed=True), plain)


def blocked_attention() -> float:
  """Our own row blocks have the gradient of the formula."""
  plain = gradient('float32', attention='plain')
  return cosine_distance(gradient('float32', attention='blocked'), plain)


def decoding_equals_forward() -> float:
  """Greedy tokens of the cache are the likeliest of the forward pass.

  Returns:
    The largest distance, in logits, of a token from the likeliest.
  """
  import jax.numpy as jnp

  from gpt.decoding import generation, sampling

  model, params, _ = make('float32')
  settings = sampling.settings(2, temperature=0.0)
  prompts, found = [[5, 6, 7], [9]], [[], []]
  stream = generation.generate(
    model, params, prompts, settings, 24, block_steps=8, drafts=False
  )
  for row, new in stream:
    found[row] += list(new or ())
  worst = 0.0
  for prompt, new in zip(prompts, found):
    tokens = jnp.asarray([prompt + new[:-1]], jnp.int32)
    logits = model.apply({'params': params}, tokens)[0, len(prompt) - 1 :]
    own = logits[jnp.arange(len(new)), jnp.asarray(new)]
    worst = max(worst, float(jnp.max(jnp.max(logits, -1) - own)))
  return worst


def resume_is_exact() -> float:
  """Four steps, and two, a copy on the host, two more: the same weights.

  Returns:
    The largest difference of a weight.
  """
  import jax
  import numpy as np

  from configs import default
  from gpt import devices
  from gpt.training import optimizer, schedules
  from gpt.training.state import create_state
  from gpt.training.step import jit_train_step

  config = default.get_config()
  config.opt.name = 'muon'
  model, _, tokens = make('auto')
  mesh = devices.create_mesh(len(tokens))
  tx = optimizer.create(config, mesh)
  step = jit_train_step(model, tx, schedules.from_config(config), mesh)
  start = jax.device_get(
    jax.jit(lambda key: create_state(model, tx, key))(jax.random.key(0))
  )
  batch = devices.put_batch(jax.device_get(batch_of(tokens)), mesh)

  def run(state: Any, steps: int) -> Any:
    state = devices.put_replicated(state, mesh)
    for _ in range(steps):
      state, _ = step(state, batch, jax.random.key(1), {})
    return jax.device_get(state)

  whole, parts = run(start, 4), run(run(start, 2), 2)
  differences = jax.tree.map(
    lambda a, b: float(np.max(np.abs(a - b))), whole.params, parts.params
  )
  return max(jax.tree.leaves(differences))


# Each returns a number that must not be larger than this.
CHECKS: dict[Callable[[], float], float] = {
  attention_kernel: 1e-3,
  packed_attention: 1e-3,
  bf16_gradients: 1e-2,
  resume_is_exact: 0.0,
  decoding_equals_forward: 1e-3,
  blocked_attention: 1e-5,
}


def main(_: list[str]) -> None:
  import jax

  from gpt import devices

  devices.setup_devices()
  # Products of float32 in float32, not in TF32: else nothing can be exact.
  jax.config.update('jax_default_matmul_precision', 'highest')
  results: dict[str, Any] = {}
  for check, allowed in CHECKS.items():
    try:
      found = check()
      result = {'found': found, 'allowed': allowed, 'ok': found <= allowed}
    except Exception as e:  # Reported; the others still run.
      result = {'ok': False, 'error': f'{type(e).__name__}: {e}'[:500]}
      traceback.print_exc()
    results[check.__name__] = result
    done = len(results) == len(CHECKS)
    passed = done and all(r['ok'] for r in results.values())
    print(json.dumps({'checks': results, 'ok': passed}), flush=True)


if __name__ == '__main__':
  cli.run(main)
