"""Cold starts: whole processes with an empty compilation cache, run once."""

import json
import os
import pathlib
import shlex
import subprocess
import tempfile
import time
from collections.abc import Sequence

from gpt.errors import UserError

RESULT = 'result.json'


def finished(workdir: pathlib.Path) -> dict | None:
  """The result of a run that was made before; None if there is no run.

  Raises:
    UserError: it was cut short; resuming it would give a wrong wall time.
  """
  result = workdir / RESULT
  if result.exists():
    return json.loads(result.read_text())
  if workdir.exists():
    raise UserError(
      f'{workdir} holds a run that was cut short: remove it to start over'
    )
  return None


def wall_seconds(args: Sequence[str]) -> float:
  """Prints and runs a command; what it prints is shown only if it fails.

  Raises:
    UserError: it failed.
  """
  print(f'$ {shlex.join(args[1:])}', flush=True)
  with tempfile.TemporaryDirectory() as cache:
    began = time.perf_counter()
    process = subprocess.run(
      args,
      stdout=subprocess.PIPE,
      text=True,
      env={**os.environ, 'JAX_COMPILATION_CACHE_DIR': cache},
    )
    wall = time.perf_counter() - began
  if process.returncode:
    output = process.stdout.strip()
    raise UserError('the run failed (see above)' + (output and f':\n{output}'))
  return wall
