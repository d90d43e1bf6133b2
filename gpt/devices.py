"""The mesh and what goes where: batches are split, parameters replicated.

One axis, `data`, over every device of every host. On a CPU there is one device
a core, because many XLA:CPU operations run on a single thread.
"""

import contextlib
import functools
import os
import warnings

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt.errors import UserError

try:
  from jax import shard_map
except ImportError:  # jax < 0.6
  from jax.experimental.shard_map import shard_map

# With them came matrix units for bfloat16, and cuDNN's fused attention.
CUDA_CAPABILITY = 8.0
DATA = 'data'
SPLIT = PartitionSpec(DATA)
WHOLE = PartitionSpec()


def backend_name() -> str:
  """'cpu', 'tpu', 'metal', ...; of GPUs 'cuda', 'old cuda' or 'rocm'.

  An 'old cuda' device has a compute capability below 8.0 (T4, V100).
  """
  backend = jax.default_backend().lower()
  if backend not in ('gpu', 'cuda', 'rocm'):
    return backend
  try:
    capability = float(jax.local_devices()[0].compute_capability)
  except (AttributeError, ValueError):  # AMD's are names: 'gfx90a'.
    return 'rocm'
  return 'cuda' if capability >= CUDA_CAPABILITY else 'old cuda'


def num_cores() -> int:
  """Cores this process may use (cgroup and affinity aware where known)."""
  try:
    return len(os.sched_getaffinity(0)) or 1
  except AttributeError:
    return os.cpu_count() or 1


def setup_devices(num_cpu_devices: int = 0) -> None:
  """One CPU device a core, or as many as asked for; call before using JAX.

  Also turns the compilation cache on. Does nothing to accelerators. If JAX has
  already started it is left as it is, with a warning if another number of CPU
  devices was asked for.
  """
  if num_cpu_devices < 0:
    raise UserError(f'parallel.num_cpu_devices {num_cpu_devices} is negative')
  enable_compilation_cache()
  wanted = num_cpu_devices or num_cores()
  try:
    jax.config.update('jax_num_cpu_devices', wanted)
  except (RuntimeError, AttributeError):
    running = jax.local_device_count()
    if jax.default_backend() == 'cpu' and num_cpu_devices not in (0, running):
      warnings.warn(
        f'JAX already runs on {running} CPU devices; {wanted} were asked for',
        stacklevel=2,
      )


def join_hosts() -> None:
  """Joins the processes of a run; call before anything else uses JAX.

  Clusters that JAX knows (Slurm, Kubernetes, Open MPI, TPU pods) need nothing.
  Elsewhere each process is started with JAX_COORDINATOR_ADDRESS=HOST:PORT (of
  the first), JAX_NUM_PROCESSES and JAX_PROCESS_ID in its environment.

  Raises:
    UserError: neither is there.
  """
  number = os.environ.get('JAX_NUM_PROCESSES')
  index = os.environ.get('JAX_PROCESS_ID')
  # Between processes XLA:CPU needs it, and jax 0.5 does not choose it itself.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  try:
    jax.distributed.initialize(
      num_processes=number and int(number), process_id=index and int(index)
    )
  except (ValueError, RuntimeError) as e:
    raise UserError(
      f'parallel.distributed: the processes of the run cannot be joined ({e}). '
      'Start each with JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES=N '
      'and JAX_PROCESS_ID=0 .. N-1 in its environment'
    ) from e


@contextlib.contextmanager
def leader_first():
  """The body runs in the first process of a run, then in the others."""
  wait = functools.partial(multihost_utils.sync_global_devices, 'leader_first')
  if jax.process_index() > 0:
    wait()
  yield
  if jax.process_index() == 0 and jax.process_count() > 1:
    wait()


def any_host(flag: bool, step: int, now: bool) -> bool:
  """Whether `flag` is set in any process; the same answer in all of them.

  Asking costs a round of messages: unless `now`, only every tenth step does.
  """
  if not now and step % 10:
    return False
  return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def create_mesh(batch_size: int, devices=None) -> Mesh:
  """A mesh over the devices that a batch of this size can keep busy.

  With 12 devices and 64 rows, 11 devices take 6 rows each as fast as 12 would:
  the fewest devices with the same number of rows are used. Several hosts
  always use all.
  """
  devices = list(jax.devices() if devices is None else devices)
  if jax.process_count() == 1:
    rows = -(-batch_size // len(devices))
    devices = devices[: -(-batch_size // rows)]
  return Mesh(np.array(devices), (DATA,))


def host_rows(rows: int) -> slice:
  """This host's share of the rows of a global batch."""
  share = rows // jax.process_count()
  first = share * jax.process_index()
  return slice(first, first + share)


def padded_batch_size(batch_size: int, mesh: Mesh, micro: int = 1) -> int:
  """The next multiple of devices x micro-batch; extra rows weigh nothing."""
  unit = mesh.size * micro
  return -(-batch_size // unit) * unit


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, WHOLE)


def split(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, SPLIT)


def map_over_data(fn, mesh: Mesh, in_specs, out_specs):
  """`fn` on every device's rows; inside, `jax.lax.psum(x, DATA)` adds up."""
  kwargs = dict(mesh=mesh, in_specs=in_specs, out_specs=out_specs)
  try:
    return shard_map(fn, check_vma=False, **kwargs)
  except TypeError:  # jax < 0.6
    return shard_map(fn, check_rep=False, **kwargs)


def pad_rows(batch: dict, rows: int) -> dict:
  """Appends rows of weight zero to a numpy batch up to `rows`."""
  missing = rows - len(batch['rows'])
  if missing == 0:
    return batch
  return {
    name: np.concatenate([x, np.zeros((missing, *x.shape[1:]), x.dtype)])
    for name, x in batch.items()
  }


def put_batch(batch: dict, mesh: Mesh):
  """A host's numpy rows -> global arrays split over the mesh."""
  sharding = split(mesh)
  if jax.process_count() == 1:
    return jax.device_put(batch, sharding)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), batch
  )


def put_replicated(tree, mesh: Mesh):
  """Numpy or device arrays -> the same values on every device of the mesh."""
  sharding = replicated(mesh)
  if jax.process_count() == 1:
    return jax.device_put(tree, sharding)
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(
      np.shape(x), sharding, lambda index: np.asarray(x)[index]
    ),
    tree,
  )


def enable_compilation_cache() -> None:
  """Keeps compiled programs between processes: later starts skip XLA.

  In $RGPT_CACHE/xla (default ~/.cache/rgpt/xla). JAX_COMPILATION_CACHE_DIR
  wins, and RGPT_CACHE=off turns it off. METAL ignores it.
  """
  if not hasattr(jax, 'shard_map'):
    # Before jax 0.6 a cached CPU program that was given donated buffers writes
    # into freed memory. Whatever the environment says: off.
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
