"""A run's directory: its configuration, and whether it may be continued."""

import contextlib
import json
import logging
import os
import pathlib
import signal
import threading

from gpt.data import record
from gpt.errors import UserError
from gpt.files import write_atomic
from gpt.model.config import RUNTIME, option_names

logger = logging.getLogger(__name__)

CONFIG = 'config.json'
# What a run writes after its config.json.
OUTPUTS = (
  'checkpoint.bin',
  'checkpoint_best.bin',
  'checkpoints',
  'metrics.jsonl',
  'samples.txt',
  'tensorboard',
)
FIXED_KEYS = (
  'data.format',
  'data.tokenizer',
  'data.tokenizer_path',
  'data.vocab_size',
  'opt.name',
)


def flatten(tree: dict, prefix: str = '') -> dict:
  """{'model': {'n_embd': 1}} -> {'model.n_embd': 1}."""
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat |= flatten(value, f'{prefix}{name}.')
    else:
      flat[prefix + name] = value
  return flat


def plain(config) -> dict:
  """A ConfigDict as plain JSON-able dicts (tuples become lists)."""
  return json.loads(json.dumps(config.to_dict()))


def save_config(workdir, config) -> None:
  text = json.dumps(plain(config), indent=2) + '\n'
  write_atomic(pathlib.Path(workdir) / CONFIG, text.encode())


def read_config(workdir) -> dict | None:
  """The saved configuration as nested dicts; None if this is no run yet.

  Raises:
    UserError: there is one, and it is damaged or not ours.
  """
  path = pathlib.Path(workdir) / CONFIG
  try:
    config = json.loads(path.read_text(encoding='utf-8'))
  except (FileNotFoundError, NotADirectoryError):
    return None
  except (OSError, ValueError) as e:
    raise UserError(f'cannot read {path}: {e}') from e
  ours = isinstance(config, dict) and isinstance(config.get('model'), dict)
  if not ours or 'total_steps' not in config:
    raise UserError(
      f'{path} was not written by this program and will not be overwritten. '
      'Name another --workdir'
    )
  return config


def differences(saved: dict, config) -> dict:
  """{key: (saved, now)} of all keys that differ."""
  old, new = flatten(saved), flatten(plain(config))
  return {
    key: (old.get(key), new.get(key))
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key)
  }


def is_fixed(key: str, old, new) -> bool:
  """Whether a run cannot go on with this change of a key."""
  if key == 'opt.ema_decay':  # Another decay is fine; on or off is not.
    return not old or not new
  if old is None:  # A key that did not exist when the run began.
    return False
  group, _, name = key.partition('.')
  free = option_names(RUNTIME)
  return key in FIXED_KEYS or (group == 'model' and name not in free)


def make(workdir) -> None:
  """Makes the directory unless it is there; UserError if it cannot be."""
  try:
    pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise UserError(
      f'cannot make the directory {workdir} ({e.strerror}): name another '
      '--workdir'
    ) from e


def check_resumable(workdir, config) -> dict:
  """Refuses to continue a run as something else.

  Returns:
    {key: (saved, now)} of the changed keys that are allowed to change.

  Raises:
    UserError: architecture, tokenizer or optimizer differ; names the keys.
  """
  workdir = pathlib.Path(workdir)
  saved = read_config(workdir)
  if saved is None:
    foreign = [name for name in OUTPUTS if (workdir / name).exists()]
    if foreign and not (foreign == ['checkpoints'] and _is_unused(workdir)):
      raise UserError(
        f'{workdir} holds {foreign[0]} but no {CONFIG}: it is not a run of '
        'this program and nothing in it will be overwritten. Choose another '
        '--workdir; `python -m launch.import_rgpt` takes RGPT files'
      )
    return {}
  changed = differences(saved, config)
  fixed = {key: pair for key, pair in changed.items() if is_fixed(key, *pair)}
  if fixed:
    lines = [f'  {key}: {a!r} -> {b!r}' for key, (a, b) in fixed.items()]
    raise UserError(
      f'{workdir} holds a run with another model, tokenizer or optimizer:\n'
      + '\n'.join(lines)
      + '\nGive the old values back, or choose another --workdir'
    )
  return changed


def _is_unused(workdir: pathlib.Path) -> bool:
  """No step was trained: a start was cut short before its config.json.

  An import, whose weights may be at step 0 too, has no data.json.
  """
  steps = [path.name for path in workdir.glob('checkpoints/*/*')]
  begun = (workdir / record.FILE).exists() or not steps
  return begun and all(name.split('.')[0] == '0' for name in steps)


@contextlib.contextmanager
def lock(workdir):
  """Keeps two processes from training in one workdir.

  Some file systems of networks have no locks: that is said, and no more.
  """
  try:
    import fcntl
  except ImportError:  # Windows
    yield
    return
  with open(pathlib.Path(workdir) / '.lock', 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      raise UserError(
        f'another process is training in {workdir}; wait for it or choose '
        'another --workdir'
      ) from e
    except OSError as e:
      logger.warning(
        f'{workdir} cannot be locked ({e.strerror}): see that no '
        'other process trains there'
      )
    yield


class Interrupt:
  """Turns the first Ctrl-C or SIGTERM into a flag, the second into an exit.

  Checkpoints appear by rename, so leaving at once still leaves a loadable run.
  Outside the main thread (a notebook server's worker) signals are left alone.
  """

  def __init__(self):
    self.requested = False
    self._old = {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT, signal.SIGTERM):
        self._old[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *_):
    for number, handler in self._old.items():
      signal.signal(number, handler)

  def _handle(self, number, frame):
    if self.requested:
      os._exit(128 + number)
    self.requested = True
    # Past Python's buffers, which the signal may have found half written.
    os.write(2, b'\nstopping after this step; once more to leave at once\n')
