"""Muon: momentum made orthogonal, for the matrices of the blocks.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon): the update of a
matrix is its Nesterov momentum with all singular values moved to about 1, by a
few Newton-Schulz iterations. Embeddings and head stay with AdamW.

At small batches the iterations cost as much as the gradients. So matrices of
equal shape are stacked into one batched product, and the stack is shared out
over the devices of the mesh instead of being repeated on each.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from gpt.model.mixed_precision import product, row_major

# Newton-Schulz: X <- aX + (bA + cA^2)X with A = XX^T (Jordan et al. 2024).
A, B, C = 3.4445, -4.7750, 2.0315


class MuonState(NamedTuple):
  """momentum: float32 tree of the block matrices; rest: AdamW's state."""

  momentum: Any
  rest: Any


def orthogonalise(x_NRC, steps: int, mixed: bool = False):
  """float32[N, R, C], R <= C, with singular values moved to about 1.

  Five steps bring nearly all of them between 0.7 and 1.2; tiny ones less far.
  """
  einsum = product if mixed else jnp.einsum
  norm_N11 = jnp.sqrt(jnp.sum(x_NRC * x_NRC, axis=(1, 2), keepdims=True))
  x_NRC = x_NRC / (norm_N11 + 1e-7)
  for _ in range(steps):
    gram_NRR = einsum('NRC,NSC->NRS', x_NRC, x_NRC)
    poly_NRR = B * gram_NRR + C * einsum('NRS,NST->NRT', gram_NRR, gram_NRR)
    x_NRC = A * x_NRC + einsum('NRS,NSC->NRC', poly_NRR, x_NRC)
  return x_NRC


def orthogonalise_tree(tree, steps: int, mesh=None, mixed: bool = False):
  """Every matrix of a tree, equal shapes in one call, spread over the mesh."""
  leaves, treedef = jax.tree.flatten(tree)
  wide = [x if x.shape[0] <= x.shape[1] else x.T for x in leaves]
  out = [None] * len(leaves)
  for shape in sorted({x.shape for x in wide}):
    members = [i for i, x in enumerate(wide) if x.shape == shape]
    stack_NRC = jnp.stack([wide[i] for i in members])
    if mixed:
      stack_NRC = row_major(stack_NRC)
    if mesh is not None and mesh.size > 1:
      spare = -len(members) % mesh.size
      stack_NRC = jnp.pad(stack_NRC, ((0, spare), (0, 0), (0, 0)))
      shared = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
      stack_NRC = jax.lax.with_sharding_constraint(stack_NRC, shared)
    stack_NRC = orthogonalise(stack_NRC, steps, mixed)
    if mesh is not None and mesh.size > 1:
      whole = NamedSharding(mesh, PartitionSpec())
      stack_NRC = jax.lax.with_sharding_constraint(stack_NRC, whole)
    for i, x in zip(members, stack_NRC):
      out[i] = x if leaves[i].shape == shape else x.T
  return jax.tree.unflatten(treedef, out)


def is_block(name: str) -> bool:
  return name.startswith('block_')


def split_tree(tree):
  """(block matrices, everything else) of a parameter tree."""
  blocks = {name: x for name, x in tree.items() if is_block(name)}
  return blocks, {name: x for name, x in tree.items() if not is_block(name)}


def muon(
  rest: optax.GradientTransformation,
  *,
  scale: float,
  momentum: float = 0.95,
  steps: int = 5,
  weight_decay: float = 0.0,
  mesh=None,
  mixed: bool = False,
) -> optax.GradientTransformation:
  """Directions to be scaled by -lr, as from the other chains.

  Args:
    rest: the transformation of what is not a block matrix.
    scale: learning rate of the matrices over that of the rest.
    momentum: of the Nesterov average of gradients.
    steps: Newton-Schulz iterations.
    weight_decay: decoupled, of the matrices.
    mesh: devices to share the iterations out over.
    mixed: iterate with products.product, which is precise enough for it.
  """

  def init(params):
    blocks, others = split_tree(params)
    return MuonState(jax.tree.map(jnp.zeros_like, blocks), rest.init(others))

  def update(grads, state, params):
    blocks, others = split_tree(grads)
    params_blocks, params_others = split_tree(params)
    average = jax.tree.map(
      lambda m, g: momentum * m + (1 - momentum) * g, state.momentum, blocks
    )
    nesterov = jax.tree.map(
      lambda m, g: momentum * m + (1 - momentum) * g, average, blocks
    )
    directions = jax.tree.map(
      # sqrt(out/in): equal change of the outputs whatever the shape.
      lambda o, p: (
        scale
        * (o * max(1.0, p.shape[1] / p.shape[0]) ** 0.5 + weight_decay * p)
      ),
      orthogonalise_tree(nesterov, steps, mesh, mixed),
      params_blocks,
    )
    others, rest_state = rest.update(others, state.rest, params_others)
    return {**directions, **others}, MuonState(average, rest_state)

  return optax.GradientTransformation(init, update)
