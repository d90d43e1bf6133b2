"""Runs the parts of launch.bench.gpu in turn, and keeps the time."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

ERROR_CHARACTERS = 2000
GRACE = 5.0  # Seconds that a part has to end after SIGTERM, and SIGKILL.
LEAST = 1.0  # Seconds below which no part is started.


@dataclasses.dataclass(frozen=True)
class Part:
  """One measurement: a command whose last line of stdout is JSON.

  Attributes:
    name: of the part.
    module: below launch.bench.
    args: its flags; toy: those at toy size.
    seconds: its time limit; less where less is left of the time for all.
    share: of the memory, for each process of JAX: some are side by side.
    xla: flags of XLA.
  """

  name: str
  module: str
  args: str
  toy: str
  seconds: float
  share: float = 0.28
  xla: str = ''


TRAIN = '--rounds=3 --dropout=0 --together --contestants=ours,'
TOY_TRAIN = (
  '--preset=xs --batch_size=2 --rounds=1 --steps=2 --contestants=ours,'
)
PARTS = (
  # Trying out kernels would take most of the time, and decides nothing here.
  Part(
    'checks',
    'device.checks',
    '',
    '--small',
    75,
    xla='--xla_gpu_autotune_level=0',
  ),
  Part(
    'train_124m',
    'train',
    '--preset=gpt2_124m --batch_size=16 --vocab_size=50304 '
    + TRAIN
    + '"ours muon","torch compile"',
    TOY_TRAIN + '"ours muon","torch eager"',
    130,
  ),
  Part(
    'shakespeare_gpu',
    'device.recipe',
    '--recipe=shakespeare_gpu --seconds=60',
    '--recipe=smoke --seconds=20',
    85,
  ),
  Part(
    'train_l',
    'train',
    '--preset=l --batch_size=64 ' + TRAIN + '"torch compile"',
    TOY_TRAIN + '"torch eager"',
    60,
  ),
  Part(
    'decode',
    'decode',
    '--preset=l --batch=1,8,64,256 --peer=torch --rounds=2 --together',
    '--preset=xs --batch=1,2 --peer=torch --rounds=1 --tokens=16',
    60,
    share=0.1,
  ),
  Part(
    'serve',
    'serve',
    '--preset=l --scenario=load --clients=64 --slots=64 --rounds=1 '
    '--seconds=8 --shares=0.8',
    '--preset=xs --scenario=load --clients=2 --slots=2 --rounds=1 --seconds=1 '
    '--shares=0.8 --max_tokens=8',
    110,
  ),
  Part(
    'train_xl',
    'train',
    '--preset=xl --batch_size=128 ' + TRAIN + '"torch compile"',
    TOY_TRAIN + '"torch eager"',
    60,
  ),
  Part(
    'profile',
    'profile',
    '--preset=gpt2_124m --batch_size=16 --vocab_size=50304 --dropout=0',
    '--preset=xs --batch_size=2',
    45,
  ),
)


def find_device() -> dict[str, Any]:
  """What JAX finds, asked in a process of its own: it would keep the memory."""
  script = (
    'import jax, json; d = jax.devices()[0]; print(json.dumps('
    "{'platform': d.platform, 'kind': d.device_kind}))"
  )
  try:
    done = subprocess.run(
      [sys.executable, '-c', script],
      capture_output=True,
      text=True,
      timeout=60,
    )
    found = json.loads(done.stdout.splitlines()[-1])
  except (subprocess.TimeoutExpired, IndexError, ValueError) as e:
    return {'error': f'JAX finds no device: {e}'}
  with contextlib.suppress(OSError):
    query = ['nvidia-smi', '--query-gpu=name,driver_version,memory.total']
    done = subprocess.run(
      [*query, '--format=csv,noheader'], capture_output=True, text=True
    )
    found['nvidia_smi'] = done.stdout.strip()
  return found


def limit(part: Part, left: float, toy: bool) -> float:
  """Seconds that a part may take, if so many are left; 0: it is skipped.

  The time to end one that hangs is set aside. A CPU at toy size first compiles
  our kernels, up to half a minute on two cores: it gets twice a part's time.
  """
  seconds = min(part.seconds * (2 if toy else 1), left - 2 * GRACE)
  return seconds if seconds >= LEAST else 0.0


def measure(part: Part, toy: bool, seconds: float) -> dict[str, Any]:
  """Runs a part; its JSON, and `error` if it failed or took too long."""
  args = (part.toy if toy else part.args).replace('"', '')
  command = [sys.executable, '-m', f'launch.bench.{part.module}']
  command += _words(args)
  began = time.perf_counter()
  env = {'XLA_PYTHON_CLIENT_MEM_FRACTION': f'{part.share}', **os.environ}
  if part.xla and not toy:
    env['XLA_FLAGS'] = f'{env.get("XLA_FLAGS", "")} {part.xla}'.strip()
  with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
    process = subprocess.Popen(
      command, stdout=out, stderr=err, env=env, start_new_session=True
    )
    try:
      code = process.wait(seconds)
      error = f'exit code {code}' if code else ''
    except subprocess.TimeoutExpired:
      error = f'not done after {seconds:.0f} s'
    finally:
      end_group(process)
    result = last_json(read(out))
    if not result and not error:
      error = 'it printed no JSON'
    if error:
      result |= {'error': error, 'stderr': read(err)[-ERROR_CHARACTERS:]}
  wall = time.perf_counter() - began
  return {'command': ' '.join(command[1:]), 'wall_s': wall, **result}


def _words(args: str) -> list[str]:
  """Words of a command line in which only a value may hold a space."""
  words: list[str] = []
  for word in args.split():
    if word.startswith('--'):
      words.append(word)
    else:
      words[-1] += f' {word}'
  return words


def end_group(process: subprocess.Popen) -> None:
  """Ends a process and those it has started."""
  for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
    try:
      os.killpg(process.pid, number)
    except ProcessLookupError:
      return
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(seconds)


def read(file: Any) -> str:
  """All text of a temporary file."""
  file.seek(0)
  return file.read().decode(errors='replace')


def last_json(text: str) -> dict[str, Any]:
  """The last line that is a JSON object; {} without one."""
  for line in reversed(text.splitlines()):
    with contextlib.suppress(ValueError):
      found = json.loads(line)
      if isinstance(found, dict):
        return found
  return {}


def outcome(result: dict[str, Any]) -> str:
  """One line about a part that has ended."""
  if 'skipped' in result:
    return f'  skipped: {result["skipped"]}'
  wall = f'{result["wall_s"]:.0f} s'
  if 'error' in result:
    return f'  failed after {wall}: {result["error"]}'
  return f'  done in {wall}'
