"""Plan GPTs of 124M to 1B on 1 to 256 devices.

    python -m launch.bench.cluster --kind=h100
    python -m launch.bench.cluster --devices=64 --models=1B

The table of docs/scaling.md. Every cell is launch.plan's: the real step,
compiled for devices that are not there. Of the meshes below the fastest one
that fits is shown. Models of 2 and 4 layers are compiled, and extended to all
layers (gpt/planning/layers.py). One process per number of devices; about a
minute each on two cores. The last line is JSON.
"""

import json
import math
import subprocess
import sys
from typing import Any

from absl import flags

from gpt.errors import UserError
from gpt.planning import cluster_text, kinds
from launch import cli
from launch.bench import harness

KIND = flags.DEFINE_string('kind', 'h100', 'See launch.plan.')
DEVICES = flags.DEFINE_list('devices', ['1', '8', '64', '256'], 'Numbers.')
MODELS = flags.DEFINE_list('models', ['124M', '350M', '1B'], 'Rows.')
OPTIMIZER = flags.DEFINE_enum('optimizer', 'adamw', ['adamw', 'muon'], 'Its.')
WHOLE = flags.DEFINE_bool('whole', False, 'Compile all layers; slow.')
FEW = 2, 4  # Layers that are compiled.
# The recipe gpt2_124m in three sizes: (n_layer, n_embd, n_head, most sequences
# at once).
SHAPES = {
  '124M': (12, 768, 12, 32),
  '350M': (24, 1024, 16, 16),
  '1B': (18, 2048, 16, 8),
}
BATCH = 512  # Sequences of 1,024 tokens in a step.
NODE = 8  # Devices with fast links.


def meshes(number: int) -> list[int]:
  """Values of parallel.fsdp to compare; the rest splits the batch."""
  return sorted({1, min(number, NODE)})


def plan(name: str, fsdp: int, number: int) -> Any:
  """The Plan of a model on `number` devices."""
  from configs import gpt2_124m
  from gpt.planning import cluster, layers

  config = gpt2_124m.get_config()
  n_layer, width, heads, at_once = SHAPES[name]
  config.model.n_embd, config.model.n_head = width, heads
  config.opt.name, config.batch_size = OPTIMIZER.value, BATCH
  config.parallel.fsdp = fsdp
  config.parallel.micro_batch_size = min(at_once, BATCH // number)
  vocab_size, kind = config.data.vocab_size, kinds.find(KIND.value)

  def make(depth: int) -> Any:
    config.model.n_layer = depth
    return cluster.make(config, vocab_size, kind)

  if WHOLE.value:
    return make(n_layer)
  fewer, more = map(make, FEW)
  return layers.extended(fewer, more, (*FEW, n_layer))


def best(plans: list[Any]) -> Any:
  """The fastest that fits, by the middle of its bounds."""
  return min(plans, key=lambda p: (not p.fits, sum(p.step_s)))


def of_number(number: int) -> list[dict[str, Any]]:
  """The rows of one number of devices, in this process."""
  import jax

  from gpt import devices

  jax.config.update('jax_platforms', 'cpu')
  devices.setup_devices(number)
  rows = []
  for name in MODELS.value:
    print(f'{name} on {number} ...', file=sys.stderr, flush=True)
    found = best([plan(name, fsdp, number) for fsdp in meshes(number)])
    rows.append({'model': name, **cluster_text.as_dict(found)})
  return rows


def line(row: dict[str, Any]) -> str:
  """A row of the table in Markdown."""
  mesh = row['mesh']
  low, high = row['step_s']
  mfu = row['mfu']
  parts = ('params', 'optimizer', 'gradient', 'activation')
  memory = [row[f'{part}_bytes'] / 1e9 for part in parts]
  sent = {k: size for k, (_, size) in row['collectives'].items()}
  calls = sum(times for times, _ in row['collectives'].values())
  cells = [
    row['model'],
    math.prod(mesh.values()),
    f'{mesh["data"]} x {mesh["fsdp"]} x {mesh["tensor"]}',
    f'{row["rows"]}, {row["micro"]}',
    ' + '.join(f'{x:.1f}' for x in memory),
    f'{row["total_bytes"] / 1e9:.0f}' + ('' if row['fits'] else ' (too much)'),
    f'{row["flops"]:.2g}',
    f'{calls}: ' + ', '.join(f'{k} {v / 1e9:.2f}' for k, v in sent.items())
    if sent
    else 'none',
    f'{1e3 * low:,.0f} to {1e3 * high:,.0f}',
    f'{mfu[1]:.0%} to {mfu[0]:.0%}',
  ]
  return f'| {" | ".join(map(str, cells))} |'


HEADER = (
  '| model | devices | data x fsdp x tensor | sequences a device, at once '
  '| parameters + optimizer + gradients + activations, GB | all, GB '
  '| FLOPs | collectives: GB sent by a device | step, ms | MFU |\n'
  f'|{"---|" * 10}'
)


def main(_: list[str]) -> None:
  numbers = harness.positive('devices', DEVICES.value)
  if unknown := set(MODELS.value) - set(SHAPES):
    raise UserError(
      f'--models={",".join(sorted(unknown))}: allowed: {", ".join(SHAPES)}'
    )
  kinds.find(KIND.value)
  if len(numbers) == 1:
    rows = of_number(numbers[0])
  else:
    rows = []
    for number in numbers:
      command = [sys.executable, '-m', 'launch.bench.cluster', *sys.argv[1:]]
      done = subprocess.run(
        [*command, f'--devices={number}'], stdout=subprocess.PIPE, text=True
      )
      if done.returncode:
        raise UserError(f'the plan for {number} devices failed')
      rows += json.loads(done.stdout.splitlines()[-1])
    order = {name: i for i, name in enumerate(SHAPES)}
    rows.sort(key=lambda row: order[row['model']])
  print(HEADER)
  print('\n'.join(map(line, rows)))
  print(json.dumps(rows))


if __name__ == '__main__':
  cli.run(main)
