"""RandyGPT checkpoint files (RGPT0001/2/3), read and written in numpy.

A file is a 24-byte header followed by float32 tensors: little-endian,
row-major, matrices as [out, in]. It does not record the model's shape, which
comes from a preset. Our block matrices are [in, out], so `to_params` and
`from_params` transpose. Bits are copied, never converted: NaN payloads, -0.0
and denormals survive, and import -> export gives the same bytes.

Axis letters: V vocabulary, T trained context, D model width, L layers.
"""

import dataclasses
import os
import struct
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from gpt.errors import UserError
from gpt.files import open_file, replacing
from gpt.model.config import GPTConfig, unrepresentable
from gpt.model.params import Params

HEADER = struct.Struct('<8sIIIf')
MAGICS = {b'RGPT0001': 1, b'RGPT0002': 2, b'RGPT0003': 3}
MAGIC = b'RGPT0003'  # The version that is written.
MAX_U32 = 2**32 - 1
MIN_RATIO = 4  # Of n_embd to n_layer, for a plausible shape.
# Name -> (rows, columns) in units of D, in file order.
BLOCK = {
  **{name: (1, 1) for name in ('wq', 'wk', 'wv', 'wo')},
  'fc1': (4, 1),
  'fc2': (1, 4),
}
TABLES = ('wte', 'wpe', 'lm_head')

Tensors = dict[str, np.ndarray]
Path = str | os.PathLike[str]


class RgptSizeError(UserError):
  """The file's size does not fit the given shape.

  Attributes:
    fits: plausible (n_embd, n_layer) pairs for this size, see `infer_shape`.
  """

  def __init__(self, message: str, fits: list[tuple[int, int]]) -> None:
    super().__init__(message)
    self.fits = fits


@dataclasses.dataclass(eq=False)
class RgptCheckpoint:
  """Content of a file; tensors are named 'wte', ..., 'block_0/wq', ...

  Attributes:
    version: 1, 2 or 3, of the file that was read (files are written as 3).
    iter: the last completed iteration, 0-based; training resumes at iter + 1.
    adam_step: number of updates in the moments, for bias correction; 0 without
      moments.
    best_loss: nats/token, with the bits of the file (inf: none).
    weights, m, v: float32 tensors in file order and file shapes, [out, in]. m
      and v, Adam's moments, are None in weights-only files.
  """

  version: int
  vocab_size: int
  iter: int
  adam_step: int
  best_loss: np.float32
  weights: Tensors
  m: Tensors | None
  v: Tensors | None
  n_embd: int
  n_layer: int
  block_size: int


def tensor_shapes(
  vocab_size: int, n_embd: int, n_layer: int, block_size: int
) -> dict[str, tuple[int, int]]:
  """Name -> file shape ([out, in]) of every weight, in file order."""
  shapes = {
    'wte': (vocab_size, n_embd),
    'wpe': (block_size, n_embd),
    'lm_head': (vocab_size, n_embd),
  }
  for i in range(n_layer):
    for name, (rows, columns) in BLOCK.items():
      shapes[f'block_{i}/{name}'] = (rows * n_embd, columns * n_embd)
  return shapes


def count_weights(
  vocab_size: int, n_embd: int, n_layer: int, block_size: int
) -> int:
  """N = 12 L D^2 + T D + 2 V D."""
  return n_embd * (12 * n_layer * n_embd + block_size + 2 * vocab_size)


def read_rgpt(
  path: Path,
  n_embd: int,
  n_layer: int,
  block_size: int = 256,
  expected_vocab_size: int | None = None,
) -> RgptCheckpoint:
  """Reads RGPT0001, RGPT0002 (both variants) or RGPT0003.

  Raises:
    RgptSizeError: the file's size does not fit the shape.
    UserError: a missing file, a bad magic, a truncated header or another
      vocabulary size.
  """
  with open_file(path) as f:
    version, vocab_size, iteration, adam_step, best = _read_header(f, path)
    if expected_vocab_size is not None and vocab_size != expected_vocab_size:
      raise UserError(
        f'Checkpoint vocab_size {vocab_size} != model vocab_size '
        f'{expected_vocab_size}'
      )
    shape = vocab_size, n_embd, n_layer, block_size
    has_moments = _has_moments(f, path, version, shape)
    shapes = tensor_shapes(*shape)
    weights = _read_tensors(f, shapes)
    m: Tensors = {}
    v: Tensors = {}
    if has_moments and version == 3:
      m, v = _read_tensors(f, shapes), _read_tensors(f, shapes)
    elif has_moments:
      for name, size in shapes.items():
        m |= _read_tensors(f, {name: size})
        v |= _read_tensors(f, {name: size})
  return RgptCheckpoint(
    version=version,
    vocab_size=vocab_size,
    iter=iteration,
    adam_step=adam_step if has_moments else 0,
    best_loss=best,
    weights=weights,
    m=m if has_moments else None,
    v=v if has_moments else None,
    n_embd=n_embd,
    n_layer=n_layer,
    block_size=block_size,
  )


def read_vocab_size(path: Path) -> int:
  """The vocabulary size in a file's header."""
  with open_file(path) as f:
    return _read_header(f, path)[1]


def infer_shape(path: Path, block_size: int = 256) -> list[tuple[int, int]]:
  """The plausible (n_embd, n_layer) pairs for a file's size.

  A size alone also fits absurdly deep models: pairs with an n_embd below
  4 n_layer are left out (RandyGPT's presets have at least 12 n_layer). Usually
  one pair is left, or none, e.g. with another block_size.
  """
  with open_file(path) as f:
    version, vocab_size, *_ = _read_header(f, path)
    payload = os.fstat(f.fileno()).st_size - HEADER.size
  found = []
  for bytes_per_weight in (12, 4) if version == 2 else (12,):
    n_weights, rest = divmod(payload, bytes_per_weight)
    if rest:
      continue
    for n_embd in range(4, 4097, 4):
      blocks, rest = divmod(n_weights, n_embd)
      blocks -= block_size + 2 * vocab_size
      n_layer, uneven = divmod(blocks, 12 * n_embd)
      if not rest and not uneven and 0 < n_layer <= n_embd // MIN_RATIO:
        found.append((n_embd, n_layer))
  return found


def write_rgpt(path: Path, ckpt: RgptCheckpoint) -> None:
  """Writes an RGPT0003 file, or leaves an older file unchanged.

  Without moments zeros and Adam step 0 are written: the state of a fresh
  optimizer.

  Raises:
    UserError: content that the format cannot represent; a place that cannot be
      written to.
  """
  try:
    with replacing(path) as file:
      for chunk in _encode(ckpt):
        file.write(chunk)
  except OSError as e:
    raise UserError(
      f'cannot write {path}: {e.strerror or e}; a file that was there before '
      'is unchanged'
    ) from e


def to_params(
  ckpt: RgptCheckpoint,
) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any] | None]:
  """Parameter trees of our model: (params, mu, nu).

  Tables are [rows, D] as in the file; block matrices become [in, out]. Adam's
  moments mu and nu are None if the file has none.
  """

  def tree(tensors: Tensors | None) -> dict[str, Any] | None:
    if tensors is None:
      return None
    params: dict[str, Any] = {}
    for name, x in tensors.items():
      block, _, leaf = name.rpartition('/')
      if block:
        params.setdefault(block, {})[leaf] = np.ascontiguousarray(x.T)
      else:
        params[leaf] = x.copy()
    return params

  return tree(ckpt.weights) or {}, tree(ckpt.m), tree(ckpt.v)


def from_params(
  params: Params,
  mu: Mapping | None = None,
  nu: Mapping | None = None,
  *,
  iter: int = 0,
  adam_step: int = 0,
  best_loss: float | np.floating = np.inf,
) -> RgptCheckpoint:
  """The checkpoint of our parameter tree and of Adam's moments.

  Args:
    params, mu, nu: equal trees of float32 numpy or JAX arrays.
    iter, adam_step, best_loss: see RgptCheckpoint.

  Raises:
    UserError: tensors, shapes or dtypes other than RandyGPT's.
  """
  if (mu is None) != (nu is None):
    raise ValueError('give both moments or neither')
  n_layer = sum(1 for name in params if name.startswith('block_'))
  absent = [name for name in TABLES if name not in params]
  if absent or not n_layer:
    raise UserError(
      'this model cannot be written as an RGPT file: it has no '
      f'{", ".join(absent or ["blocks"])}'
    )
  vocab_size, n_embd = np.shape(params['wte'])
  ckpt = RgptCheckpoint(
    version=3,
    vocab_size=vocab_size,
    iter=iter,
    adam_step=adam_step if mu is not None else 0,
    best_loss=_float32(best_loss),
    weights=_file_tensors(params),
    m=None if mu is None else _file_tensors(mu),
    v=None if nu is None else _file_tensors(nu),
    n_embd=n_embd,
    n_layer=n_layer,
    block_size=np.shape(params['wpe'])[0],
  )
  _check(ckpt)
  return ckpt


def obstacles(cfg: GPTConfig) -> list[str]:
  """Reasons why RGPT files cannot represent a model; [] if they can.

  Readers of the format run RandyGPT's architecture whatever we trained, so a
  model with any other option must not be written.
  """
  return unrepresentable(cfg, 'rgpt')


def _read_header(
  f: BinaryIO, path: Path
) -> tuple[int, int, int, int, np.float32]:
  """(version, vocab_size, iter, adam_step, best_loss)."""
  header = f.read(HEADER.size)
  version = MAGICS.get(header[:8])
  if version is None:
    raise UserError(f'Bad magic bytes in checkpoint {path}')
  if len(header) < HEADER.size:
    raise UserError(
      f'checkpoint {path} is truncated: it has {len(header)} bytes, less than '
      f'the header of {HEADER.size}'
    )
  _, vocab_size, iteration, adam_step, _ = HEADER.unpack(header)
  # Not from unpack: conversion to a Python float quiets signalling NaNs.
  best_loss = np.frombuffer(header, '<f4', 1, 20).astype(np.float32)[0]
  return version, vocab_size, iteration, adam_step, best_loss


def _has_moments(
  f: BinaryIO, path: Path, version: int, shape: tuple[int, int, int, int]
) -> bool:
  """Whether the file has moments; RgptSizeError if its size fits neither."""
  vocab_size, n_embd, n_layer, block_size = shape
  n = count_weights(*shape)
  actual = os.fstat(f.fileno()).st_size
  full, bare = HEADER.size + 12 * n, HEADER.size + 4 * n
  if actual == full:
    return True
  if actual == bare and version == 2:
    return False
  needed = f'{full} bytes'
  if version == 2:
    needed += f' (or {bare} with weights only)'
  fits = infer_shape(path, block_size)
  hint = ' or '.join(f'n_embd {d}, n_layer {l}' for d, l in fits[:4])
  hint = hint and f' Its size is that of {hint}.'
  raise RgptSizeError(
    f'checkpoint {path} has {actual} bytes, but n_embd {n_embd}, n_layer '
    f'{n_layer}, block_size {block_size} and its vocab_size {vocab_size} '
    f'take {needed}.{hint}',
    fits,
  )


def _read_tensors(
  f: BinaryIO, shapes: Mapping[str, tuple[int, int]]
) -> Tensors:
  tensors = {}
  for name, shape in shapes.items():
    n_bytes = 4 * shape[0] * shape[1]
    raw = f.read(n_bytes)
    if len(raw) != n_bytes:
      raise UserError(f'checkpoint {f.name} ended inside {name}')
    # astype makes a writable copy in native byte order, with the same bits.
    tensors[name] = np.frombuffer(raw, '<f4').astype(np.float32).reshape(shape)
  return tensors


def _check(ckpt: RgptCheckpoint) -> dict[str, tuple[int, int]]:
  """The shapes of all weights; UserError if the format cannot hold them."""
  shapes = tensor_shapes(
    ckpt.vocab_size, ckpt.n_embd, ckpt.n_layer, ckpt.block_size
  )
  groups = {'weights': ckpt.weights, 'm': ckpt.m, 'v': ckpt.v}
  for group, tensors in groups.items():
    if tensors is None:
      continue
    if strange := sorted(tensors.keys() ^ shapes.keys()):
      raise UserError(
        'this model cannot be written as an RGPT file: its tensors differ '
        f"from RandyGPT's in {group}: {', '.join(strange)}"
      )
    for name, shape in shapes.items():
      x = tensors[name]
      if x.shape != shape or x.dtype != np.float32:
        raise UserError(
          f'this model cannot be written as an RGPT file: {name} of {group} is '
          f'{x.dtype}{list(x.shape)}, not float32{list(shape)} ([out, in])'
        )
  for name in ('vocab_size', 'iter', 'adam_step'):
    if not 0 <= getattr(ckpt, name) <= MAX_U32:
      raise UserError(
        f'{name} {getattr(ckpt, name)} does not fit an RGPT header (u32)'
      )
  return shapes


def _encode(ckpt: RgptCheckpoint) -> Iterator[bytes | memoryview]:
  """The bytes of an RGPT0003 file, in pieces."""
  shapes = _check(ckpt)
  adam_step = ckpt.adam_step if ckpt.m is not None else 0
  header = struct.pack('<8sIII', MAGIC, ckpt.vocab_size, ckpt.iter, adam_step)
  yield header + _float32(ckpt.best_loss).astype('<f4').tobytes()
  for tensors in (ckpt.weights, ckpt.m, ckpt.v):
    for name, shape in shapes.items():
      if tensors is None:
        yield bytes(4 * shape[0] * shape[1])
      else:
        yield np.ascontiguousarray(tensors[name], '<f4').data.cast('B')


def _file_tensors(tree: Mapping[str, Any]) -> Tensors:
  """Our tree under the file's names, block matrices as [out, in]."""
  tensors: Tensors = {}
  for name, value in tree.items():
    if isinstance(value, Mapping):
      for leaf, x in value.items():
        tensors[f'{name}/{leaf}'] = np.asarray(x).T
    else:
      tensors[name] = np.asarray(value)
  return tensors


def _float32(x: float | np.floating) -> np.float32:
  """A float32 scalar; one that is already float32 keeps its bits."""
  array: Any = np.asarray(x)
  return array.astype(np.float32, copy=False)[()]
