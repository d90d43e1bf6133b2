"""Profile a training step by kind of operation.

    python -m launch.bench.profile --preset=l --batch_size=16

Traces a few steps with JAX's profiler and sums the operations of all devices,
on a GPU its kernels: milliseconds per step and the share of each kind.
"""

import collections
import glob
import gzip
import json
import re
import tempfile
from typing import Any

import jax
from absl import flags

from launch import cli
from launch.bench import machine, train

flags.adopt_module_key_flags(train)
STEPS = 3
# The first match wins. XLA names a fusion after its operations; a GPU's kernels
# of products and attention have the names that cuBLAS and cuDNN gave them.
KINDS = (
  ('all-reduce of gradients', r'all-reduce|psum|nccl'),
  ('attention (cuDNN)', r'sdpa|cudnn::'),
  ('attention, gradients of matrices, Muon (ours)', r'^ffi_call'),
  (
    'matrix products',
    r'^dot|ynn|convolution|gemm|custom-call|nvjet|cublas|cutlass',
  ),
  ('layout copies', r'^(copy|transpose|wrapped_transpose|bitcast|Mem)'),
  ('exp, softmax', r'exponential|logistic|log'),
  ('scatter, gather', r'scatter|gather|dynamic'),
  ('reductions', r'reduce'),
  ('element-wise', r''),
)
# Events that are not operations: waiting, dispatch, Python frames.
NOT_OPERATIONS = re.compile(r'[:$ (\[]|^while|^call|^end|Rendezvous|Pjit|shard')


def operations(trace_dir: str) -> dict[str, tuple[float, int]]:
  """{operation without its number: (milliseconds, count)} of a trace."""
  (path,) = glob.glob(f'{trace_dir}/plugins/profile/*/*.trace.json.gz')
  with gzip.open(path) as file:
    events = json.load(file)['traceEvents']
  gpus = {
    event['pid']
    for event in events
    if event.get('name') == 'process_name' and 'GPU' in event['args']['name']
  }
  total, count = collections.Counter(), collections.Counter()
  for event in events:
    if event.get('ph') != 'X' or not _is_operation(event, gpus):
      continue
    name = re.sub(r'[.\d]+$', '', event['name'])
    total[name] += event['dur'] / 1e3
    count[name] += 1
  return {name: (ms, count[name]) for name, ms in total.items()}


def _is_operation(event: dict[str, Any], gpus: set[int]) -> bool:
  """Whether an event is work of a device: of the GPUs, if there are some."""
  if gpus:
    return event['pid'] in gpus
  if NOT_OPERATIONS.search(event.get('name', '')):
    return False
  return 'hlo_op' in event.get('args', {})


def kind_of(name: str) -> str:
  """The kind of an operation."""
  return next(kind for kind, pattern in KINDS if re.search(pattern, name))


def main(_):
  config = train.get_config()
  run, facts = train.build_ours(config, steps=STEPS)
  run()
  with tempfile.TemporaryDirectory() as trace_dir:
    with jax.profiler.trace(trace_dir):
      run()
    found = operations(trace_dir)
  kinds = collections.Counter()
  for name, (ms, _) in found.items():
    kinds[kind_of(name)] += ms / STEPS
  whole = sum(kinds.values())
  print(
    f'one step of {train.PRESET.value}, batch {config.batch_size}, on '
    f'{facts["devices"]} x {facts["device"]}: {whole:.0f} ms of operations '
    'on all devices'
  )
  print(machine.line())
  for kind, ms in kinds.most_common():
    print(f'{kind:42s}{ms:10.1f} ms{100 * ms / whole:8.1f} %')
  print('\nlongest operations')
  for name, (ms, n) in sorted(found.items(), key=lambda x: -x[1][0])[:12]:
    print(f'{name:40.40s}{ms / STEPS:10.1f} ms{n / STEPS:8.0f} x')
  line = {'machine': machine.facts(), **facts, 'step_ms': whole}
  longest = sorted(found.items(), key=lambda x: -x[1][0])[:30]
  line['kinds_ms'] = dict(kinds)
  line['longest_ms'] = {name: ms / STEPS for name, (ms, _) in longest}
  print(json.dumps(line))


if __name__ == '__main__':
  cli.run(main)
