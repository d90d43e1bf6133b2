"""The weights of a model as the kernels read them: in panels of 64 columns.

A panel is contiguous in memory, so a product streams through it. Its last row
is the bias, in float32. Layers are stacked: a program has 10 operands for the
weights of any depth. Heads are padded with zeros to whole vectors.
"""

import ctypes
import functools
import mmap
import sys
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt.model.config import GPTConfig
from gpt.model.params import Params
from gpt.model.rope_frequencies import rope_frequencies
from gpt.model.transformer import BIASES

PANEL = 64
VECTOR = 16  # Floats; processors with shorter vectors have several.
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
  n, D = cfg.n_layer, cfg.n_embd
  blocks = [params[f'block_{i}'] for i in range(n)]

  def operand(
    sources: list[Any], make: Callable[[list[np.ndarray]], np.ndarray]
  ) -> Any:
    """make(sources) on the device."""
    # The key holds the sources, so that no id is another array's later.
    key = (pairs, *map(id, sources))
    if key not in known:
      made = in_large_pages(make(list(map(jax.device_get, sources))))
      known[key] = jax.device_put(made), sources  # The same memory.
    return known[key][0]

  def matrix(
    *names: str,
    across: Callable[[np.ndarray], np.ndarray] = np.asarray,
    down: Callable[[np.ndarray], np.ndarray] = np.asarray,
  ) -> Any:
    """Matrices side by side; their columns and their rows may be padded."""
    width = len(names)

    def make(sources: list[np.ndarray]) -> np.ndarray:
      made = []
      for at in range(0, n * width, width):
        w = [across(down(x)) for x in sources[at : at + width]]
        b = [across(x) for x in sources[at + n * width :][:width]]
        w = np.concatenate(w, axis=-1)
        b = np.concatenate(b) if b else np.zeros(w.shape[1])
        made.append(panels(w, b, pairs))
      return np.stack(made)

    biases = [BIASES[name] for name in names] if cfg.bias else []
    sources = [block[x] for block in blocks for x in names]
    return operand(sources + [b[x] for b in blocks for x in biases], make)

  def table(name: str) -> Any:
    return operand([params[name]], lambda x: embedding(x[0], pairs))

  def norm(tree: Any, name: str, width: int = D) -> np.ndarray:
    """float32[2, width]: gain and bias; ones and zeros without."""
    gain = tree.get(name, np.ones(width))
    bias = tree.get(f'{name}_bias', np.zeros(width))
    return np.stack([jax.device_get(x) for x in (gain, bias)])

  norms = [norm(params, 'embed_norm'), norm(params, 'final_norm')]
  for block in blocks:
    norms += norm(block, 'attn_norm'), norm(block, 'mlp_norm')
  gains = 'q_gain', 'k_gain'
  of_heads = [norm(b, x, cfg.head_dim) for b in blocks for x in gains]
  head = params['wte' if cfg.tied_embeddings else 'lm_head']
  heads = functools.partial(padded_heads, cfg.head_dim)
  up = ('gate', 'fc1') if cfg.mlp == 'swiglu' else ('fc1',)
  return (
    table('wte'),
    table('wpe') if cfg.pos == 'learned' else NONE,
    jnp.asarray(turns(cfg)),
    jnp.asarray(np.stack(norms), jnp.float32),
    jnp.asarray(np.stack(of_heads), jnp.float32),
    matrix('wq', 'wk', 'wv', across=heads),
    matrix('wo', down=lambda w: heads(w.T).T),
    matrix(*up, across=padded),
    matrix('fc2'),
    # Twice: the operand of `head` alone may be the table of embeddings.
    operand([head, head], lambda x: panels(x[0].T, np.zeros(len(x[0])), pairs)),
  )


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


def padded_heads(K: int, x: np.ndarray) -> np.ndarray:
  """x with zeros after each K of its last axis, to a multiple of VECTOR."""
  if room := -K % VECTOR:
    x = x.reshape(*x.shape[:-1], -1, K)
    x = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, room)])
    x = x.reshape(*x.shape[:-2], -1)
  return x


def panels(w: np.ndarray, bias: np.ndarray, pairs: bool) -> np.ndarray:
  """Panels of float32[in, out] and its bias.

  Returns:
    float32[out / 64, in + 1, 64], or with pairs uint32[out / 64, in / 2 + 1,
    64] that ends with the bits of the bias.
  """
  w = padded(w.astype(np.float32, copy=False))
  last = padded(bias.astype(np.float32)[None])
  if pairs:
    bits = w.astype(jnp.bfloat16).view(np.uint16).astype(np.uint32)
    w, last = bits[::2] | bits[1::2] << 16, last.view(np.uint32)
  w = np.concatenate([w, last])
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
