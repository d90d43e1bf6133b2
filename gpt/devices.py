"""Backend, processes, mesh and shardings: data parallelism on one mesh axis.

The mesh has one axis, `data`, over the devices of all processes. Batches are
sharded along it; params and optimizer state are replicated. A CPU is split
into one device per core, because many XLA:CPU operations are single-threaded.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
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

DATA = 'data'
SHARDED = PartitionSpec(DATA)
REPLICATED = PartitionSpec()

# Ampere: the first GPUs with bfloat16 matrix units and cuDNN fused attention.
CUDA_CAPABILITY = 8.0
# `any_process` runs a collective only every so many steps.
POLL_STEPS = 10

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


def initialize_distributed() -> None:
  """Connects the processes of a run; call it before anything else uses JAX.

  JAX finds the coordinator by itself on Slurm, Kubernetes, Open MPI and TPU
  pods. Elsewhere, start each process with JAX_COORDINATOR_ADDRESS=HOST:PORT
  (of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID in its environment.

  Raises:
    UserError: no coordinator was found, or it cannot be reached.
  """
  number = os.environ.get('JAX_NUM_PROCESSES')
  index = os.environ.get('JAX_PROCESS_ID')
  # XLA:CPU needs a collectives library; jax 0.5 does not choose one itself.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  try:
    jax.distributed.initialize(
      num_processes=int(number) if number else None,
      process_id=int(index) if index else None,
    )
  except (ValueError, RuntimeError) as e:
    raise UserError(
      f'parallel.distributed: cannot connect the processes of the run ({e}). '
      'Start each with JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES=N '
      'and JAX_PROCESS_ID=0 .. N-1 in its environment'
    ) from e


@contextlib.contextmanager
def process_zero_first() -> Iterator[None]:
  """Runs the body on process 0, then on all other processes."""
  if jax.process_index() > 0:
    multihost_utils.sync_global_devices('process_zero_first')
  yield
  if jax.process_index() == 0 and jax.process_count() > 1:
    multihost_utils.sync_global_devices('process_zero_first')


def any_process(flag: bool, step: int, now: bool) -> bool:
  """Whether `flag` is set on any process; all processes get the same answer.

  This is a collective, so all processes must call it with the same step and
  `now`. Unless `now`, only every tenth step communicates; the others return
  False.
  """
  if not now and step % POLL_STEPS:
    return False
  return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def process_rows(rows: int) -> slice:
  """This process's share of the rows of a global batch."""
  share = rows // jax.process_count()
  first = share * jax.process_index()
  return slice(first, first + share)


# --- mesh and shardings


def create_mesh(batch_size: int, devices: Sequence[Any] | None = None) -> Mesh:
  """A mesh with the axis `data` over the devices a batch can keep busy.

  A step takes as long as the device with the most rows: with 64 rows, 11
  devices of up to 6 rows are as fast as 12. So a single process uses the
  fewest devices for which that maximum stays the same. Several processes use
  all devices.

  Args:
    batch_size: global batch size in rows.
    devices: jax.Devices; default: all devices of all processes.
  """
  devices = list(jax.devices() if devices is None else devices)
  if jax.process_count() == 1:
    rows = -(-batch_size // len(devices))
    devices = devices[: -(-batch_size // rows)]
  return Mesh(np.array(devices), (DATA,))


def padded_batch_size(batch_size: int, mesh: Mesh, micro: int = 1) -> int:
  """The next multiple of mesh size x micro-batch size; see `pad_rows`."""
  unit = mesh.size * micro
  return -(-batch_size // unit) * unit


def replicated_sharding(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, REPLICATED)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The leading axis is sharded over the mesh."""
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
  """Global arrays, sharded over the mesh, from this process's numpy rows."""
  sharding = batch_sharding(mesh)
  if jax.process_count() == 1:
    return jax.device_put(batch, sharding)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), batch
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
