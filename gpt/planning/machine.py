"""How fast this machine multiplies matrices, measured in about a second.

A measurement that agrees with the last one gives way to it, so that equal
budgets get equal plans: $RGPT_CACHE/machine.json.

The products are those of a training step: forward and backward pass of an MLP,
on every device at once, through the model's own `matmul`.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gpt import devices, processor
from gpt.data.sources import cache_home
from gpt.errors import UserError
from gpt.fields import read_fields
from gpt.files import write_atomic
from gpt.model import GPTConfig
from gpt.model.transformer import matmul

# Widths whose products are measured, and rows of a device, by its kind.
CPU_WIDTHS, CPU_ROWS = (96, 256), 512
ACCELERATOR_WIDTHS, ACCELERATOR_ROWS = (384, 1536), 8192
# Rounds of a measurement, of which the fastest counts, and seconds of a round.
ROUNDS, ROUND_S = 5, 0.015
# The last measurement, and how far from it another one is the same.
FILE, SAME = 'machine.json', 0.12
MEMINFO = '/proc/meminfo'
Rates = dict[str, dict[int, float]]
CGROUP = '/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory.current'


@dataclasses.dataclass(frozen=True)
class Machine:
  """What a plan has to know of the devices.

  Attributes:
    platform: 'cpu', 'gpu', ...
    name: of the device.
    devices: that share a batch; on a CPU, one per core.
    memory: bytes that may be used, of all devices together.
    rates: {dtype of config.model: {width: FLOP/s of all devices together}}.
  """

  platform: str
  name: str
  devices: int
  memory: float
  rates: Rates

  def rate(self, dtype: str, width: int) -> float:
    """FLOP/s of products of a width, interpolated in its logarithm."""
    known = self.rates[dtype]
    widths = sorted(known)
    return float(
      np.interp(
        math.log(width),
        [math.log(w) for w in widths],
        [known[w] for w in widths],
      )
    )


def measure(num_cpu_devices: int = 0) -> Machine:
  """The machine this process runs on.

  Args:
    num_cpu_devices: of config.parallel.
  """
  devices.setup_devices(num_cpu_devices)
  mesh = devices.create_mesh(jax.local_device_count())
  device = mesh.devices.flat[0]
  on_cpu = device.platform == 'cpu'
  widths = CPU_WIDTHS if on_cpu else ACCELERATOR_WIDTHS
  rows = CPU_ROWS if on_cpu else ACCELERATOR_ROWS
  dtypes = ['float32']
  if on_cpu:
    # Without such instructions they are slower, and noise must not say else.
    dtypes += ['mixed'] * processor.multiplies_bfloat16()
  elif devices.backend_name() != 'metal':
    dtypes.append('bfloat16')
  rates = {
    dtype: {w: product_rate(mesh, dtype, w, rows) for w in widths}
    for dtype in dtypes
  }
  memory = memory_of_cpu() if on_cpu else memory_of(jax.local_devices())
  kind = device.platform, device.device_kind, mesh.size
  if os.environ.get('RGPT_CACHE') != 'off':
    rates = remembered(cache_home() / FILE, kind, rates)
  return Machine(*kind, memory, rates)


def remembered(path: pathlib.Path, kind: tuple, rates: Rates) -> Rates:
  """The rates in a file if these, of the same kind, are about the same.

  Otherwise the file gets them; one that cannot be written is no harm.
  """
  tree = {
    'kind': list(kind),
    'rates': [[d, w, x] for d, of in rates.items() for w, x in of.items()],
  }
  try:
    fields = read_fields(path, max_bytes=1 << 16)
    before = fields.items('rates', of=list, most=64)
    same = fields.items('kind') == tree['kind'] and all(
      a[:2] == b[:2] and abs(a[2] / b[2] - 1) < SAME
      for a, b in zip(before, tree['rates'], strict=True)
    )
    if same:
      return {
        dtype: {w: float(x) for d, w, x in before if d == dtype}
        for dtype in rates
      }
  except (UserError, ValueError, TypeError, IndexError):
    pass
  with contextlib.suppress(OSError):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(tree).encode())
  return rates


def product_rate(mesh: Mesh, dtype: str, width: int, rows: int) -> float:
  """FLOP/s, over all devices, of an MLP D -> 4 D -> D and its gradients."""
  cfg = GPTConfig(vocab_size=2, n_embd=width, n_head=1, dtype=dtype)
  hidden = 4 * width

  def loss(w: tuple[jax.Array, jax.Array], x: jax.Array) -> jax.Array:
    h = jax.nn.relu(matmul(x.astype(cfg.activation_dtype), w[0], cfg))
    return jnp.sum(matmul(h, w[1], cfg).astype(jnp.float32))

  def step(w: tuple[jax.Array, jax.Array], x: jax.Array) -> Any:
    return jax.grad(loss, (0, 1))(w, x)

  one, all_ = devices.SHARDED, devices.REPLICATED
  # The sums of one device are not added to those of another.
  mapped = devices.map_over_data(
    lambda w, x: jax.tree.map(lambda g: g[None], step(w, x)),
    mesh,
    in_specs=(all_, one),
    out_specs=one,
  )
  x = np.ones((mesh.size, rows, width), np.float32)
  w = np.ones((width, hidden), np.float32), np.ones((hidden, width), np.float32)
  x = jax.device_put(x, devices.batch_sharding(mesh))
  w = jax.device_put(w, devices.replicated_sharding(mesh))
  run = functools.partial(jax.jit(mapped), w, x)
  jax.block_until_ready(run())
  seconds = _fastest(run)
  return mesh.size * 3 * 2 * 2 * rows * width * hidden / seconds


def _fastest(run: Any) -> float:
  """Seconds of a call in the fastest of several rounds."""
  began = time.perf_counter()
  jax.block_until_ready(run())
  calls = max(1, round(ROUND_S / (time.perf_counter() - began)))
  found = math.inf
  for _ in range(ROUNDS):
    began = time.perf_counter()
    for _ in range(calls):
      out = run()
    jax.block_until_ready(out)
    found = min(found, (time.perf_counter() - began) / calls)
  return found


def memory_of(accelerators: list[Any]) -> float:
  """Bytes that JAX may use on these devices; inf if they do not say."""
  stats = [x.memory_stats() or {} for x in accelerators]
  return sum(x.get('bytes_limit', math.inf) for x in stats)


def memory_of_cpu() -> float:
  """Bytes that are free now, within the limit of this process's container."""
  free = _meminfo()
  try:
    limit, used = (int(open(path).read()) for path in CGROUP)
    return min(free, limit - used)
  except (OSError, ValueError):  # No container, or one without a limit.
    return free


def _meminfo() -> float:
  try:
    with open(MEMINFO, encoding='ascii') as f:
      for line in f:
        if line.startswith('MemAvailable:'):
          return 1024.0 * int(line.split()[1])
  except OSError:
    pass
  try:  # macOS; half may be in use.
    return 0.5 * os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  except (ValueError, OSError):
    return math.inf
