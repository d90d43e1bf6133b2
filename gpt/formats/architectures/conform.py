"""An equal model in the options that another class has.

Nothing is approximated: gains of 1 and biases of 0 are added where a class
wants them, and the norm of an embedding without learned positions is computed
once for each row of the table, which unties it from the head.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpt.formats.architectures.family import Family
from gpt.model import GPTConfig, abstract_params
from gpt.model.params import Params

# Options that may be switched on without another function, in this order.
HARMLESS = ('norm_gain', 'qk_gain', 'bias')
NORM_NAMES = ('_norm', '_norm_bias')  # Of all vectors outside blocks.
GAINS = {
  'attn_norm',
  'mlp_norm',
  'final_norm',
  'embed_norm',
  'q_gain',
  'k_gain',
}


def nearest(family: Family, cfg: GPTConfig) -> GPTConfig:
  """The equal model whose options come closest to what the class holds."""
  # Every consequence of the arch is an option of its own by now.
  cfg = dataclasses.replace(cfg, arch='randy')
  if (
    cfg.embed_norm
    and cfg.pos == 'rope'
    and not family.fits('embed_norm', True, cfg)
  ):
    cfg = dataclasses.replace(cfg, embed_norm=False, tied_embeddings=False)
  for name in HARMLESS:
    needs = not family.fits(name, False, cfg) and family.fits(name, True, cfg)
    if needs and (name != 'qk_gain' or cfg.qk_norm):
      cfg = dataclasses.replace(cfg, **{name: True})
  return cfg


def conform(
  family: Family, cfg: GPTConfig, params: Params
) -> tuple[GPTConfig, dict[str, Any]]:
  """(cfg of `nearest`, its parameters): the same logits for any tokens."""
  near, params = nearest(family, cfg), dict(params)
  if cfg.embed_norm and not near.embed_norm:
    table = np.asarray(params['wte'])
    if cfg.tied_embeddings:
      params['lm_head'] = table
    gain, bias = (params.pop(f'embed_norm{x}', None) for x in ('', '_bias'))
    params['wte'] = _normed(table, cfg, gain, bias)
  return near, _filled(params, abstract_params(near))


def simplify(
  cfg: GPTConfig, params: Params, wanted: Mapping[str, Any]
) -> tuple[GPTConfig, dict[str, Any]]:
  """Undoes what `conform` added, where it still changes nothing.

  Args:
    wanted: options of the run that was exported; those it lacks stay.
  """
  params = dict(params)
  if wanted.get('arch') == 'microgpt' and cfg.embed_norm:
    cfg = dataclasses.replace(cfg, arch='microgpt')
  for name in HARMLESS:
    if wanted.get(name) is not False or not getattr(cfg, name):
      continue
    without = dataclasses.replace(cfg, **{name: False})
    shapes = abstract_params(without)
    blocks = [params[f'block_{i}'] for i in range(cfg.n_layer)]
    extra = [
      (params, x) for x in params if x.endswith(NORM_NAMES) and x not in shapes
    ]
    extra += [(b, x) for b in blocks for x in b if x not in shapes['block_0']]
    if all(np.all(tree[leaf] == (leaf in GAINS)) for tree, leaf in extra):
      cfg = without
      for tree, leaf in extra:
        del tree[leaf]
  return cfg, params


def _filled(tree: Params, wanted: Params) -> dict[str, Any]:
  """Adds gains of 1 and biases of 0 that a tree lacks."""
  filled = dict(tree)
  for name, x in wanted.items():
    if isinstance(x, dict):
      filled[name] = _filled(tree[name], x)
    elif name not in tree:
      filled[name] = np.full(x.shape, float(name in GAINS), x.dtype)
  return filled


def _normed(table: np.ndarray, cfg: GPTConfig, gain: Any, bias: Any) -> Any:
  x = table.astype(np.float64)
  if cfg.norm == 'layer':
    x -= x.mean(-1, keepdims=True)
  x /= np.sqrt((x * x).mean(-1, keepdims=True) + cfg.norm_eps)
  x = x if gain is None else x * np.asarray(gain, np.float64)
  x = x if bias is None else x + np.asarray(bias, np.float64)
  return x.astype(table.dtype)
