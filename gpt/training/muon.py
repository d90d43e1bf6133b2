"""Muon: orthogonalised momentum for the block matrices (Jordan et al. 2024).

The update of a matrix is its Nesterov momentum with all singular values moved
to about 1 by a few Newton-Schulz iterations. Embeddings and head use AdamW.

At small batch sizes the iterations cost as much as the gradients. Matrices of
equal shape are therefore stacked into one batched product, and the stack is
sharded over the mesh instead of being computed on every device.

NorMuon also divides each neuron's part of an update by its running norm.

References:
  Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon);
  Li et al. 2025, NorMuon (https://arxiv.org/abs/2510.05491), algorithm 1.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt import devices, sharding
from gpt.model.mixed_precision import einsum_bf16, row_major
from gpt.native import training

# Coefficients of the quintic Newton-Schulz iteration (Jordan et al. 2024).
A, B, C = 3.4445, -4.7750, 2.0315
# Of matrices that a device stacks. The iteration needs about five times as
# much; larger stacks would not make the products faster.
STACK_BYTES = 128 << 20
# Decay of NorMuon's running mean squares.
NEURON_DECAY = 0.95


class MuonState(NamedTuple):
  """Muon's optimizer state.

  Attributes:
    momentum: float32 tree of the block matrices.
    rest: AdamW's state, of all other params.
  """

  momentum: Any
  rest: Any


class NorMuonState(NamedTuple):
  """NorMuon's optimizer state.

  Attributes:
    momentum, rest: of MuonState.
    squares: tree of float32[out], a running mean for each output of the block
      matrices.
  """

  momentum: Any
  rest: Any
  squares: Any


def orthogonalise(
  x_NRC: jax.Array, steps: int, mixed: bool = False
) -> jax.Array:
  """Moves the singular values of N matrices to about 1 (Newton-Schulz).

    X_0 = X / |X|_F
    X_{k+1} = A X_k + (B G + C G^2) X_k,  G = X_k X_k^T

  Five steps bring nearly all singular values into [0.7, 1.2]; very small ones
  stay below.

  Args:
    x_NRC: float32[N, R, C] with R <= C.
    steps: number of iterations.
    mixed: bfloat16 operands, float32 sums; precise enough for the iteration.
      In float32, CPUs have a compiled kernel (gpt/native/orthogonal.h).

  Returns:
    float32[N, R, C].
  """
  if not mixed and training.usable():
    return training.orthogonalise(x_NRC, steps, (A, B, C))
  einsum = einsum_bf16 if mixed else jnp.einsum
  norm_N11 = jnp.sqrt(jnp.sum(x_NRC * x_NRC, axis=(1, 2), keepdims=True))
  x_NRC = x_NRC / (norm_N11 + 1e-7)
  for _ in range(steps):
    gram_NRR = einsum('NRC,NSC->NRS', x_NRC, x_NRC)
    poly_NRR = B * gram_NRR + C * einsum('NRS,NST->NRT', gram_NRR, gram_NRR)
    x_NRC = A * x_NRC + einsum('NRS,NSC->NRC', poly_NRR, x_NRC)
  return x_NRC


def orthogonalise_tree(
  tree: Any, steps: int, mesh: Mesh | None = None, mixed: bool = False
) -> Any:
  """Orthogonalises every matrix of a tree, in stacks of those alike.

  Args:
    tree: float32 matrices; tall ones are transposed on the way.
    mesh: shards each stack over its devices; None: a single device.

  Returns:
    The tree, its leaves sharded as the params are.
  """
  leaves, treedef = jax.tree.flatten(tree)
  axes: list[tuple[Any, Any]] = [(None, None)] * len(leaves)
  if mesh is not None and sharding.is_sharded(mesh):
    placed = jax.tree.leaves(sharding.shardings(mesh, tree))
    specs = [(*x.spec, None, None) for x in placed]
    axes = [(rows, columns) for rows, columns, *_ in specs]
  alike: dict[Any, list[int]] = {}
  for i, (x, (rows, columns)) in enumerate(zip(leaves, axes)):
    R, C = x.shape
    key = (R, C, rows, columns) if R <= C else (C, R, columns, rows)
    alike.setdefault(key, []).append(i)
  out: list[Any] = [None] * len(leaves)
  n_devices = mesh.size if mesh is not None else 1
  for key in sorted(alike, key=lambda key: (*key[:2], str(key[2:]))):
    (R, C, *held), members = key, alike[key]
    limit = n_devices * max(1, STACK_BYTES // (4 * R * C))
    for first in range(0, len(members), limit):
      group = members[first : first + limit]
      stack_NRC = jnp.stack(
        [x if x.shape == (R, C) else x.T for x in (leaves[i] for i in group)]
      )
      if mixed:
        stack_NRC = row_major(stack_NRC)
      if mesh is not None and n_devices > 1:
        padding = -len(group) % n_devices
        stack_NRC = jnp.pad(stack_NRC, ((0, padding), (0, 0), (0, 0)))
        # Stacked where the matrices are: else XLA would send each by itself.
        ways = [PartitionSpec(None, *held), *_spread(mesh, *held)]
        stack_NRC = _resharded(stack_NRC, mesh, ways)
      run = functools.partial(orthogonalise, steps=steps, mixed=mixed)
      # XLA cannot divide a call.
      if mesh is not None and mesh.size > 1 and not mixed and training.usable():
        each = devices.SHARDED
        run = devices.map_over_data(run, mesh, in_specs=each, out_specs=each)
      stack_NRC = run(stack_NRC)
      if mesh is not None and n_devices > 1:
        stack_NRC = _resharded(stack_NRC, mesh, ways[-2::-1])
      for i, x in zip(group, stack_NRC):
        out[i] = x if leaves[i].shape == (R, C) else x.T
  return jax.tree.unflatten(treedef, out)


def _spread(
  mesh: Mesh, rows: str | None, columns: str | None
) -> list[PartitionSpec]:
  """Ways to shard a stack, ending with N alone over all devices.

  Each moves one axis of the mesh: an all-to-all, or a slice. XLA does not find
  the way by itself, and would gather the stack on every device.

  Args:
    rows, columns: the axes of the mesh that shard its matrices.
  """
  moved = tuple(name for name in (columns, rows) if name)
  rest = tuple(name for name in mesh.axis_names if name not in moved)
  ways = []
  if rows and columns:
    ways.append(PartitionSpec(columns, rows, None))
  if moved:
    ways.append(PartitionSpec(moved, None, None))
  return [*ways, PartitionSpec((*moved, *rest), None, None)]


def _resharded(
  x: jax.Array, mesh: Mesh, ways: list[PartitionSpec]
) -> jax.Array:
  for way in ways:
    x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, way))
  return x


def split_tree(tree: Mapping[str, Any]) -> tuple[dict, dict]:
  """(block matrices, everything else) of a tree like params."""
  blocks: dict[str, Any] = {}
  others: dict[str, Any] = {}
  for name, value in tree.items():
    if not name.startswith('block_'):
      others[name] = value
      continue
    blocks[name] = {k: x for k, x in value.items() if x.ndim == 2}
    if vectors := {k: x for k, x in value.items() if x.ndim != 2}:
      others[name] = vectors
  return blocks, others


def join_trees(
  blocks: Mapping[str, Any], others: Mapping[str, Any]
) -> dict[str, Any]:
  """The inverse of `split_tree`."""
  return {
    **others,
    **{k: {**x, **others.get(k, {})} for k, x in blocks.items()},
  }


def by_neurons(squares: Any, updates: Any) -> tuple[Any, Any]:
  """Evens out how much the outputs of each matrix change.

    s_t = decay s_{t-1} + (1 - decay) mean_in(o_t^2)
    o'_t = o_t / sqrt(s_t), scaled back to the Frobenius norm of o_t

  Args:
    squares: tree of float32[out], s_{t-1}.
    updates: tree of float32[in, out], o_t.

  Returns:
    (s_t, o'_t).
  """
  squares = jax.tree.map(
    lambda s, o: (
      NEURON_DECAY * s + (1 - NEURON_DECAY) * jnp.mean(o * o, axis=0)
    ),
    squares,
    updates,
  )

  def even(s: jax.Array, o: jax.Array) -> jax.Array:
    divided = o / (jnp.sqrt(s)[None] + 1e-8)
    size, now = jnp.sum(o * o), jnp.sum(divided * divided)
    return divided * jnp.sqrt(size / (now + 1e-12))

  return squares, jax.tree.map(even, squares, updates)


def muon(
  rest: optax.GradientTransformation,
  *,
  scale: float,
  momentum: float = 0.95,
  steps: int = 5,
  weight_decay: float = 0.0,
  by_neuron: bool = False,
  mesh: Mesh | None = None,
  mixed: bool = False,
) -> optax.GradientTransformation:
  """Muon for the block matrices, `rest` for everything else.

    m_t = momentum m_{t-1} + (1 - momentum) g_t
    n_t = momentum m_t + (1 - momentum) g_t
    o_t = orthogonalise(n_t)
    u_t = scale (sqrt(max(1, out / in)) o_t + weight_decay * params)

  Args:
    rest: the transformation of all other params.
    scale: learning rate of the block matrices over that of the rest.
    momentum: decay of the Nesterov momentum.
    steps: Newton-Schulz iterations.
    weight_decay: decoupled weight decay of the block matrices.
    by_neuron: NorMuon: o_t goes through `by_neurons` first.
    mesh: devices that share the iterations; None: a single device.
    mixed: see `orthogonalise`.

  Returns:
    A transformation whose updates are directions, to be scaled by -lr.

  References:
    Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon). Unlike
    optax.contrib.muon, the Nesterov average has no bias correction.
  """

  def init(params: Any) -> MuonState | NorMuonState:
    blocks, others = split_tree(params)
    momentum = jax.tree.map(jnp.zeros_like, blocks)
    if not by_neuron:
      return MuonState(momentum, rest.init(others))
    squares = jax.tree.map(lambda p: jnp.zeros(p.shape[1]), blocks)
    return NorMuonState(momentum, rest.init(others), squares)

  def update(
    updates: Any, state: Any, params: Any = None
  ) -> tuple[dict[str, Any], MuonState | NorMuonState]:
    if params is None:
      raise ValueError('muon needs params: tx.update(updates, state, params)')
    blocks, others = split_tree(updates)
    params_blocks, params_others = split_tree(params)
    average = jax.tree.map(
      lambda m, g: momentum * m + (1 - momentum) * g, state.momentum, blocks
    )
    nesterov = jax.tree.map(
      lambda m, g: momentum * m + (1 - momentum) * g, average, blocks
    )
    orthogonal = orthogonalise_tree(nesterov, steps, mesh, mixed)
    if by_neuron:
      squares, orthogonal = by_neurons(state.squares, orthogonal)
    directions = jax.tree.map(
      # sqrt(out / in): the outputs change equally, whatever the shape.
      lambda o, p: (
        scale
        * (o * max(1.0, p.shape[1] / p.shape[0]) ** 0.5 + weight_decay * p)
      ),
      orthogonal,
      params_blocks,
    )
    rest_directions: Any
    rest_directions, rest_state = rest.update(others, state.rest, params_others)
    joined = join_trees(directions, rest_directions)
    if by_neuron:
      return joined, NorMuonState(average, rest_state, squares)
    return joined, MuonState(average, rest_state)

  return optax.GradientTransformation(init, update)
