"""Weights for tests that need some model, not an initialized one."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from gpt.model import abstract_params


def random_params(cfg, std=0.1, seed=0):
  """Params drawn from N(0, std), a tree of float32 arrays.

  Initializing a model would compile a program for each shape, which takes
  seconds.
  """

  def fill(path, x):
    name = zlib.crc32(jax.tree_util.keystr(path).encode())
    rng = np.random.default_rng([seed, name])
    return jnp.asarray(rng.normal(0, std, x.shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(fill, abstract_params(cfg))
