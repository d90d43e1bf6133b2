"""All parts of launch.bench.gpu, one after the other."""

import json
import pathlib
import sys
import time
from collections.abc import Collection
from typing import Any

from gpt import files
from gpt.errors import UserError
from launch.bench import machine
from launch.bench.device import parts


def run_parts(
  seconds: float, path: pathlib.Path, only: Collection[str], toy: bool
) -> None:
  """Runs the parts, writes their report after each and prints it at the end.

  Args:
    seconds: for all of them together; parts without time left are skipped.
    path: JSON file of the report.
    only: names of parts; empty: all.
    toy: toy sizes, also without being asked where there is no accelerator.

  Raises:
    UserError: there is no such part.
  """
  if unknown := set(only) - {part.name for part in parts.PARTS}:
    raise UserError(
      f'--only={",".join(sorted(unknown))}: the parts are '
      f'{", ".join(part.name for part in parts.PARTS)}'
    )
  began = time.perf_counter()
  device = parts.find_device()
  toy = toy or device.get('platform') in (None, 'cpu')
  report: dict[str, Any] = {
    'device': device,
    'toy': toy,
    'machine': machine.facts(),
    'commit': machine.commit(),
    'parts': {},
  }
  for part in parts.PARTS:
    if only and part.name not in only:
      continue
    left = seconds - (time.perf_counter() - began)
    limit = parts.limit(part, left, toy)
    print(f'{part.name} ...', file=sys.stderr, flush=True)
    result = {'skipped': f'{left:.0f} s were left of {seconds:.0f} s'}
    if limit:
      result = parts.measure(part, toy, limit)
    report['parts'][part.name] = result
    print(parts.outcome(result), file=sys.stderr, flush=True)
    report['seconds'] = time.perf_counter() - began
    files.write_atomic(path, json.dumps(report, indent=1).encode())
  print(json.dumps(report))
