"""Backend, processes, and the mesh of their devices.

The mesh has the axes `data`, `fsdp` and `tensor` over the devices of all
processes. The rows of a batch are sharded along the first two; gpt/sharding.py
says how the other two shard params. A CPU is split into one device per core,
because many XLA:CPU operations are single-threaded.
"""

import contextlib
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt.errors import UserError

try:
  from jax import shard_map
except ImportError:  # jax < 0.6
  from jax.experimental.shard_map import shard_map

DATA, FSDP, TENSOR = 'data', 'fsdp', 'tensor'
AUTO = 'auto'
SHARDED = PartitionSpec((DATA, FSDP))
REPLICATED = PartitionSpec()

# Ampere: the first GPUs with bfloat16 matrix units and cuDNN fused attention.
CUDA_CAPABILITY = 8.0

Batch = dict[str, np.ndarray]


# --- backend


def backend_name() -> str:
  """'cpu', 'tpu', 'metal', ...; for GPUs 'cuda', 'old cuda' or 'rocm'.

  'old cuda' is a compute capability below 8.0 (T4, V100).
  """
  backend = jax.default_backend().lower()
  if backend not in ('gpu', 'cuda', 'rocm'):
    return backend
  try:
    capability = float(jax.local_devices()[0].compute_capability)
  except (AttributeError, ValueError):  # AMD reports a name such as 'gfx90a'.
    return 'rocm'
  return 'cuda' if capability >= CUDA_CAPABILITY else 'old cuda'


def num_cores() -> int:
  """CPU cores this process may use; respects its affinity mask on Linux."""
  try:
    return len(os.sched_getaffinity(0)) or 1
  except AttributeError:  # macOS, Windows
    return os.cpu_count() or 1


def setup_devices(num_cpu_devices: int = 0) -> None:
  """Sets the number of CPU devices and enables the compilation cache.

  Call it before anything else uses JAX: a backend that is already running
  keeps its devices, with a warning if another number was requested.
  Accelerators are unaffected.

  Args:
    num_cpu_devices: 0 means one per core.

  Raises:
    UserError: a negative number.
  """
  if num_cpu_devices < 0:
    raise UserError(
      f'parallel.num_cpu_devices {num_cpu_devices} is negative; use 0 for one '
      'device per core'
    )
  enable_compilation_cache()
  requested = num_cpu_devices or num_cores()
  try:
    jax.config.update('jax_num_cpu_devices', requested)
  except (RuntimeError, AttributeError):
    running = jax.local_device_count()
    if jax.default_backend() == 'cpu' and num_cpu_devices not in (0, running):
      warnings.warn(
        f'JAX already runs on {running} CPU devices; {requested} were '
        'requested',
        stacklevel=2,
      )


def enable_compilation_cache() -> None:
  """Caches compiled programs in $RGPT_CACHE/xla (default ~/.cache/rgpt/xla).

  JAX_COMPILATION_CACHE_DIR takes precedence; RGPT_CACHE=off disables the
  cache. The Metal plugin ignores it.
  """
  if not hasattr(jax, 'shard_map'):
    # Before jax 0.6, a cached CPU program with donated buffers writes into
    # freed memory. Disabled whatever the environment asks for.
    jax.config.update('jax_enable_compilation_cache', False)
    return
  root = os.environ.get('RGPT_CACHE') or os.path.join(
    os.path.expanduser('~'), '.cache', 'rgpt'
  )
  if root == 'off' or os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    return
  jax.config.update('jax_compilation_cache_dir', os.path.join(root, 'xla'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', 0)


# --- processes


@contextlib.contextmanager
def process_zero_first() -> Iterator[None]:
  """Runs the body on process 0, then on all other processes."""
  if jax.process_index() > 0:
    multihost_utils.sync_global_devices('process_zero_first')
  yield
  if jax.process_index() == 0 and jax.process_count() > 1:
    multihost_utils.sync_global_devices('process_zero_first')


def any_process(flag: bool) -> bool:
  """Whether `flag` is set on any process; all of them must ask."""
  return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def process_rows(rows: int, mesh: Mesh) -> slice:
  """This process's share of the rows of a global batch.

  Processes share rows if `tensor` spans them.
  """
  each = rows // batch_shards(mesh)
  tensor = mesh.shape[TENSOR]
  own = [
    i // tensor
    for i, device in enumerate(mesh.devices.flat)
    if device.process_index == jax.process_index()
  ]
  return slice(own[0] * each, (own[-1] + 1) * each)


# --- mesh and shardings


def create_mesh(
  batch_size: int,
  devices: Sequence[Any] | None = None,
  parallel: Mapping[str, Any] | None = None,
) -> Mesh:
  """A mesh over the devices, as config.parallel asks.

  If only the batch is split, a single process uses the devices that the batch
  can keep busy. A step takes as long as the device with the most rows: with 64
  rows, 11 devices of up to 6 rows are as fast as 12. So it uses the fewest
  devices for which that maximum stays the same. Several processes use all
  devices, and so do meshes that shard the params.

  Args:
    batch_size: global batch size in rows.
    devices: jax.Devices; default: all devices of all processes, in JAX's order,
      so that `tensor` stays within a process where it can.
    parallel: `config.parallel`; reads `data`, `fsdp` and `tensor`. None, and
      the configs of older runs: split the batch.

  Raises:
    UserError: the axes do not multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  data, fsdp, tensor = mesh_axes(parallel or {})
  if data is None and fsdp == tensor == 1:
    if jax.process_count() == 1:
      rows = -(-batch_size // len(devices))
      devices = devices[: -(-batch_size // rows)]
    data = len(devices)
  if data is None:
    data = max(1, len(devices) // (fsdp * tensor))
  if data * fsdp * tensor != len(devices):
    hint = ''
    if getattr(devices[0], 'platform', '') == 'cpu':
      each = data * fsdp * tensor / jax.process_count()
      if each.is_integer():
        hint = f' (--config.parallel.num_cpu_devices={int(each)})'
    raise UserError(
      f'parallel.data {data} x fsdp {fsdp} x tensor {tensor} is '
      f'{data * fsdp * tensor} devices, and there are {len(devices)}: choose '
      f'axes that multiply to {len(devices)}{hint}'
    )
  grid = np.array(devices).reshape(data, fsdp, tensor)
  return Mesh(grid, (DATA, FSDP, TENSOR))


def mesh_axes(parallel: Mapping[str, Any]) -> tuple[int | None, int, int]:
  """(data, fsdp, tensor) of config.parallel; data is None for 'auto'.

  Raises:
    UserError: a value that no mesh has.
  """
  data, fsdp, tensor = (
    parallel.get(name, default)
    for name, default in ((DATA, AUTO), (FSDP, 1), (TENSOR, 1))
  )
  number = re.fullmatch('[1-9][0-9]{0,6}', str(data))
  if data != AUTO and not number:
    raise UserError(
      f'parallel.data {data!r} is neither a number of devices nor {AUTO!r}'
    )
  for name, size in ((FSDP, fsdp), (TENSOR, tensor)):
    if size < 1:
      raise UserError(f'parallel.{name} {size} must be at least 1')
  if fsdp * tensor > 1 and not hasattr(jax, 'shard_map'):
    raise UserError(
      f'parallel.fsdp {fsdp} and parallel.tensor {tensor} need JAX 0.6 or '
      f'later, this is {jax.__version__}: leave them at 1'
    )
  return int(data) if number else None, fsdp, tensor


def batch_shards(mesh: Mesh) -> int:
  """The number of parts that a batch is split into."""
  return mesh.shape[DATA] * mesh.shape[FSDP]


def padded_batch_size(batch_size: int, mesh: Mesh, micro: int = 1) -> int:
  """The next multiple of batch shards x micro-batch size; see `pad_rows`."""
  unit = batch_shards(mesh) * micro
  return -(-batch_size // unit) * unit


def replicated_sharding(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, REPLICATED)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The leading axis is sharded over `data` and `fsdp`."""
  return NamedSharding(mesh, SHARDED)


def map_over_data(
  fn: Callable[..., Any], mesh: Mesh, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
  """shard_map over the axis `data`: fn sees the rows of its own device.

  Inside, `jax.lax.psum(x, DATA)` sums over the devices.
  """
  shard: Callable[..., Any] = shard_map
  kwargs = dict(mesh=mesh, in_specs=in_specs, out_specs=out_specs)
  try:
    return shard(fn, check_vma=False, **kwargs)
  except TypeError:  # jax < 0.6
    return shard(fn, check_rep=False, **kwargs)


# --- arrays


def pad_rows(batch: Batch, rows: int) -> Batch:
  """Pads a numpy batch to `rows` rows; padding has weight 0."""
  missing = rows - len(batch['rows'])
  if missing == 0:
    return batch
  return {
    name: np.concatenate([x, np.zeros((missing, *x.shape[1:]), x.dtype)])
    for name, x in batch.items()
  }


def put_batch(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
  """Global arrays, sharded over the mesh, from this process's numpy rows.

  Args:
    batch: the rows of `process_rows`.
  """
  sharding = batch_sharding(mesh)
  if jax.process_count() == 1:
    return jax.device_put(batch, sharding)
  rows = process_rows(batch_shards(mesh), mesh)
  whole = batch_shards(mesh) / (rows.stop - rows.start)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(
      sharding, x, (round(len(x) * whole), *x.shape[1:])
    ),
    batch,
  )


def put_shared(tree: Any, mesh: Mesh) -> Any:
  """As put_replicated, for arrays that no program ever changes or donates.

  All CPU devices of the process read one copy; JAX would make one for each.
  """
  if jax.process_count() > 1 or mesh.devices.flat[0].platform != 'cpu':
    return put_replicated(tree, mesh)
  return put_replicated(jax.tree.map(aligned, tree), mesh)


def aligned(x: np.ndarray, boundary: int = 64) -> np.ndarray:
  """A copy of x whose memory XLA:CPU uses as it is, without copying it."""
  buffer = np.empty(x.nbytes + boundary, np.uint8)
  start = -buffer.ctypes.data % boundary
  copy = buffer[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
  copy[...] = x
  return copy


def put_replicated(tree: Any, mesh: Mesh) -> Any:
  """The tree with every leaf replicated over the mesh.

  Args:
    tree: numpy or JAX arrays, equal on all processes.
  """
  sharding = replicated_sharding(mesh)
  if jax.process_count() == 1:
    return jax.device_put(tree, sharding)
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(
      np.shape(x), sharding, lambda index: np.asarray(x)[index]
    ),
    tree,
  )
