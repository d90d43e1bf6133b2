"""The weights of a model as the kernels read them: in panels of 64 columns.

A panel is contiguous in memory, so a product streams through it. Layers are
stacked: a program has 23 operands for the weights of any depth.
"""

import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt.model.config import GPTConfig
from gpt.model.params import Params
from gpt.model.rope_frequencies import rope_frequencies

PANEL = 64
NONE = np.zeros(0, np.float32)  # An operand that the model does without.

Packed = tuple[Any, ...]


# (what was packed, references to its arrays, the result) of the newest call.
_newest: list[tuple[Any, list[weakref.ref], Packed]] = []


def packed(cfg: GPTConfig, params: Params, pairs: bool) -> Packed:
  """As `pack`; the newest result is kept for as long as its params live."""
  leaves = jax.tree.leaves(params)
  key = cfg, pairs, tuple(map(id, leaves))
  for known, references, found in _newest:
    if known == key and all(ref() is not None for ref in references):
      return found
  _newest.clear()
  found = pack(cfg, params, pairs)
  references = [weakref.ref(x) for x in leaves[1:]]
  first = weakref.ref(leaves[0], lambda _: _newest.clear())
  _newest.append((key, [first, *references], found))
  return found


def pack(cfg: GPTConfig, params: Params, pairs: bool) -> Packed:
  """The operands of the weights, in the order of kernels.cc, on the device.

  Args:
    pairs: matrices in bfloat16, two rows in one uint32; else in float32.
  """
  N = cfg.n_layer

  def layers(name: str) -> list[np.ndarray]:
    return [np.asarray(params[f'block_{i}'][name]) for i in range(N)]

  def vector(name: str) -> np.ndarray:
    """float32[N, size] of all layers, or NONE."""
    if name not in params['block_0']:
      return NONE
    return np.stack(layers(name)).astype(np.float32)

  def single(name: str) -> np.ndarray:
    found = params.get(name)
    return NONE if found is None else np.asarray(found, np.float32)

  def matrix(*names: str, apart: bool = False) -> list[np.ndarray]:
    """Matrices side by side, and their biases; `apart`: each padded."""
    found = [layers(name) for name in names]
    biases = [vector(BIASES[name]) for name in names]
    if apart:
      found = [[padded(w) for w in ws] for ws in found]
      biases = [padded(b) if b.size else b for b in biases]
    stacked = np.stack(
      [panels(np.concatenate(ws, axis=1), pairs) for ws in zip(*found)]
    )
    if not cfg.bias:
      return [stacked, NONE]
    return [stacked, padded(np.concatenate(biases, axis=1))]

  head = params['wte' if cfg.tied_embeddings else 'lm_head']
  up = ('gate', 'fc1') if cfg.mlp == 'swiglu' else ('fc1',)
  operands = [
    embedding(params['wte'], pairs),
    embedding(params['wpe'], pairs) if cfg.pos == 'learned' else NONE,
    turns(cfg),
    single('embed_norm'),
    single('embed_norm_bias'),
    vector('attn_norm'),
    vector('attn_norm_bias'),
    vector('mlp_norm'),
    vector('mlp_norm_bias'),
    single('final_norm'),
    single('final_norm_bias'),
    vector('q_gain'),
    vector('k_gain'),
    *matrix('wq', 'wk', 'wv'),
    *matrix('wo'),
    *matrix(*up, apart=True),
    *matrix('fc2'),
    panels(np.asarray(head).T, pairs),
    NONE,
  ]
  return tuple(map(jnp.asarray, operands))


BIASES = {
  'wq': 'bq',
  'wk': 'bk',
  'wv': 'bv',
  'wo': 'bo',
  'fc1': 'b1',
  'gate': 'bgate',
  'fc2': 'b2',
}


def padded(x: np.ndarray) -> np.ndarray:
  """x with zeros after its last axis, to a multiple of PANEL."""
  room = -x.shape[-1] % PANEL
  return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, room)])


def panels(w: np.ndarray, pairs: bool) -> np.ndarray:
  """float32[in, out] -> float32[out / 64, in, 64] or uint32[.., in / 2, 64]."""
  w = padded(w.astype(np.float32, copy=False))
  if pairs:
    w = np.pad(w, [(0, w.shape[0] % 2), (0, 0)])
    bits = w.astype(jnp.bfloat16).view(np.uint16).astype(np.uint32)
    w = bits[::2] | bits[1::2] << 16
  w = w.reshape(len(w), -1, PANEL)
  return np.ascontiguousarray(w.transpose(1, 0, 2))


def embedding(table: Any, pairs: bool) -> Any:
  """A table of rows, in bfloat16 if the matrices are."""
  return jax.device_get(table).astype(jnp.bfloat16 if pairs else np.float32)


def turns(cfg: GPTConfig) -> np.ndarray:
  """float32[T, K]: cosines, then sines, of RoPE's angles; NONE without."""
  if cfg.pos != 'rope':
    return NONE
  freqs = rope_frequencies(cfg.head_dim, cfg.rope_base, cfg.rope_scaling)
  positions = np.arange(cfg.block_size, dtype=np.float32)
  angles = positions[:, None] * freqs[None]
  return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
