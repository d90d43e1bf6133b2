"""The cost of decoding depends on the columns that are read, not on the cache.

XLA's own counts are compared, not times: operations and temporary memory of
programs that are compiled for caches of two capacities.
"""

import importlib.metadata
import tomllib

import jax
import jax.numpy as jnp
import pytest
from packaging.requirements import Requirement

from gpt.decoding import blocks, sampling
from gpt.model import GPT, GPTConfig
from tests.support.workdirs import ROOT

ROWS, STEPS, BUCKET = 4, 4, 32
CAPACITIES = (64, 256)
# It rewrites whole buffers on the CPU where a loop updates a slice in place.
# Nothing in the compiled program shows that, so the release is named.
BROKEN = '0.11.1'


def counts(decode, capacity: int) -> dict[str, float]:
  """XLA's counts for a compiled decode block; sizes are bytes."""
  cfg = GPTConfig(
    vocab_size=16,
    n_embd=8,
    n_head=2,
    n_layer=1,
    block_size=capacity - blocks.SPARE,
  )
  model = GPT(cfg)
  params, state = jax.eval_shape(
    lambda: (
      model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params'],
      blocks.init_state(cfg, ROWS),
    )
  )
  row = jax.ShapeDtypeStruct((ROWS,), jnp.int32)
  program = jax.jit(decode, static_argnums=0, donate_argnums=2).lower(
    model, params, state, row, row, row, row, sampling.settings(ROWS)
  )
  compiled = program.compile()
  cost = compiled.cost_analysis()
  cost = cost[0] if isinstance(cost, list) else cost  # jax < 0.6
  return {
    'operations': cost['flops'],
    'traffic': cost['bytes accessed'],
    'temporary': compiled.memory_analysis().temp_size_in_bytes,
    'cache': sum(4 * x.size for x in jax.tree.leaves(state.cache)),
  }


def growth(decode) -> dict[str, float]:
  """The growth of the counts with the capacity of the cache."""
  small, large = (counts(decode, capacity) for capacity in CAPACITIES)
  return {name: large[name] - small[name] for name in small}


def ours(*args):
  return blocks.decode_block(*args, k=STEPS, bucket=BUCKET, in_order=True)


def rewriting(*args):
  """A common mistake: each step writes its column through a one-hot mask."""
  state, tokens, logits = ours(*args)

  def step(cache, i):
    def write(old):
      hot = (jnp.arange(old.shape[2]) == i).astype(old.dtype)[
        None, None, :, None
      ]
      return old * (1 - hot) + hot

    return jax.tree.map(write, cache), None

  cache, _ = jax.lax.scan(step, state.cache, jnp.arange(STEPS))
  return state.replace(cache=cache), tokens, logits


def test_decoding_costs_the_same_whatever_the_capacity_of_the_cache():
  more = growth(ours)
  assert more['operations'] == more['temporary'] == 0
  # Less than a single pass over what the cache has grown by.
  assert more['traffic'] < more['cache'] / 2


def test_the_counts_reveal_a_cache_that_is_rewritten_in_every_step():
  more = growth(rewriting)
  assert more['operations'] > 0
  assert more['traffic'] > 2 * more['cache']


@pytest.mark.parametrize('name', ['jax', 'jaxlib'])
def test_the_release_that_rewrites_whole_buffers_is_excluded(name):
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  (requirement,) = (
    r for r in map(Requirement, project['dependencies']) if r.name == name
  )
  assert not requirement.specifier.contains(BROKEN)
  assert importlib.metadata.version(name) != BROKEN
