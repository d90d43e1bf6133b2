"""A run's directory, opened for training: lock, signals, what it holds."""

import contextlib
import dataclasses
import logging
import os
import pathlib
import signal
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax

from gpt import devices, files, logs, processes, unfinished
from gpt.data import record
from gpt.errors import UserError
from gpt.runs import failures
from gpt.runs.config_file import CONFIG, changed_keys, read_config
from gpt.runs.presence import Presence

logger = logging.getLogger(__name__)

LOCK = '.lock'
# What a start writes before config.json.
STARTED = (
  'base.json',
  'cache',
  'checkpoints',
  'data.json',
  'plan.json',
  'tokenizer',
)
# What a run writes after its config.json.
OUTPUTS = (
  'checkpoint.bin',
  'checkpoint_best.bin',
  'checkpoints',
  'metrics.jsonl',
  'samples.txt',
  'tensorboard',
)


@dataclasses.dataclass(frozen=True)
class Run:
  """A workdir that this process trains in.

  Attributes:
    workdir: the directory.
    leader: whether this process writes the run's files (process 0).
    saved: config.json as it was when the run was opened; None if the run had
      not begun.
    changed: {key: (saved, now)} of the config keys that differ.
    interrupt: set by Ctrl-C, SIGTERM and SIGHUP once training begins.
    presence: notices that the workdir is gone.
    on_close: registers a function to call when the run is closed.
    poll: asks the other processes.
  """

  workdir: pathlib.Path
  leader: bool
  saved: dict | None
  changed: dict
  interrupt: 'Interrupt'
  presence: Presence
  on_close: Callable[[Callable[[], None]], object]
  poll: processes.Poll = dataclasses.field(default_factory=processes.Poll)

  @property
  def begun(self) -> bool:
    """Whether config.json existed: from then on a run keeps its choices."""
    return self.saved is not None

  def stop_requested(self, step: int, now: bool) -> bool:
    """Whether any process was interrupted; the same answer in all of them.

    Args:
      now: ask the other processes at this step (see processes.Poll).
    """
    stop = self.interrupt.requested
    if jax.process_count() > 1:
      stop = self.poll.any(stop, step, now)
    return stop


@contextlib.contextmanager
def open_run(workdir: str | os.PathLike, config: Any) -> Iterator[Run]:
  """Opens a workdir for training, created if missing.

  Sets up devices, joins the processes of a multi-host run, takes the lock, and
  turns full disks and memory into clear errors.

  Args:
    workdir: path of the run's directory.
    config: ConfigDict of the run.

  Raises:
    UserError: the workdir holds another run or other files, or is in use.
  """
  workdir = pathlib.Path(workdir)
  devices.setup_devices(config.parallel.num_cpu_devices)
  if config.parallel.distributed:
    processes.join(config.parallel)
  if config.model.attention == 'cudnn' and 'cuda' not in devices.backend_name():
    raise UserError(
      'model.attention=cudnn needs a CUDA GPU; this machine has '
      f'{devices.backend_name()}: set --config.model.attention=auto'
    )
  leader = jax.process_index() == 0
  stamp = file_stamp(workdir / CONFIG)
  saved = read_config(workdir)
  if saved is None:
    check_unused(workdir)
  changed = changed_keys(saved, config, workdir) if saved else {}
  with contextlib.ExitStack() as stack:
    if leader:
      stack.enter_context(_made_for(workdir))
    else:
      make_workdir(workdir)
    stack.enter_context(logs.shown_by_default())
    if not leader:  # Process 0 speaks for all.
      stack.enter_context(logs.quiet(logging.ERROR))
    stack.enter_context(failures.explained(config, workdir))
    if leader:
      stack.enter_context(lock_workdir(workdir))
      if file_stamp(workdir / CONFIG) != stamp:
        raise UserError(
          f'another process has just trained in {workdir}: run the same '
          'command again'
        )
      files.remove_leftovers(workdir)
      stack.enter_context(_empty_again_if_refused(workdir))
    interrupt = Interrupt()
    stack.callback(interrupt.give_back)
    presence = Presence()
    stack.callback(presence.close)
    presence.watch(workdir)
    yield Run(
      workdir, leader, saved, changed, interrupt, presence, stack.callback
    )


def file_stamp(path: pathlib.Path) -> tuple | None:
  """Inode, mtime and size: differ once a file was replaced. None: no file."""
  try:
    stat = path.stat()
  except OSError:
    return None
  return stat.st_ino, stat.st_mtime_ns, stat.st_size


def make_workdir(workdir: str | os.PathLike) -> None:
  """Creates the directory if it is missing. Raises UserError if it cannot."""
  try:
    pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise UserError(
      f'cannot make the directory {workdir} ({e.strerror}): name another '
      '--workdir'
    ) from e


@contextlib.contextmanager
def _made_for(workdir: pathlib.Path) -> Iterator[None]:
  """Creates the directory; removes it if an error or Ctrl-C leaves it empty."""
  missing = [p for p in (workdir, *workdir.parents) if not os.path.lexists(p)]

  def undo() -> None:
    with contextlib.suppress(OSError):  # Something is in it, or it is gone.
      for path in missing:
        path.rmdir()

  with unfinished.if_abandoned(undo):
    make_workdir(workdir)
    try:
      yield
    except Exception:
      undo()
      raise


@contextlib.contextmanager
def _empty_again_if_refused(workdir: pathlib.Path) -> Iterator[None]:
  """Removes what a start wrote into an empty directory, if it is refused.

  Enter it with the lock held. A start that was interrupted keeps its data,
  which the next one uses, but no lock alone. Once there is a config.json,
  everything stays.
  """

  def undo() -> None:
    if os.listdir(workdir) == [LOCK]:
      unfinished.remove(workdir / LOCK)

  was_empty = os.listdir(workdir) == [LOCK]
  try:
    with unfinished.if_abandoned(undo):
      yield
  except (UserError, OSError):
    if was_empty and not (workdir / CONFIG).exists():
      for name in (*STARTED, LOCK):
        unfinished.remove(workdir / name)
    raise


def check_unused(workdir: str | os.PathLike) -> None:
  """Raises UserError if a directory without config.json holds a run's files.

  The step-0 checkpoint of a start that was cut short does not count.
  """
  workdir = pathlib.Path(workdir)
  foreign = [name for name in OUTPUTS if (workdir / name).exists()]
  if foreign and not (foreign == ['checkpoints'] and _is_cut_short(workdir)):
    raise UserError(
      f'{workdir} holds {foreign[0]} but no {CONFIG}: it is not a run of '
      'this program and nothing in it will be overwritten. Choose another '
      '--workdir; `python -m launch.import_rgpt` takes RGPT files'
    )


def _is_cut_short(workdir: pathlib.Path) -> bool:
  """Whether a start ended before its config.json, with no step trained.

  An import, whose weights may be at step 0 too, has no data.json.
  """
  steps = [path.name for path in workdir.glob('checkpoints/*/*')]
  begun = (workdir / record.FILE).exists() or not steps
  return begun and all(name.split('.')[0] == '0' for name in steps)


@contextlib.contextmanager
def lock_workdir(workdir: str | os.PathLike) -> Iterator[None]:
  """Keeps two processes from training in one workdir.

  Some network file systems have no locks: then a warning is all there is.
  """
  try:
    import fcntl
  except ImportError:  # Windows
    yield
    return
  path = pathlib.Path(workdir) / LOCK
  if path.exists() and not path.is_file():  # A pipe would block.
    raise UserError(f'{path} is not a file: remove it')
  with open(path, 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      raise UserError(
        f'another process is training in {workdir}; wait for it or choose '
        'another --workdir'
      ) from e
    except OSError as e:
      logger.warning(
        f'{workdir} cannot be locked ({e.strerror}): make sure that no other '
        'process trains there'
      )
    if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
      raise UserError(
        f'a start in {workdir} has just failed in another process: run the '
        'same command again'
      )
    yield


class Interrupt:
  """Turns the first Ctrl-C, SIGTERM or SIGHUP into a flag.

  Before `take_over` they end the process, and nothing is lost.
  A second Ctrl-C or SIGTERM exits at once. Checkpoints appear by rename, so
  the run stays loadable. A closed terminal may send SIGHUP more than once, so
  it never exits at once; under nohup it stays ignored. Outside the main thread
  (a notebook server's worker) signals are left alone.
  """

  SIGNALS = ('SIGINT', 'SIGTERM', 'SIGHUP')  # Windows has no SIGHUP.

  def __init__(self) -> None:
    self.requested = False
    self._asked = False  # By Ctrl-C or SIGTERM.
    self._old = {}

  def take_over(self) -> None:
    """Handles the signals from now on: there may be a step to save."""
    if threading.current_thread() is not threading.main_thread():
      return
    for name in self.SIGNALS:
      number = getattr(signal, name, None)
      if number is None:
        continue
      if name == 'SIGHUP' and signal.getsignal(number) == signal.SIG_IGN:
        continue
      self._old[number] = signal.signal(number, self._handle)

  def give_back(self) -> None:
    """Restores the handlers of before."""
    for number, handler in self._old.items():
      signal.signal(number, handler)
    self._old = {}

  def _handle(self, number: int, frame: types.FrameType | None) -> None:
    self.requested = True
    if number == getattr(signal, 'SIGHUP', None):
      return  # Nobody reads a closed terminal.
    if self._asked:
      os._exit(128 + number)
    self._asked = True
    text = b'\nstopping after this step; once more to leave at once\n'
    # Bypasses Python's buffers, which the signal may have found half written.
    with contextlib.suppress(OSError):
      os.write(2, text)
