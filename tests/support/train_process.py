"""`launch.train` as a process: read from, interrupted, killed.

A test reacts to what the process prints or is about to do to the file system,
never to the time that has passed.
"""

import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np

from gpt.runs import checkpoint, metrics
from gpt.runs.checkpoint import BEST, LATEST

ROOT = pathlib.Path(__file__).parents[2]
# Numbers of a run that depend on the clock.
TIMES = ('ms_per_step', 'tokens_per_s', 'elapsed_s')

# Runs launch.train with a hook that sends the process a signal just before the
# n-th file operation of a kind: SIGNAL_AT='SIGNAL EVENT SUBSTRING N', several
# separated by ';'. EVENT is a regular expression over Python's audit events.
TRAP = """
import os, re, runpy, sys

traps = [one.split() for one in os.environ['SIGNAL_AT'].split(';')]
left = [int(n) for *_, n in traps]

def hook(event, args):
  for i, (number, event_wanted, part, _) in enumerate(traps):
    if not re.fullmatch(event_wanted, event):
      continue
    if event == 'open' and not re.search('[wax+]', str(args[1] or 'r')):
      continue
    if part in ' '.join(map(str, args)):
      left[i] -= 1
      if left[i] == 0:
        os.kill(os.getpid(), int(number))

sys.addaudithook(hook)
sys.argv[0] = 'launch.train'
runpy.run_module('launch.train', run_name='__main__', alter_sys=True)
"""
LIMITED = """
import os, resource, runpy, sys

resource.setrlimit(resource.RLIMIT_FSIZE, 2 * (int(os.environ['LIMIT']),))
sys.argv[0] = 'launch.train'
runpy.run_module('launch.train', run_name='__main__', alter_sys=True)
"""
WRITES = 'open|os.rename|os.mkdir|os.remove|os.rmdir|shutil.rmtree'


def kill_at(event: str, part: str, n: int = 1) -> str:
  return f'{int(signal.SIGKILL)} {event} {part} {n}'


def environment(**extra):
  return {**os.environ, 'RGPT_HUGE_PAGES': '0', **extra}


def arguments(workdir, *args):
  return ['--config=configs/smoke.py', f'--workdir={workdir}', *args]


class Training:
  """A running `python -m launch.train --config=configs/smoke.py ...`."""

  def __init__(
    self, workdir, *args, signal_at: str = '', limit: int = 0, env=None
  ):
    """A process that is running already.

    Args:
      args: flags besides --config and --workdir.
      signal_at: see TRAP.
      limit: bytes beyond which no file may grow: a disk that is full.
    """
    start = ['-m', 'launch.train']
    if signal_at:
      start = ['-c', TRAP]
    elif limit:
      start = ['-c', LIMITED]
    env = env or environment(SIGNAL_AT=signal_at, LIMIT=str(limit))
    self.lines = []
    self.process = subprocess.Popen(
      [sys.executable, *start, *arguments(workdir, *args)],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env=env,
    )

  def wait_for(self, text: str, stream: str = 'stdout') -> str:
    """Reads until a line holds `text`; returns it."""
    for line in getattr(self.process, stream):
      self.lines.append(line)
      if text in line:
        return line
    _, err = self.process.communicate()
    raise AssertionError(f'no line with {text!r} in {self.lines}\n{err}')

  def send(self, number) -> None:
    self.process.send_signal(number)

  def kill(self) -> None:
    self.send(signal.SIGKILL)
    assert self.finish()[0] == -signal.SIGKILL

  def finish(self):
    """(exit code, stdout so far and to the end, stderr)."""
    out, err = self.process.communicate()
    return self.process.returncode, ''.join(self.lines) + out, err


def train(workdir, *args, code: int = 0, **kwargs):
  """Runs to the end; checks the exit code; returns (stdout, stderr)."""
  given, out, err = Training(workdir, *args, **kwargs).finish()
  assert given == code, f'exit code {given}\n{out}\n{err}'
  assert 'Traceback' not in err, err
  return out, err


def latest(workdir):
  """(parameters, metadata) of the latest checkpoint."""
  path = checkpoint.find(workdir, LATEST)
  return checkpoint.restore_params(path), checkpoint.read_meta(path)


def timeless(workdir) -> list[dict]:
  """The lines of metrics.jsonl without their times."""
  return [
    {name: value for name, value in line.items() if name not in TIMES}
    for line in metrics.read(pathlib.Path(workdir) / metrics.FILE)
  ]


def assert_same_run(given, wanted) -> None:
  """Two workdirs hold the same run, bit for bit; only times may differ."""
  given, wanted = pathlib.Path(given), pathlib.Path(wanted)
  for name in (
    'config.json',
    'samples.txt',
    'tokenizer/tokenizer.json',
    'checkpoint.bin',
    'checkpoint_best.bin',
  ):
    assert (given / name).read_bytes() == (wanted / name).read_bytes(), name
  assert timeless(given) == timeless(wanted)
  for which in (LATEST, BEST):
    metas = []
    for workdir in (given, wanted):
      path = checkpoint.find(workdir, which)
      assert path.parent.name == which
      checkpoint.restore_params(path)  # Checks the arrays' checksum.
      meta = checkpoint.read_meta(path)
      assert meta.pop('elapsed_s') > 0
      meta.pop('meta_checksum')  # It covers the time, too.
      metas.append(meta)
    assert metas[0] == metas[1]  # With checksums over every array.
  leaves = [
    [
      (path.name, int(path.parent.name == BEST))
      for path in sorted(workdir.glob('checkpoints/*/*'))
    ]
    for workdir in (given, wanted)
  ]
  assert leaves[0] == leaves[1]


def snapshot(directory) -> dict:
  """{name: bytes} of all files in a directory tree."""
  directory = pathlib.Path(directory)
  return {
    str(path.relative_to(directory)): path.read_bytes()
    for path in directory.rglob('*')
    if path.is_file()
  }


def steps_of(workdir) -> list[tuple[int, str]]:
  """(step, kind) of every line of metrics.jsonl."""
  kinds = ('outcome', 'val_loss', 'loss')
  return [
    (line['step'], next(kind for kind in kinds if kind in line))
    for line in metrics.read(pathlib.Path(workdir) / metrics.FILE)
  ]


def assert_finite(params) -> None:
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
