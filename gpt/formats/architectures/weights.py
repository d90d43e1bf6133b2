"""Tensors of a family's files <-> our parameters, one tensor at a time."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from gpt.errors import UserError
from gpt.formats.architectures.family import MIRRORED, OUT_IN, Family, Row
from gpt.formats.architectures.features import quoted
from gpt.model import GPTConfig, abstract_params
from gpt.model.params import Params

HEAD, EMBEDDING = 'lm_head', 'wte'


class Source(Protocol):
  """Named tensors that are read when asked for."""

  @property
  def shapes(self) -> Mapping[str, tuple[int, ...]]:
    """{name: shape} of all tensors."""
    ...

  def read(self, name: str) -> np.ndarray:
    """One tensor, of a float dtype."""
    ...


def from_hf_tensors(
  family: Family,
  cfg: GPTConfig,
  source: Source,
  where: str,
  dtype: Any = np.float32,
) -> dict[str, Any]:
  """The parameter tree of a model.

  Holds at most one tensor besides the result.

  Args:
    source: the tensors, with or without the base model's prefix.
    where: the file, for errors.
    dtype: of the parameters.

  Raises:
    UserError: tensors or shapes that do not fit the config.
  """
  files = {
    _bare(name, family): name
    for name in source.shapes
    if not re.fullmatch(family.buffers, _bare(name, family))
  }
  shapes = {bare: tuple(source.shapes[name]) for bare, name in files.items()}
  _check_layers(family, cfg, shapes, where)
  if cfg.tied_embeddings:
    _drop_tied_head(family, files, shapes, source, where)
  leaves = _leaf_shapes(cfg)
  wanted = {
    row.hf.replace('{i}', str(i)): _file_shape(row, leaves, i)
    for row, i in _rows(family, cfg, leaves)
  }
  _compare(wanted, shapes, where)
  params: dict[str, Any] = {}
  for row, i in _rows(family, cfg, leaves):
    x = source.read(files[row.hf.replace('{i}', str(i))])
    widths = [leaves[_path(row, name, i)][-1] for name in row.ours]
    if row.layout in (OUT_IN, MIRRORED):
      x = x.T
    cuts = np.cumsum(widths)[:-1]
    parts = np.split(x, cuts, axis=-1) if len(row.ours) > 1 else [x]
    for name, part in zip(row.ours, parts):
      if row.layout == MIRRORED:
        part = mirrored(part, cfg.head_dim)
      value = np.ascontiguousarray(part, dtype)
      block, leaf = _path(row, name, i)
      tree = params.setdefault(block, {}) if block else params
      tree[leaf] = value
  return params


def to_hf_tensors(
  family: Family, cfg: GPTConfig, params: Params
) -> Iterator[tuple[str, np.ndarray]]:
  """(name, tensor) of a family's file, in the dtype of the parameters.

  Args:
    cfg, params: a model the family holds, see `conform`.
  """
  leaves = _leaf_shapes(cfg)
  for row, i in _rows(family, cfg, leaves):
    parts = []
    for name in row.ours:
      block, leaf = _path(row, name, i)
      x = np.asarray(params[block][leaf] if block else params[leaf])
      if row.layout == MIRRORED:
        x = mirrored(x, cfg.head_dim)
      parts.append(x.T if row.layout in (OUT_IN, MIRRORED) else x)
    bare = row.hf.replace('{i}', str(i))
    name = bare if row.outside else f'{family.prefix}.{bare}'
    yield name, parts[0] if len(parts) == 1 else np.concatenate(parts, -1)


def _rows(
  family: Family, cfg: GPTConfig, leaves: Mapping[tuple[str, str], Any]
) -> Iterator[tuple[Row, int]]:
  """(row, layer) of all tensors that the model has."""
  for row in family.tensors:
    layers = range(cfg.n_layer) if '{i}' in row.hf else (0,)
    if _path(row, row.ours[0], 0) in leaves:
      yield from ((row, i) for i in layers)


def _path(row: Row, name: str, layer: int) -> tuple[str, str]:
  """(block, leaf) of a parameter; the block of tables is ''."""
  return f'block_{layer}' if '{i}' in row.hf else '', name


def _leaf_shapes(cfg: GPTConfig) -> dict[tuple[str, str], tuple[int, ...]]:
  """{(block, leaf): shape} of all parameters."""
  found = {}
  for top, value in abstract_params(cfg).items():
    if isinstance(value, dict):
      found |= {(top, name): x.shape for name, x in value.items()}
    else:
      found['', top] = value.shape
  return found


def _file_shape(
  row: Row, leaves: Mapping[tuple[str, str], tuple[int, ...]], layer: int
) -> tuple[int, ...]:
  shapes = [leaves[_path(row, name, layer)] for name in row.ours]
  joined = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
  return joined[::-1] if row.layout in (OUT_IN, MIRRORED) else joined


def mirrored(x: np.ndarray, head_dim: int) -> np.ndarray:
  """Negates the second half of each head; x is [in, heads K]."""
  heads = x.reshape(x.shape[0], -1, head_dim)
  first, second = np.split(heads, [head_dim // 2], axis=-1)
  return np.concatenate([first, -second], -1).reshape(x.shape)


def _bare(name: str, family: Family) -> str:
  return name.removeprefix(f'{family.prefix}.')


def _check_layers(
  family: Family,
  cfg: GPTConfig,
  shapes: Mapping[str, tuple[int, ...]],
  where: str,
) -> None:
  """Compares the number of layers first: a wrong one may be a huge one."""
  start = next(row.hf for row in family.tensors if '{i}' in row.hf)
  pattern = re.escape(start.partition('{i}')[0]) + r'(\d+)\.'
  found = {m[1] for name in shapes if (m := re.match(pattern, name))}
  if len(found) != cfg.n_layer:
    raise UserError(
      f'{where}: config.json has {cfg.n_layer} layers, the files have tensors '
      f'of {len(found)}'
    )


def _drop_tied_head(
  family: Family,
  files: dict[str, str],
  shapes: dict[str, tuple[int, ...]],
  source: Source,
  where: str,
) -> None:
  """A tied head may be stored again; another head would be lost."""
  rows = {row.ours[0]: row.hf for row in family.tensors}
  head, table = rows[HEAD], rows[EMBEDDING]
  if head not in files or table not in files:
    return
  one, other = files[head], files[table]
  same = shapes[head] == shapes[table] and np.array_equal(
    source.read(one), source.read(other)
  )
  if not same:
    raise UserError(
      f'{where}: config.json ties the head to the embedding '
      f'(tie_word_embeddings), but {one} differs from {other}: set it to false '
      'to keep both, or remove one tensor'
    )
  del files[head], shapes[head]


def _compare(
  wanted: Mapping[str, tuple[int, ...]],
  found: Mapping[str, tuple[int, ...]],
  where: str,
) -> None:
  for name in sorted(wanted.keys() | found.keys()):
    if name not in found:
      raise UserError(
        f'{where}: the tensor {name} is missing: expected {wanted[name]} from '
        'config.json'
      )
    if name not in wanted:
      raise UserError(
        f'{where}: unexpected tensor {quoted(name)} {found[name]}: the model '
        'of config.json has none of this name'
      )
    if found[name] != wanted[name]:
      raise UserError(
        f'{where}: {name}: expected {wanted[name]} from config.json, found '
        f'{found[name]}'
      )
