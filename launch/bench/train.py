"""Measure training throughput beside PyTorch's.

    python -m launch.bench.train --preset=l --batch_size=16
    python -m launch.bench.train --preset=nanogpt_cpu --batch_size=12 \\
      --dropout=0

Both train the same architecture with AdamW, element-wise clipping and dropout
on random batches, in whole optimizer steps. The time includes drawing batches,
not compilation (that is ready_s).
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from gpt import devices
from gpt.errors import UserError
from gpt.planning import kinds
from launch import cli
from launch.bench import harness, shapes

Contestant = tuple[Callable[[], int], dict[str, Any]]

MIXED, AUTOCAST = 'ours mixed', 'torch compile bf16'
MUON = 'ours muon'

PRESET = flags.DEFINE_string('preset', 'l', 'A size preset or a shape.')
BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', 16, 'Sequences per step.', lower_bound=1
)
VOCAB_SIZE = flags.DEFINE_integer(
  'vocab_size', 67, 'Vocabulary.', lower_bound=3
)
DROPOUT = flags.DEFINE_float('dropout', 0.1, 'Drop probability.')
DTYPE = flags.DEFINE_enum(
  'dtype', 'auto', ['auto', 'float32', 'bfloat16', 'mixed'], 'Matmul dtype.'
)
STEPS = flags.DEFINE_integer(
  'steps', 0, 'Steps per round; 0: about a second.', lower_bound=0
)
ROUNDS = flags.DEFINE_integer(
  'rounds', 5, 'Rounds per contestant.', lower_bound=1
)
PEER = flags.DEFINE_enum(
  'peer', 'torch', ['torch', 'none'], 'What to compare with.'
)
CONTESTANTS = flags.DEFINE_list(
  'contestants',
  [],
  'Instead of all: ours, ours mixed, ours muon, torch eager, torch compile, '
  'torch compile bf16.',
)
MICRO = flags.DEFINE_integer(
  'micro_batch_size', 0, 'parallel.micro_batch_size of rgpt.'
)
TOGETHER = flags.DEFINE_bool(
  'together', False, 'Compile all contestants at once: for idle cores.'
)
REMAT = flags.DEFINE_bool('remat', False, 'model.remat of rgpt.')
WORKER = harness.define_worker_flag()


def get_config() -> ConfigDict:
  """The configuration under test, from the flags."""
  config = shapes.get_config(PRESET.value)
  config.batch_size = BATCH_SIZE.value
  config.model.dropout = DROPOUT.value
  config.model.dtype = DTYPE.value
  config.model.remat = REMAT.value
  config.parallel.micro_batch_size = MICRO.value
  return config


def batches(config: ConfigDict) -> Iterator[np.ndarray]:
  """Yields random int32[B, T+1] batches, drawn as in training."""
  T, B = config.model.block_size, config.batch_size
  corpus = np.random.default_rng(0).integers(
    0, VOCAB_SIZE.value, 1_000_000, dtype=np.int32
  )
  step = 0
  while True:
    starts = np.random.default_rng(step).integers(0, len(corpus) - T - 1, B)
    yield np.stack([corpus[s : s + T + 1] for s in starts])
    step += 1


def flops_per_token(config: ConfigDict, num_params: int) -> float:
  """Floating-point operations of forward and backward pass per token.

    6 N + 6 n_layer D T, the second term for causal attention

  N excludes the embeddings, which are looked up (Kaplan et al. 2020).
  """
  m = config.model
  N = num_params - (VOCAB_SIZE.value + m.block_size) * m.n_embd
  return 6 * N + 6 * m.n_layer * m.n_embd * m.block_size


def steps_per_round(seconds: float) -> int:
  """--steps, or about a second's worth of steps of this duration."""
  return STEPS.value or max(2, min(500, round(1.0 / seconds)))


def timed(
  step: Callable[..., Any], config: ConfigDict, steps: int = 0
) -> Callable[[], int]:
  """run() for the harness: one round of steps; returns tokens trained on."""
  step()
  start = time.perf_counter()
  step()
  n = steps or steps_per_round(time.perf_counter() - start)
  tokens = config.batch_size * config.model.block_size

  def run():
    for _ in range(n - 1):
      step(wait=False)
    step()
    return n * tokens

  return run


def build_ours(config: ConfigDict, steps: int = 0) -> Contestant:
  """Our training step as a contestant; `steps` per round (0: see --steps)."""
  import jax

  devices.setup_devices()
  from gpt.model import GPT, GPTConfig, num_params
  from gpt.training import optimizer, schedules
  from gpt.training.rows import micro_batch_size
  from gpt.training.state import create_state
  from gpt.training.step import jit_train_step

  cfg = GPTConfig.from_config(config.model, VOCAB_SIZE.value)
  model = GPT(cfg)
  tx = optimizer.create(config, mixed=cfg.matmul_dtype == 'bfloat16')
  mesh = devices.create_mesh(config.batch_size)
  micro = micro_batch_size(config, mesh)
  rows = devices.padded_batch_size(config.batch_size, mesh, micro)
  state = jax.jit(lambda key: create_state(model, tx, key))(jax.random.key(0))
  state = devices.put_replicated(state, mesh)
  train_step = jit_train_step(
    model, tx, schedules.from_config(config), mesh, micro_batch_size=micro
  )
  source, key = batches(config), jax.random.key(1)

  def step(wait=True):
    nonlocal state
    tokens = next(source)
    batch = {
      'tokens': tokens,
      'weights': np.ones(tokens[:, 1:].shape, np.float32),
      'rows': np.arange(len(tokens), dtype=np.int32),
    }
    batch = devices.put_batch(devices.pad_rows(batch, rows), mesh)
    state, metrics = train_step(state, batch, key, {})
    if wait:
      jax.block_until_ready(state)
    return metrics

  facts = {
    'params': num_params(cfg),
    'micro': micro,
    'devices': mesh.size,
    'dtype': cfg.dtype,
    'attention': cfg.attention,
    'device': mesh.devices.flat[0].device_kind,
    'threads': devices.num_cores(),
  }
  return timed(step, config, steps), facts


def build_torch(config: ConfigDict, variant: str) -> Contestant:
  """A variant of PyTorch's training step: eager, compile, compile bf16."""
  import torch

  from gpt.model.config import GPTConfig, resolve_dtype
  from launch.bench.peers.torch_gpt import TorchTrainer

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  backend = device if device == 'cuda' else 'cpu'
  bf16 = 'bf16' in variant or (
    resolve_dtype(config.model.dtype, backend) != 'float32'
  )
  torch.set_num_threads(devices.num_cores())
  torch.set_float32_matmul_precision('high')
  cfg = GPTConfig(
    VOCAB_SIZE.value,
    config.model.n_embd,
    config.model.n_head,
    config.model.n_layer,
    config.model.block_size,
    dropout=config.model.dropout,
  )
  trainer = TorchTrainer(
    cfg, config.lr, compiled='compile' in variant, device=device, bf16=bf16
  )
  source = batches(config)

  def step(wait=True):
    return trainer.step(next(source).astype(np.int64), wait)

  facts = {'device': device, 'bf16': bf16, 'threads': torch.get_num_threads()}
  return timed(step, config), facts


def build(name: str) -> Contestant:
  """(run, facts) of a contestant, see harness.serve."""
  config = get_config()
  if name.startswith('ours'):
    if name == MIXED:
      config.model.dtype = 'mixed'
    if name == MUON:
      config.opt.name = 'muon'
    return build_ours(config)
  return build_torch(config, name)


def check_contestants(names: list[str]) -> None:
  """Raises UserError for a name that is not one of --contestants."""
  allowed = ['ours', MIXED, MUON, 'torch eager', 'torch compile', AUTOCAST]
  if unknown := [name for name in names if name not in allowed]:
    raise UserError(
      f'--contestants={",".join(unknown)}: allowed are {", ".join(allowed)}'
    )
  if names[0] != 'ours':
    raise UserError('--contestants begins with ours, the one to compare with')


def muon_share(rows: list[dict]) -> dict[str, float]:
  """The speed with Muon beside that with AdamW, if both were measured."""
  speed = {row['name']: row['tokens_per_s'] for row in rows}
  if MUON not in speed or 'ours' not in speed:
    return {}
  return {'ours muon / ours': speed[MUON] / speed['ours']}


def main(_):
  if WORKER.value:
    harness.serve(WORKER.value, build)
    return
  config = get_config()
  names = ['ours', MIXED] if DTYPE.value in ('auto', 'float32') else ['ours']
  if PEER.value == 'torch':
    names += ['torch eager', 'torch compile', AUTOCAST]
  if CONTESTANTS.value:
    check_contestants(CONTESTANTS.value)
    names = CONTESTANTS.value
  rows = harness.compare(
    names, 'launch.bench.train', ROUNDS.value, TOGETHER.value
  )
  params = next(row['params'] for row in rows if 'params' in row)
  for row in rows:
    flops = flops_per_token(config, params) * row['tokens_per_s']
    row['gflops'] = flops / 1e9
    if kind := kinds.of_device(rows[0]['device']):
      row['mfu'] = flops / kind.flops
  title = (
    f'training {PRESET.value}: {params:,} parameters, batch '
    f'{BATCH_SIZE.value} x {config.model.block_size}, dropout {DROPOUT.value}'
  )
  # On a CPU, bfloat16 and float32 are different tasks: compare like with like.
  apart = [r for r in rows if r['name'] in (MIXED, AUTOCAST) and 'mfu' not in r]
  harness.report(
    title,
    rows,
    'ours',
    ['gflops', 'mfu', 'device_mb'],
    apart=[*apart, *(row for row in rows if row['name'] == MUON)],
    pair=(MIXED, AUTOCAST),
    ratios=muon_share(rows),
  )


if __name__ == '__main__':
  cli.run(main)
