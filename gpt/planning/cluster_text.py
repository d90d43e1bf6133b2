"""A plan of cluster.py as text, and as JSON."""

import dataclasses
import math
from typing import Any

from gpt.planning.cluster import PRODUCTS, Plan


def lines(plan: Plan) -> list[str]:
  """The plan for a terminal."""
  kind, number = plan.kind, math.prod(plan.mesh.values())
  mesh = ' x '.join(f'{name} {size}' for name, size in plan.mesh.items())
  low, high = plan.step_s
  best, worst = plan.mfu
  speed = plan.tokens / high, plan.tokens / low
  out = [
    f'{plan.params:,} parameters on {number} x {kind.name}, {mesh}',
    f'{plan.tokens:,} tokens a step; a device has {plan.rows} sequences, '
    f'{plan.micro} at once',
    '',
    'memory of a device, GB',
    *(
      f'  {name:34s}{size / 1e9:10.2f}'
      for name, size in (
        ('parameters', plan.params_bytes),
        ('optimizer', plan.optimizer_bytes),
        ('gradients', plan.gradient_bytes),
        ('activations', plan.activation_bytes),
        (f'all, of {kind.memory / 1e9:.0f}', plan.total_bytes),
      )
    ),
    f'  (temporaries of XLA:CPU           {plan.cpu_bytes / 1e9:10.2f})',
    '',
    f'FLOPs of a step                     {plan.flops:10.3g}',
    f'  of the model (6 N + 6 n_layer D T)  {plan.model_flops:8.3g}',
    '',
    'communication of a step           calls   GB sent by a device',
    *(
      f'  {name:26s}{times:10d}{size / 1e9:12.3f}'
      for name, (times, size) in sorted(plan.collectives.items())
    ),
    *([] if plan.collectives else ['  none']),
    '',
    f'time of a step, ms, if products reach {PRODUCTS:.0%} of the peak',
    f'  products                          {1e3 * plan.compute_s:10.1f}',
    f'  what memory limits                {1e3 * plan.memory_s:10.1f}',
    f'  update                            {1e3 * plan.update_s:10.1f}',
    f'  communication                     {1e3 * plan.communication_s:10.1f}',
    f'  step: {1e3 * low:.1f} to {1e3 * high:.1f} (communication hidden, or '
    'not)',
    f'  {speed[0]:,.0f} to {speed[1]:,.0f} tokens/s, MFU {worst:.0%} to '
    f'{best:.0%}',
  ]
  return [*out, *advice(plan)]


def advice(plan: Plan) -> list[str]:
  """What to change, if the step does not fit or mostly communicates."""
  if plan.fits:
    if plan.communication_s > plan.busy_s:
      return [
        '',
        'The links are the limit: more sequences a device, or fsdp and tensor '
        f'within a node ({plan.kind.per_node})',
      ]
    return []
  fixed = plan.params_bytes + plan.optimizer_bytes + plan.gradient_bytes
  room = 0.92 * plan.kind.memory - fixed
  each = plan.activation_bytes / plan.micro
  out = ['', f'It does not fit into {plan.kind.memory / 1e9:.0f} GB.']
  if room <= each:
    out.append(
      '  shard the state: --config.parallel.fsdp=N, or recompute blocks: '
      '--config.model.remat'
    )
  else:
    out.append(
      f'  fewer sequences at once: --config.parallel.micro_batch_size='
      f'{max(1, int(room / each))}'
    )
  return out


def as_dict(plan: Plan) -> dict[str, Any]:
  """For JSON: all fields, and what follows from them."""
  return {
    **dataclasses.asdict(plan),
    'kind': plan.kind.name,
    'total_bytes': plan.total_bytes,
    'fits': plan.fits,
    'step_s': plan.step_s,
    'mfu': plan.mfu,
  }
