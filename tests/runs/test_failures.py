"""Running out of memory or disk is explained; other errors stay as they are."""

import jax
import pytest

from gpt.errors import UserError
from gpt.runs import failures
from tests.support.train_runs import settings


@pytest.mark.parametrize(
  'error',
  [
    jax.errors.JaxRuntimeError(
      'RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.'
    ),
    jax.errors.JaxRuntimeError('INTERNAL: CUDA error: out of memory'),
    MemoryError(),
  ],
)
def test_running_out_of_memory_says_what_to_lower(error):
  with pytest.raises(UserError) as raised:
    with failures.explained(settings(), 'runs/x'):
      raise error
  text = str(raised.value)
  for word in (
    'out of memory',
    '--config.batch_size (now 8)',
    '--config.parallel.micro_batch_size',
    '--config.model.block_size (now 32)',
    '--config.model.remat',
  ):
    assert word in text


@pytest.mark.parametrize(
  'error',
  [
    jax.errors.JaxRuntimeError('INVALID_ARGUMENT: shapes'),
    OSError(2, 'No such file'),
    KeyError('x'),
  ],
)
def test_other_errors_are_left_as_they_are(error):
  with pytest.raises(type(error)) as raised:
    with failures.explained(settings(), 'runs/x'):
      raise error
  assert raised.value is error


def test_full_disk_anywhere_is_explained():
  with pytest.raises(UserError, match='cannot write to runs/x: No space left'):
    with failures.explained(settings(), 'runs/x'):
      raise OSError(28, 'No space left on device')
