"""What can go wrong while training, and what to do about it.

It exists so that a diverged run, a full memory and a full disk end in a few
lines that say what to change, and not in a traceback of a library.
"""

import contextlib
import errno
import pathlib

import jax

from gpt.errors import UserError
from gpt.runs.checkpoint import list_steps

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def not_finite(step: int, what: str, lr: float, workdir) -> UserError:
  """The error for a loss or parameters that are not numbers any more."""
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


def not_saved(error: str, workdir) -> UserError:
  """The error at the end of a run whose last checkpoint is missing."""
  return UserError(
    f'the last checkpoint in {workdir} could not be written ({error}); earlier '
    'ones are whole. Free some space and run the same command again'
  )


@contextlib.contextmanager
def explained(config, workdir):
  """Turns running out of memory or disk into a UserError with advice.

  So it does with files that may not be written.
  """
  try:
    yield
  except (MemoryError, jax.errors.JaxRuntimeError) as e:
    if is_out_of_memory(e):
      raise out_of_memory(config) from e
    raise
  except OSError as e:
    if e.errno in DISK_ERRORS:
      raise UserError(
        f'cannot write to {workdir}: {e.strerror}. Checkpoints on disk are '
        'whole. Free some space and run the same command again'
      ) from e
    if e.errno in FORBIDDEN:
      raise UserError(
        f'no access to {e.filename or workdir}: {e.strerror}. Change its '
        'permissions or name another --workdir'
      ) from e
    raise


def is_out_of_memory(error: Exception) -> bool:
  text = str(error)
  return (
    isinstance(error, MemoryError)
    or 'RESOURCE_EXHAUSTED' in text
    or 'out of memory' in text.lower()
  )


def out_of_memory(config) -> UserError:
  """The error that says what to lower."""
  return UserError(
    'out of memory. Lower --config.batch_size (now '
    f'{config.batch_size}), --config.parallel.micro_batch_size (sequences at '
    f'once, now {config.parallel.micro_batch_size or "chosen by us"}; the '
    'result does not change), --config.model.block_size (now '
    f'{config.model.block_size}), or set --config.model.remat=true'
  )
