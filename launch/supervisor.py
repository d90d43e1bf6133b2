"""One process of a run of several, watched by the process that started it.

When a process of a run dies, JAX ends the others: C++ aborts them, with pages
about RPCs and stacks. So each trains in a child process. Its parent passes
signals on and shows what it writes; if the child ends because another process
of the run has died, the parent says so in one line instead.
"""

import contextlib
import functools
import os
import pathlib
import re
import select
import signal
import subprocess
import sys
import time
import traceback
import types
from collections.abc import Iterator

from gpt.errors import LOST_PEER, UserError
from gpt.runs.checkpoint_meta import list_steps
from launch import program, signals

CHILD = 'RGPT_SUPERVISED'
PASSED_ON = ('SIGINT', 'SIGTERM', 'SIGHUP')
# The first line of C++'s last words, which are held back until it has ended or
# has gone on for so many seconds.
LAST_WORDS = re.compile(rb'^([WEF]\d{4} \d\d:\d\d:|terminate called)', re.M)
PATIENCE = 10.0


def is_child() -> bool:
  """Whether this process is one that a parent watches."""
  return CHILD in os.environ


def watch(workdir: str, heartbeat_s: int) -> int:
  """Runs this command again as a child; returns its exit code.

  Args:
    workdir: of the run.
    heartbeat_s: config.parallel.heartbeat_s.
  """
  child = subprocess.Popen(
    sys.orig_argv,
    env={**os.environ, CHILD: '1'},
    stderr=subprocess.PIPE,
    start_new_session=True,  # Ctrl-C reaches it once, from here.
    preexec_fn=functools.partial(signals.end_with_parent, signal.SIGKILL),
  )

  def pass_on(number: int, frame: types.FrameType | None) -> None:
    with contextlib.suppress(ProcessLookupError):
      child.send_signal(number)

  for name in PASSED_ON:
    number = getattr(signal, name, None)
    if number is not None and signal.getsignal(number) != signal.SIG_IGN:
      signal.signal(number, pass_on)
  held = _show_stderr(child)
  code = child.wait()
  if code and (lost := lost_peer(held.decode(errors='replace'), heartbeat_s)):
    steps = [x for _, x in list_steps(pathlib.Path(workdir) / 'checkpoints')]
    saved = f'step {max(steps)} is saved' if steps else 'nothing is saved yet'
    print(
      f'error: {lost}. Run the same command again on every process: {saved}, '
      'and the run goes on from there',
      file=sys.stderr,
    )
    return LOST_PEER
  os.write(2, held)
  if code == -signal.SIGKILL:
    print(
      'error: this process of the run was killed (SIGKILL; does the machine '
      'have enough memory?). Run the same command again on every process',
      file=sys.stderr,
    )
  return code if code >= 0 else 128 - code


def _show_stderr(child: subprocess.Popen) -> bytes:
  """Copies the child's stderr until its end; returns what was held back."""
  assert child.stderr is not None
  source, held, since = child.stderr.fileno(), b'', 0.0
  while True:
    ready, _, _ = select.select([source], [], [], 1.0)
    if ready:
      chunk = os.read(source, 1 << 16)
      if not chunk:
        return held
      if not held and (found := LAST_WORDS.search(chunk)):
        os.write(2, chunk[: found.start()])
        chunk, since = chunk[found.start() :], time.monotonic()
      if held or since:
        held += chunk
      else:
        os.write(2, chunk)
    if since and time.monotonic() - since > PATIENCE:  # It goes on.
      os.write(2, held)
      held, since = b'', 0.0


def lost_peer(last_words: str, heartbeat_s: int) -> str:
  """Which process of the run has died, from C++'s words about it; or ''."""
  listed = re.search(r'are unhealthy[^:]*:(.*?)The tasks', last_words, re.S)
  if listed:
    lost = re.findall(r'task:(\d+)', listed[1]) or re.findall(r'\d+', listed[1])
    who = 'process' if len(lost) == 1 else 'processes'
    return (
      f'{who} {", ".join(lost)} of the run gave no sign of life for '
      f'{heartbeat_s} s: killed, or its machine is gone, or its own output '
      'says why'
    )
  gone = r'PollForError|coordination service.*UNAVAILABLE|Socket closed'
  if re.search(gone, last_words, re.S):
    return (
      'process 0 of the run has ended: killed, or its machine is gone, or its '
      'own output says why'
    )
  return ''


@contextlib.contextmanager
def ends_at_once() -> Iterator[None]:
  """In a child, an error ends the process without waiting for the others.

  An ordinary exit would: they notice the end by its missing heartbeats.
  """
  if not is_child():
    yield
    return
  del os.environ[CHILD]
  try:
    yield
  except UserError as e:
    sys.stdout.flush()
    print(f'error: {program.as_called(str(e))}', file=sys.stderr, flush=True)
    os._exit(program.USAGE_ERROR)
  except Exception:
    sys.stdout.flush()
    traceback.print_exc()
    os._exit(1)
