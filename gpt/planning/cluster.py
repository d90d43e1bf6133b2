"""What a training step needs on a mesh of devices that are not there.

The real step is compiled for as many fake CPU devices. Its program has the
shapes, the shardings and the communication of the real one; how XLA fuses and
lays out memory differs between backends.

Times are estimates from peak rates (kinds.py) and one measured step.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gpt import devices, sharding
from gpt.errors import UserError
from gpt.model import GPT, GPTConfig, abstract_params, num_params
from gpt.native import training
from gpt.planning import collectives
from gpt.planning.kinds import Kind
from gpt.training import optimizer, schedules
from gpt.training.rows import micro_batch_size
from gpt.training.state import abstract_state
from gpt.training.step import batch_nats, jit_train_step

# Two numbers of a step of 124M parameters on one H200 in bfloat16 (30.8 ms for
# 16 sequences, docs/performance.md): the share of the peak that its products
# reach, and how often every byte that the backward pass needs of the forward
# pass crosses the memory in all that is no product. Large training runs report
# 40 to 60 % of the peak for the whole step (Chowdhery et al. 2022, PaLM, table
# 3).
PRODUCTS = 0.7
CROSSINGS = 3.4
# Memory traffic of an update, bytes per parameter: AdamW reads gradient,
# parameter and two moments, and writes the last three.
UPDATE_BYTES = 28
# The machine code is never run: XLA need not make it fast.
QUICK = {
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': True,
}


@dataclasses.dataclass(frozen=True)
class Plan:
  """A step on a mesh; bytes are of one device.

  Attributes:
    kind, mesh: the devices, and {axis: size}.
    params: number of parameters. tokens: of a step.
    rows, micro: sequences of a device in a step, and at once.
    params_bytes, optimizer_bytes: of the state.
    gradient_bytes: of a copy of the gradients.
    activation_bytes: what the backward pass needs of the forward pass, and the
      gradient of the logits; not divided by `tensor`.
    cpu_bytes: all temporaries of the program that XLA makes for a CPU, which
      computes in float32 where a GPU has bfloat16.
    flops: of all matrix products of a step, on all devices together.
    model_flops: 6 N + 6 n_layer D T per token.
    collectives: {kind: (how many, bytes that a device sends)}.
    compute_s, memory_s, update_s, communication_s: of the products, of all
      that is bound by memory, of the update, and of the collectives.
  """

  kind: Kind
  mesh: dict[str, int]
  params: int
  tokens: int
  rows: int
  micro: int
  params_bytes: float
  optimizer_bytes: float
  gradient_bytes: float
  activation_bytes: float
  cpu_bytes: float
  flops: float
  model_flops: float
  collectives: dict[str, tuple[int, float]]
  compute_s: float
  memory_s: float
  update_s: float
  communication_s: float

  @property
  def total_bytes(self) -> float:
    """Memory of a device at the peak of a step."""
    return (
      self.params_bytes
      + self.optimizer_bytes
      + self.gradient_bytes
      + self.activation_bytes
    )

  @property
  def fits(self) -> bool:
    """Whether it fits, with 8 % left to the driver and to fragmentation."""
    return self.total_bytes <= 0.92 * self.kind.memory

  @property
  def busy_s(self) -> float:
    """Time of all but communication."""
    return self.compute_s + self.memory_s + self.update_s

  @property
  def step_s(self) -> tuple[float, float]:
    """(communication hidden behind computation, not at all)."""
    sent = self.communication_s
    return max(self.busy_s, sent), self.busy_s + sent

  @property
  def mfu(self) -> tuple[float, float]:
    """Model FLOP utilization at the two ends of `step_s`."""
    peak = self.kind.flops * math.prod(self.mesh.values())
    best, worst = (self.model_flops / (s * peak) for s in self.step_s)
    return best, worst


@training.reference()
def make(config: Any, vocab_size: int, kind: Kind) -> Plan:
  """Compiles the step of a config for all of JAX's (fake) devices.

  Raises:
    UserError: a mesh that does not fit the devices, the batch or the model;
      adapters.
  """
  config = config.copy_and_resolve_references().unlock()
  number = jax.device_count()
  mesh = devices.create_mesh(config.batch_size, parallel=config.parallel)
  if mesh.size < number:
    raise UserError(
      f'batch_size {config.batch_size} keeps {mesh.size} of {number} devices '
      f'busy: set --config.batch_size to a multiple of {number}, or shard '
      'with --config.parallel.fsdp'
    )
  rows = -(-config.batch_size // devices.batch_shards(mesh))
  # What it means on a GPU or TPU: all at once.
  config.parallel.micro_batch_size = config.parallel.micro_batch_size or rows
  cfg = GPTConfig.from_config(config.model, vocab_size, kind.backend)
  if config.opt.lora_rank:
    raise UserError(
      f'opt.lora_rank {config.opt.lora_rank}: a step of adapters is not '
      'planned: leave it out for one that trains all parameters'
    )
  # The same function, and like cuDNN's kernel it keeps no [L, L] array.
  cfg = dataclasses.replace(cfg, attention='blocked')
  sharding.check_model(cfg, mesh)
  micro = micro_batch_size(config, mesh)
  model = GPT(cfg)
  tx = optimizer.create(config, mesh)
  step = jit_train_step(
    model,
    tx,
    schedules.from_config(config),
    mesh,
    micro_batch_size=micro,
    ema_decay=config.opt.ema_decay,
  )
  state = abstract_state(model, tx, ema=config.opt.ema_decay > 0)
  B = devices.padded_batch_size(config.batch_size, mesh, micro)
  batch = _batch(B, cfg.block_size, config.data.packing)
  args = state, batch, jax.eval_shape(jax.random.key, 0), {}
  traced = step.trace(*args)
  compiled = traced.lower().compile(QUICK)
  memory = compiled.memory_analysis()
  own = functools.partial(_device_bytes, mesh)
  params = num_params(cfg)
  tokens = config.batch_size * cfg.block_size
  sent = collectives.read(compiled.as_text() or '', mesh.size)
  flops = _flops(traced.jaxpr, mesh.size)
  seconds = sum(c.sent / _rate(c.group, kind) for c in sent)
  shown: dict[str, tuple[int, float]] = {}
  for c in sent:
    times, size = shown.get(c.kind, (0, 0.0))
    shown[c.kind] = times + c.times, size + c.sent
  gradients = own(state.params)
  row_bytes = _row_bytes(model, config.data.packing)
  # Recomputed or not, all activations cross the memory.
  full = GPT(dataclasses.replace(cfg, remat=False))
  crossing = CROSSINGS * rows * _row_bytes(full, config.data.packing)
  return Plan(
    kind=kind,
    mesh=dict(mesh.shape),
    params=params,
    tokens=tokens,
    rows=rows,
    micro=micro,
    params_bytes=own(state.params),
    optimizer_bytes=own(state) - own(state.params),
    gradient_bytes=gradients,
    activation_bytes=micro * row_bytes,
    cpu_bytes=memory.temp_size_in_bytes,
    flops=flops,
    model_flops=tokens * flops_per_token(cfg, params),
    collectives=shown,
    compute_s=flops / mesh.size / (PRODUCTS * _peak(kind, cfg)),
    memory_s=crossing / kind.bandwidth,
    update_s=UPDATE_BYTES * own(state.params) / 4 / kind.bandwidth,
    communication_s=seconds,
  )


def _peak(kind: Kind, cfg: GPTConfig) -> float:
  """FLOP/s of products. GPUs make float32 ones in TF32, at half the rate."""
  tf32 = kind.backend == 'cuda' and cfg.matmul_dtype == 'float32'
  return kind.flops / (2 if tf32 else 1)


def flops_per_token(cfg: GPTConfig, params: int) -> float:
  """Floating-point operations of forward and backward pass per token.

    6 N + 6 n_layer D T, the second term for causal attention

  N excludes embeddings that are only looked up (Kaplan et al. 2020).
  """
  looked_up = cfg.block_size if cfg.pos == 'learned' else 0
  looked_up += 0 if cfg.tied_embeddings else cfg.vocab_size
  N = params - looked_up * cfg.n_embd
  return 6 * N + 6 * cfg.n_layer * cfg.n_embd * cfg.block_size


def _batch(B: int, T: int, packed: bool) -> dict[str, Any]:
  """A batch of training as ShapeDtypeStructs."""
  shapes = {
    'tokens': ((B, T + 1), jnp.int32),
    'weights': ((B, T), jnp.float32),
    'rows': ((B,), jnp.int32),
  }
  if packed:
    shapes['segments'] = ((B, T + 1), jnp.int32)
    shapes['positions'] = ((B, T), jnp.int32)
  return {k: jax.ShapeDtypeStruct(*shape) for k, shape in shapes.items()}


def _row_bytes(model: GPT, packed: bool) -> float:
  """Bytes that a sequence adds to what the backward pass needs."""
  cfg = model.cfg

  def kept(rows: int) -> int:
    def residuals(params: Any, batch: Any) -> Any:
      return jax.vjp(lambda p: batch_nats(model, p, batch), params)[1]

    batch = _batch(rows, cfg.block_size, packed)
    tree = jax.eval_shape(residuals, abstract_params(cfg), batch)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

  return kept(3) - kept(2) + 4 * cfg.block_size * cfg.vocab_size


def _device_bytes(mesh: Mesh, tree: Any) -> int:
  """Bytes that one device holds of a tree of abstract arrays."""
  places = sharding.shardings(mesh, tree)
  return sum(
    int(np.prod(place.shard_shape(x.shape))) * x.dtype.itemsize
    for x, place in zip(jax.tree.leaves(tree), jax.tree.leaves(places))
  )


def _rate(group: tuple[int, ...], kind: Kind) -> float:
  """Bytes/s that a device sends to the next in a ring through the group.

  Between nodes, the devices of a node that belong to the group share the
  traffic, each over its part of the network.
  """
  nodes = {i // kind.per_node for i in group}
  if len(nodes) == 1:
    return kind.link
  return min(kind.link, kind.network * len(group) / len(nodes))


def _flops(jaxpr: Any, size: int) -> float:
  """FLOPs of the matrix products of a program, on all devices together.

  Args:
    size: devices of the mesh; each runs the body of a shard_map.
  """
  total = 0.0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      (contracted, _), _ = eqn.params['dimension_numbers']
      shape = eqn.invars[0].aval.shape
      inner = math.prod(shape[i] for i in contracted)
      total += 2 * inner * math.prod(eqn.outvars[0].aval.shape)
      continue
    times = eqn.params['length'] if eqn.primitive.name == 'scan' else 1
    times *= size if eqn.primitive.name == 'shard_map' else 1
    for value in eqn.params.values():
      for inner in value if isinstance(value, tuple | list) else [value]:
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          total += times * _flops(inner, size)
  return total
