"""All parts of launch.bench.gpu, one after the other."""

import json
import os
import pathlib
import sys
import time
from typing import Any

from absl import flags

from gpt import files
from gpt.errors import UserError
from launch.bench import machine
from launch.bench.device import parts

SECONDS = flags.DEFINE_float(
  'seconds', 420.0, 'Time for all parts together.', lower_bound=1.0
)
OUTPUT = flags.DEFINE_string(
  'output',
  '',
  'JSON file, written after every part. Default: gpu.json, in $OUT if set.',
)
ONLY = flags.DEFINE_list('only', [], 'Parts to run; default: all.')
TOY = flags.DEFINE_bool(
  'toy', False, 'Toy sizes; the default where JAX finds no accelerator.'
)
flags.DEFINE_string('wheels', '', 'Folder of wheels; see above.')


def main(_: list[str]) -> None:
  unknown = set(ONLY.value) - {part.name for part in parts.PARTS}
  if unknown:
    raise UserError(
      f'--only={",".join(sorted(unknown))}: the parts are '
      f'{", ".join(part.name for part in parts.PARTS)}'
    )
  began = time.perf_counter()
  path = pathlib.Path(
    OUTPUT.value or os.path.join(os.environ.get('OUT', ''), 'gpu.json')
  )
  device = parts.find_device()
  toy = TOY.value or device.get('platform') in (None, 'cpu')
  report: dict[str, Any] = {
    'device': device,
    'toy': toy,
    'machine': machine.facts(),
    'commit': machine.commit(),
    'parts': {},
  }
  for part in parts.PARTS:
    if ONLY.value and part.name not in ONLY.value:
      continue
    left = SECONDS.value - (time.perf_counter() - began)
    seconds = parts.limit(part, left)
    print(f'{part.name} ...', file=sys.stderr, flush=True)
    result = {'skipped': f'{left:.0f} s were left of {SECONDS.value:.0f} s'}
    if seconds:
      result = parts.measure(part, toy, seconds)
    report['parts'][part.name] = result
    print(parts.outcome(result), file=sys.stderr, flush=True)
    report['seconds'] = time.perf_counter() - began
    files.write_atomic(path, json.dumps(report, indent=1).encode())
  print(json.dumps(report))
