"""The weights of a model as the kernels read them: in panels of 64 columns.

A panel is contiguous in memory, so a product streams through it. Layers are
stacked: a program has 23 operands for the weights of any depth.
"""

import ctypes
import mmap
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt.model.config import GPTConfig
from gpt.model.params import Params
from gpt.model.rope_frequencies import rope_frequencies
from gpt.model.transformer import BIASES

PANEL = 64
LARGE_PAGE = 2 << 20
MADV_COLLAPSE = 25  # of Linux
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


def pack(
  cfg: GPTConfig,
  params: Params,
  pairs: bool,
  known: dict[tuple, Any] | None = None,
) -> Packed:
  """The operands of the weights, in the order of kernels.cc, on the device.

  Args:
    pairs: matrices in bfloat16, two rows in one uint32; else in float32.
    known: operands by what they were made from, read and extended: weights
      that share arrays (a base and its adapters) then share operands.
  """
  known = {} if known is None else known
  first = params['block_0']

  def of_layers(name: str) -> list[Any]:
    return [params[f'block_{i}'][name] for i in range(cfg.n_layer)]

  def operand(
    sources: list[Any], make: Callable[[list[np.ndarray]], np.ndarray]
  ) -> Any:
    """make(sources) on the device; NONE if the model has no such weights."""
    if not sources:
      return NONE
    # The key holds the sources, so that no id is another array's later.
    key = (pairs, *map(id, sources))
    if key not in known:
      made = in_large_pages(make(list(map(jax.device_get, sources))))
      known[key] = jax.device_put(made), sources  # The same memory.
    return known[key][0]

  def single(name: str) -> Any:
    return operand([params[name]] if name in params else [], _float32_of_one)

  def vector(name: str) -> Any:
    return operand(of_layers(name) if name in first else [], _stacked)

  def matrix(*names: str, apart: bool = False) -> list[Any]:
    """Matrices side by side, and their biases; `apart`: each padded."""
    n, width = cfg.n_layer, len(names)

    def beside(sources: list[np.ndarray]) -> list[np.ndarray]:
      sources = [padded(x) for x in sources] if apart else sources
      return [
        np.concatenate(sources[i * width : (i + 1) * width], axis=-1)
        for i in range(n)
      ]

    def interleaved(names: Sequence[str]) -> list[Any]:
      return [params[f'block_{i}'][x] for i in range(n) for x in names]

    biases = [BIASES[name] for name in names] if cfg.bias else []
    return [
      operand(
        interleaved(names),
        lambda ws: np.stack([panels(w, pairs) for w in beside(ws)]),
      ),
      operand(
        interleaved(biases),
        lambda bs: padded(np.stack(beside(bs)).astype(np.float32)),
      ),
    ]

  def table(name: str) -> Any:
    return operand([params[name]], lambda x: embedding(x[0], pairs))

  head = params['wte' if cfg.tied_embeddings else 'lm_head']
  up = ('gate', 'fc1') if cfg.mlp == 'swiglu' else ('fc1',)
  return (
    table('wte'),
    table('wpe') if cfg.pos == 'learned' else NONE,
    jnp.asarray(turns(cfg)),
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
    # Twice: the operand of `head` alone may be the table of embeddings.
    operand([head, head], lambda x: panels(x[0].T, pairs)),
    NONE,
  )


def _float32_of_one(sources: list[np.ndarray]) -> np.ndarray:
  return sources[0].astype(np.float32)


def _stacked(sources: list[np.ndarray]) -> np.ndarray:
  return np.stack(sources).astype(np.float32)


def in_large_pages(x: np.ndarray) -> np.ndarray:
  """x, or a copy of it in pages of 2 MB where Linux has them.

  A product that streams through small pages waits for the page tables: reading
  weights took twice as long.
  """
  if x.nbytes < LARGE_PAGE // 2 or not hasattr(mmap, 'MADV_HUGEPAGE'):
    return x
  size = -(-x.nbytes // LARGE_PAGE) * LARGE_PAGE
  try:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    room = mmap.mmap(-1, size + LARGE_PAGE, flags)
    room.madvise(mmap.MADV_HUGEPAGE)
  except OSError:  # E.g. a Linux that was built without them.
    return x
  memory = np.frombuffer(room, np.uint8)
  start = -memory.ctypes.data % LARGE_PAGE
  copy = memory[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
  copy[...] = x
  return copy


def move_to_large_pages(*arrays: Any) -> None:
  """As `in_large_pages`, for arrays of JAX where they lie (Linux 6.1)."""
  if sys.platform != 'linux':
    return
  libc = ctypes.CDLL(None)
  for x in arrays:
    start = -(-x.unsafe_buffer_pointer() // LARGE_PAGE) * LARGE_PAGE
    end = (x.unsafe_buffer_pointer() + x.nbytes) // LARGE_PAGE * LARGE_PAGE
    if start < end:  # An older kernel refuses: nothing is lost.
      advice = ctypes.c_int(MADV_COLLAPSE)
      length = ctypes.c_size_t(end - start)
      libc.madvise(ctypes.c_void_p(start), length, advice)


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


def embedding(table: np.ndarray, pairs: bool) -> np.ndarray:
  """A table of rows, in bfloat16 if the matrices are."""
  return table.astype(jnp.bfloat16 if pairs else np.float32)


def turns(cfg: GPTConfig) -> np.ndarray:
  """float32[T, K]: cosines, then sines, of RoPE's angles; NONE without."""
  if cfg.pos != 'rope':
    return NONE
  freqs = rope_frequencies(cfg.head_dim, cfg.rope_base, cfg.rope_scaling)
  positions = np.arange(cfg.block_size, dtype=np.float32)
  angles = positions[:, None] * freqs[None]
  return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
