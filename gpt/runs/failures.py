"""Failures of a training run, as errors that say what to change.

A diverged run, full memory and a full disk end in a few lines instead of a
library's traceback.
"""

import contextlib
import errno
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax

from gpt.errors import UserError
from gpt.runs.checkpoint import list_steps

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MANY_FILES = os.strerror(errno.EMFILE)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def not_finite(
  step: int, what: str, lr: float, workdir: str | os.PathLike
) -> UserError:
  """The error for a loss that is NaN or infinite; `what` names it."""
  directory = pathlib.Path(workdir) / 'checkpoints'
  if list_steps(directory):
    kept = f'The last good checkpoint is in {directory}'
    where = 'in a new workdir or from that checkpoint'
  else:
    kept = 'Nothing had been saved yet'
    where = 'in the same workdir'
  return UserError(
    f'{what} is not a finite number at step {step} (lr {float(lr):.3g}). '
    f'{kept}. Try a lower --config.lr, a warmup (--config.opt.schedule=wsd '
    f'--config.opt.warmup_steps=200), or --config.opt.clip=global_norm, {where}'
  )


def not_saved(error: str, workdir: str | os.PathLike) -> UserError:
  """The error for a last checkpoint that could not be written."""
  return UserError(
    f'the last checkpoint in {workdir} could not be written ({error}); earlier '
    f'ones are intact. {_change(error)} and run the same command again'
  )


def _change(error: str) -> str:
  if MANY_FILES in error:
    return 'Raise the limit (ulimit -n 1024)'
  return 'Free some space'


def is_of_peer(error: str) -> bool:
  """Whether a write failed because another process of the run has ended."""
  return 'Gloo' in error


def not_written(step: int, error: str) -> str:
  """The warning about a checkpoint that was due by `step`."""
  question = '' if MANY_FILES in error else ' Is the disk full?'
  return (
    f'a checkpoint could not be written by step {step} ({error}); earlier ones '
    f'are untouched.{question}'
  )


@contextlib.contextmanager
def explained(config: Any, workdir: str | os.PathLike) -> Iterator[None]:
  """Turns full memory, a full disk and missing permissions into UserErrors."""
  was_there = os.path.isdir(workdir)
  try:
    yield
  except (MemoryError, jax.errors.JaxRuntimeError) as e:
    if is_out_of_memory(e):
      raise out_of_memory(config) from e
    if jax.process_count() > 1:
      wait_for_verdict(config)
    raise
  except OSError as e:
    if e.errno in DISK_ERRORS:
      raise UserError(
        f'cannot write to {workdir}: {e.strerror}. Checkpoints on disk are '
        'intact. Free some space and run the same command again'
      ) from e
    if e.errno in FORBIDDEN:
      raise UserError(
        f'no access to {e.filename or workdir}: {e.strerror}. Change its '
        'permissions or name another --workdir'
      ) from e
    if was_there and not os.path.isdir(workdir):
      raise UserError(
        f'{workdir} was removed, renamed or unmounted ({e.strerror}): name a '
        '--workdir that stays'
      ) from e
    raise


def wait_for_verdict(config: Any) -> None:
  """Waits until JAX has noticed which process of the run is gone.

  Then it ends this one, too, and launch/supervisor.py explains. A collective
  fails earlier, and knows no more than that a connection was closed.
  """
  time.sleep(2 * config.parallel.get('heartbeat_s', 15))


def is_out_of_memory(error: Exception) -> bool:
  """Whether Python, XLA or CUDA ran out of memory."""
  text = str(error)
  return (
    isinstance(error, MemoryError)
    or 'RESOURCE_EXHAUSTED' in text
    or 'out of memory' in text.lower()
  )


def out_of_memory(config: Any) -> UserError:
  """The error that says which settings to lower."""
  return UserError(
    'out of memory. Lower --config.batch_size (now '
    f'{config.batch_size}), --config.parallel.micro_batch_size (sequences at '
    f'once, now {config.parallel.micro_batch_size or "automatic"}; the '
    'result does not change), --config.model.block_size (now '
    f'{config.model.block_size}), or set --config.model.remat=true'
  )
