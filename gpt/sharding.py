"""Which mesh axis shards which axis of an array: one table, and its use.

Arrays have logical axes (`embed`, `heads`, ...); RULES says which axes of the
mesh shard each. With `fsdp`, every device holds a slice of each matrix and of
its optimizer state; the model gathers a matrix where it uses it, and its
gradient is reduced back to the slices. With `tensor`, a device computes some of
the heads and some of the width of the MLP. XLA adds the communication.

On a mesh that only splits the batch nothing here applies: params are
replicated, and `constrain` and `gathered` return what they are given.

References:
  Xu et al. 2021, GSPMD (https://arxiv.org/abs/2105.04663);
  Rajbhandari et al. 2020, ZeRO (https://arxiv.org/abs/1910.02054), stage 3;
  Shoeybi et al. 2019, Megatron-LM (https://arxiv.org/abs/1909.08053).
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt import devices
from gpt.devices import DATA, FSDP, TENSOR
from gpt.errors import UserError

# Logical axis -> the mesh axes that shard it. An axis that they do not divide
# stays whole; check_model refuses that where it would leave devices idle.
RULES: dict[str, tuple[str, ...]] = {
  'batch': (DATA, FSDP),
  'embed': (FSDP,),
  'heads': (TENSOR,),
  'mlp': (TENSOR,),
  'vocab': (TENSOR,),
}
# The logical axes of each matrix of the model. Vectors stay whole.
MATRICES: dict[str, tuple[str | None, str | None]] = {
  'wte': ('vocab', 'embed'),
  'wpe': (None, 'embed'),
  'lm_head': ('vocab', 'embed'),
  'wq': ('embed', 'heads'),
  'wk': ('embed', 'heads'),
  'wv': ('embed', 'heads'),
  'wo': ('heads', 'embed'),
  'fc1': ('embed', 'mlp'),
  'gate': ('embed', 'mlp'),
  'fc2': ('mlp', 'embed'),
}
# Matrices whose rows are looked up. Their gradients are summed whole and then
# sliced: XLA would gather the activations instead.
TABLES = ('wte', 'wpe')

# The mesh of the program that is being traced; None: nothing is sharded.
_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar(
  'mesh', default=None
)


def mesh_for(config: Any, cfg: Any) -> Mesh:
  """The mesh of a run.

  Args:
    config: ConfigDict of the run; reads batch_size and parallel.
    cfg: the GPTConfig of its model.

  Raises:
    UserError: a mesh that the devices or the model do not allow.
  """
  mesh = devices.create_mesh(config.batch_size, parallel=config.parallel)
  check_model(cfg, mesh)
  return mesh


def described(mesh: Mesh) -> str:
  """'8 x', or '8 (data 2 x fsdp 4 x tensor 1) x' if params are sharded."""
  if not is_sharded(mesh):
    return f'{mesh.size} x'
  axes = ' x '.join(f'{name} {size}' for name, size in mesh.shape.items())
  return f'{mesh.size} ({axes}) x'


def is_sharded(mesh: Mesh) -> bool:
  """Whether params are sharded, not only the batch."""
  return mesh.size > mesh.shape[DATA]


# --- where arrays live


def _spec(
  mesh: Mesh, axes: tuple[str | None, ...], shape: tuple[int, ...]
) -> PartitionSpec:
  """The PartitionSpec of an array with these logical axes, by RULES."""
  found: list[Any] = []
  for axis, length in zip(axes, shape, strict=True):
    names = RULES[axis] if axis else ()
    size = int(np.prod([mesh.shape[name] for name in names]))
    part = names if len(names) > 1 else ''.join(names)
    found.append(part if size > 1 and length % size == 0 else None)
  return PartitionSpec(*found)


def _matrix_axes(
  path: tuple[Any, ...], ndim: int
) -> tuple[str | None, ...] | None:
  """The logical axes of a leaf of params, gradients or optimizer state.

  Args:
    path: its jax.tree_util keys; the last names are those of the params.
  """
  names = [str(getattr(key, 'key', '')) for key in path]
  if ndim != 2 or not names:
    return None
  if names[-1] in ('a', 'b') and names[-2] in MATRICES:  # LoRA.
    first, last = MATRICES[names[-2]]
    return (first, None) if names[-1] == 'a' else (None, last)
  return MATRICES.get(names[-1])


def leaf_sharding(mesh: Mesh, path: tuple[Any, ...], x: Any) -> NamedSharding:
  """The sharding of one leaf; `x` has a shape, `path` its keys."""
  axes = _matrix_axes(path, len(x.shape))
  if axes is None or not is_sharded(mesh):
    return devices.replicated_sharding(mesh)
  return NamedSharding(mesh, _spec(mesh, axes, x.shape))


def shardings(mesh: Mesh, tree: Any) -> Any:
  """A tree of NamedShardings for params, a TrainState or parts of either.

  Args:
    tree: arrays or ShapeDtypeStructs.
  """
  return jax.tree_util.tree_map_with_path(
    functools.partial(leaf_sharding, mesh), tree
  )


def with_places(mesh: Mesh, tree: Any) -> Any:
  """ShapeDtypeStructs that know their shardings; see `shardings`."""
  return jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    tree,
    shardings(mesh, tree),
  )


def place(tree: Any, mesh: Mesh) -> Any:
  """The tree on the mesh, each leaf where `shardings` says.

  Args:
    tree: numpy or JAX arrays, equal on all processes; leaves that are in place
      stay there.
  """
  if not is_sharded(mesh) and jax.process_count() == 1:
    return devices.put_replicated(tree, mesh)

  def put(path: tuple[Any, ...], x: Any) -> jax.Array:
    sharding = leaf_sharding(mesh, path, x)
    if isinstance(x, jax.Array) and x.sharding == sharding:
      return x
    if jax.process_count() == 1:
      return jax.device_put(x, sharding)
    return jax.make_array_from_callback(
      np.shape(x), sharding, lambda index: np.asarray(x)[index]
    )

  return jax.tree_util.tree_map_with_path(put, tree)


def replicated_like(x: Any) -> NamedSharding:
  """Every device of a JAX array's mesh holds the whole array."""
  return NamedSharding(x.sharding.mesh, PartitionSpec())


def to_host(tree: Any) -> Any:
  """The whole arrays as numpy, on every process; a collective.

  Arrays that no process holds whole are gathered one at a time.
  """

  def whole(x: Any) -> Any:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      if not x.is_fully_replicated:
        everywhere = replicated_like(x)
        x = jax.jit(lambda x: x, out_shardings=everywhere)(x)
      x = x.addressable_data(0)
    return jax.device_get(x)

  if jax.process_count() == 1:
    return jax.device_get(tree)
  return jax.tree.map(whole, tree)


def place_frozen(tree: Any, mesh: Mesh) -> Any:
  """As `place`, for arrays that no program ever changes or donates."""
  return (place if is_sharded(mesh) else devices.put_shared)(tree, mesh)


# --- inside a program


@contextlib.contextmanager
def tracing(mesh: Mesh) -> Iterator[None]:
  """While a program for this mesh is traced, `constrain` and `gathered` act."""
  token = _mesh.set(mesh if is_sharded(mesh) else None)
  try:
    yield
  finally:
    _mesh.reset(token)


def divided() -> bool:
  """Whether XLA divides the arrays of the program that is being traced."""
  return _mesh.get() is not None


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """x, sharded along its logical axes in the program that is being traced."""
  mesh = _mesh.get()
  if mesh is None:
    return x
  spec = _spec(mesh, axes, x.shape)
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def constrain_tree(tree: Any) -> Any:
  """A tree like params, each leaf where `shardings` says."""
  mesh = _mesh.get()
  if mesh is None:
    return tree
  return jax.lax.with_sharding_constraint(tree, shardings(mesh, tree))


def gathered(name: str, w: Any) -> Any:
  """The parameter `name` for use: whole along `fsdp`, its gradient sharded."""
  mesh = _mesh.get()
  if mesh is None or name not in MATRICES or not isinstance(w, jax.Array):
    return w
  held = NamedSharding(mesh, _spec(mesh, MATRICES[name], w.shape))
  spec = [None if part == FSDP else part for part in held.spec]
  used = NamedSharding(mesh, PartitionSpec(*spec))
  return _gathered(w, used, (used, held) if name in TABLES else (held,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(
  w: jax.Array, used: NamedSharding, back: tuple[NamedSharding, ...]
) -> jax.Array:
  return jax.lax.with_sharding_constraint(w, used)


def _scattered(
  used: NamedSharding, back: tuple[NamedSharding, ...], _: None, dw: jax.Array
) -> tuple[jax.Array]:
  for place in back:
    dw = jax.lax.with_sharding_constraint(dw, place)
  return (dw,)


# The transpose of a gather is a reduce-scatter; that of a mere constraint
# would sum whole gradients on every device.
_gathered.defvjp(lambda w, *to: (_gathered(w, *to), None), _scattered)


# --- whether a mesh fits


def check_model(cfg: Any, mesh: Mesh) -> None:
  """Raises UserError if the mesh does not divide the model.

  Args:
    cfg: a GPTConfig; reads its widths and heads.
  """
  for axis, sizes in (
    (FSDP, {'n_embd': cfg.n_embd}),
    (
      TENSOR,
      {
        'n_head': cfg.n_head,
        'n_kv_head': cfg.kv_heads,
        'mlp width': cfg.mlp_width,
      },
    ),
  ):
    for name, size in sizes.items():
      if size % mesh.shape[axis]:
        divisors = [n for n in range(1, size + 1) if size % n == 0]
        raise UserError(
          f'parallel.{axis} {mesh.shape[axis]} does not divide model.{name} '
          f'{size}; allowed: {", ".join(map(str, divisors[:12]))}'
          + (', ...' if len(divisors) > 12 else '')
        )
