"""The weights of another run or file, checked against a config.

A new run can start from them (--init_from).
"""

import os
import pathlib

import jax
import numpy as np

from gpt.errors import UserError
from gpt.formats import randygpt
from gpt.model import GPTConfig, abstract_params
from gpt.model.config import option_names
from gpt.model.options import FUNCTION
from gpt.model.params import Params
from gpt.runs import checkpoint
from gpt.runs.config_file import flatten, read_configs


def check_source(init_from: str) -> None:
  """Raises UserError unless this is a run with checkpoints or an RGPT file."""
  if pathlib.Path(init_from).is_dir():
    checkpoint.candidates(init_from)
  else:
    randygpt.read_vocab_size(init_from)


def load_weights(source: str | os.PathLike, cfg: GPTConfig) -> Params:
  """The parameter tree of a workdir's best checkpoint or of an RGPT file."""
  source = pathlib.Path(source)
  if source.is_dir():
    check_same_network(source, cfg)
    _, params = checkpoint.first_readable(
      checkpoint.candidates(source), checkpoint.restore_params
    )
  else:
    if reasons := randygpt.obstacles(cfg):
      raise UserError(
        f'the weights of {source} do not fit this config: an RGPT file holds '
        f'another model: {"; ".join(reasons)}'
      )
    params, _, _ = randygpt.to_params(
      randygpt.read_rgpt(
        source,
        cfg.n_embd,
        cfg.n_layer,
        cfg.block_size,
        expected_vocab_size=cfg.vocab_size,
      )
    )
  given, wanted = (
    flatten(jax.tree.map(np.shape, tree))
    for tree in (params, abstract_params(cfg))
  )
  for name in sorted(given.keys() | wanted.keys()):
    if given.get(name) != wanted.get(name):
      raise UserError(
        f'the weights of {source} do not fit this config: {name} is '
        f'{given.get(name, "not there")}, the config has '
        f'{wanted.get(name, "no such weights")}'
      )
  return params


def check_same_network(source: str | os.PathLike, cfg: GPTConfig) -> None:
  """Raises UserError if the run's weights would mean something else in cfg."""
  _, theirs = read_configs(source, cfg.vocab_size)
  for name in option_names(FUNCTION):
    old, new = getattr(theirs, name), getattr(cfg, name)
    if old != new:
      raise UserError(
        f'the weights of {source} do not fit this config: its model.{name} is '
        f'{old!r}, here it is {new!r}'
      )
