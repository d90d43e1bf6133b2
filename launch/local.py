"""Train with several processes on this machine.

    python -m launch.local --processes=4 -- launch.train --config=model_l \\
      --workdir=runs/l

Starts the command once per process, with a coordinator on a free port. Every
line of a process is shown behind its number. CPU cores and GPUs are divided
between the processes. Ctrl-C and SIGTERM are passed on. When one process
fails, the others are ended, and its exit code is that of this command.
"""

import asyncio
import functools
import importlib.util
import os
import pathlib
import re
import signal
import socket
import sys
from typing import TextIO

from absl import flags

from gpt.errors import UserError
from launch import cli, signals

PROCESSES = flags.DEFINE_integer(
  'processes', 2, 'Processes to start.', lower_bound=1
)
GRACE = flags.DEFINE_float(
  'grace',
  30.0,
  'Seconds that the others have to end after one has failed.',
  lower_bound=0.0,
)
# What may stand in front of the name of a command.
PREFIX = re.compile(r'(rgpt|launch)[. ]')
JOINING = ('train',)  # Commands whose processes join (parallel.distributed).
DISTRIBUTED = '--config.parallel.distributed'
CPU_DEVICES = '--config.parallel.num_cpu_devices'
CHUNK = 1 << 16
LAST_WORDS = 2.0  # Seconds for the output of a process that has ended.


def command(words: list[str], processes: int) -> list[str]:
  """The command line of every process, of the words after `--`.

  Raises:
    UserError: no command, or one whose processes do not join.
  """
  example = 'python -m launch.local --processes=2 -- launch.train --config=...'
  if not words:
    raise UserError(f'what to start is missing: {example}')
  first = words[:2] if words[0] == 'rgpt' else words[:1]
  name, rest = PREFIX.sub('', ' '.join(first)), words[len(first) :]
  if name not in JOINING:
    raise UserError(
      f'{" ".join(first)} does not run in several processes; allowed: '
      f'launch.train, as in {example}'
    )
  if any(re.fullmatch(f'{DISTRIBUTED}=(false|f|0|no)', x, re.I) for x in rest):
    raise UserError(
      f'{DISTRIBUTED}=false starts {processes} runs in one workdir: leave it '
      'out, or start launch.train without launch.local'
    )
  flags_given = {word.partition('=')[0] for word in rest}
  if DISTRIBUTED not in flags_given:
    rest = [*rest, DISTRIBUTED]
  if CPU_DEVICES not in flags_given:
    from gpt import devices  # JAX, after the flags are right.

    share = max(1, devices.num_cores() // processes)
    rest = [*rest, f'{CPU_DEVICES}={share}']
  return [sys.executable, '-m', f'launch.{name}', *rest]


def environment(index: int, processes: int, port: int) -> dict[str, str]:
  """The variables by which process `index` finds the others."""
  own = {
    'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
    'JAX_NUM_PROCESSES': str(processes),
    'JAX_PROCESS_ID': str(index),
    'PYTHONUNBUFFERED': '1',
  }
  if gpus := num_gpus():
    if gpus % processes:
      raise UserError(
        f'--processes={processes}: the {gpus} GPUs cannot be divided evenly; '
        'choose a divisor, or set JAX_PLATFORMS=cpu'
      )
    share = gpus // processes
    ids = range(index * share, (index + 1) * share)
    own['JAX_LOCAL_DEVICE_IDS'] = ','.join(map(str, ids))
  return {**os.environ, **own}


def num_gpus() -> int:
  """NVIDIA GPUs that JAX may use; 0 where it cannot."""
  plugins = ('jax_cuda12_plugin', 'jax_cuda13_plugin')
  if os.environ.get('JAX_PLATFORMS', '').startswith('cpu') or not any(
    importlib.util.find_spec(name) for name in plugins
  ):
    return 0
  visible = os.environ.get('CUDA_VISIBLE_DEVICES')
  if visible is not None:
    return len([x for x in visible.split(',') if x.strip()])
  return len(list(pathlib.Path('/dev').glob('nvidia[0-9]*')))


def free_port() -> int:
  """A TCP port of this machine that nobody listens on."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


class Group:
  """The processes of one run.

  Attributes:
    failed: (index, exit code) of the first process that failed; None.
  """

  def __init__(self) -> None:
    self.failed: tuple[int, int] | None = None
    self._processes: list[asyncio.subprocess.Process] = []
    self._ending: asyncio.Task | None = None

  async def run(self, words: list[str], processes: int, grace: float) -> int:
    """Starts all of them and waits for their end.

    Returns:
      The exit code: 0 if all succeeded, else that of the first that failed
      (128 + number for one that a signal ended).
    """
    loop, port = asyncio.get_running_loop(), free_port()
    environments = [environment(i, processes, port) for i in range(processes)]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
      loop.add_signal_handler(number, self.send, number)
    for env in environments:
      self._processes.append(
        await asyncio.create_subprocess_exec(
          *words,
          stdin=asyncio.subprocess.DEVNULL,
          stdout=asyncio.subprocess.PIPE,
          stderr=asyncio.subprocess.PIPE,
          env=env,
          # Not of the terminal's group: Ctrl-C reaches them once, from here.
          start_new_session=True,
          # SIGTERM if the launcher is killed.
          preexec_fn=functools.partial(signals.end_with_parent, signal.SIGTERM),
        )
      )
    await asyncio.gather(*(self._follow(i, grace) for i in range(processes)))
    if self._ending:
      self._ending.cancel()
    return self.failed[1] if self.failed else 0

  def send(self, number: int) -> None:
    """Passes a signal on to every process that still runs."""
    for process in self._processes:
      if process.returncode is None:
        process.send_signal(number)

  async def _follow(self, index: int, grace: float) -> None:
    process = self._processes[index]
    shown = asyncio.gather(
      forward(process.stdout, sys.stdout, index),
      forward(process.stderr, sys.stderr, index),
    )
    code = await process.wait()
    # A child of its own may hold the pipes open for longer.
    await asyncio.wait([shown], timeout=LAST_WORDS)
    if code == 0 or self.failed:
      return
    self.failed = index, code if code > 0 else 128 - code
    how = f'failed with exit code {code}'
    if code < 0:
      how = f'was ended by {signal.Signals(-code).name}'
    if any(p.returncode is None for p in self._processes):
      how += '; ending the others'
    print(f'launch.local: process {index} {how}', file=sys.stderr, flush=True)
    self.send(signal.SIGTERM)
    self._ending = asyncio.create_task(self._kill_after(grace))

  async def _kill_after(self, seconds: float) -> None:
    await asyncio.sleep(seconds)
    for process in self._processes:
      if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)  # With what it has started.


async def forward(
  source: asyncio.StreamReader, target: TextIO, index: int
) -> None:
  """Copies lines as they come, each behind the number of its process."""
  rest = b''
  while chunk := await source.read(CHUNK):
    *lines, rest = (rest + chunk).split(b'\n')
    show(lines, target, index)
  show([rest] if rest else [], target, index)


def show(lines: list[bytes], target: TextIO, index: int) -> None:
  """Writes lines behind `[index]`, in one piece."""
  out = b''.join(b'[%d] %s\n' % (index, line) for line in lines)
  try:
    target.buffer.write(out)
    target.flush()
  except BrokenPipeError:  # `| head` has left; training goes on.
    os.dup2(os.open(os.devnull, os.O_WRONLY), target.fileno())


def main(argv: list[str]) -> int:
  words = command(argv[1:], PROCESSES.value)
  return asyncio.run(Group().run(words, PROCESSES.value, GRACE.value))


if __name__ == '__main__':
  cli.run(main, allow_args=True)
