"""Flags that several commands share, each defined once.

    WORKDIR = common_flags.workdir()
    SAMPLING = common_flags.sampling()

A function of a flag's name defines it for the calling module.
"""

import os
from collections.abc import Callable

from absl import flags

from configs.default import get_config
from gpt.errors import UserError

flags.disclaim_key_flags()  # --help lists them under the launcher.


class _Directory(flags.ArgumentParser):
  """A path; the shell leaves the ~ of --workdir=~/runs to the program."""

  def parse(self, argument: str) -> str:
    path = os.path.expanduser(argument)
    try:
      os.stat(path or '.')
    except FileNotFoundError:
      pass  # A new run.
    except OSError as e:
      raise ValueError(e.strerror) from e
    return path


def workdir(
  help: str = 'Directory of a trained run.', default: str | None = None
) -> flags.FlagHolder[str | None]:
  """--workdir."""
  return flags.DEFINE(
    _Directory(),
    'workdir',
    default,
    help,
    serializer=flags.ArgumentSerializer(),
  )


def need_workdir(
  holder: flags.FlagHolder[str | None], what: str = ' of a trained run'
) -> str:
  """The value of --workdir; UserError where it was not given."""
  if not holder.value:
    raise UserError(
      f'--workdir=DIRECTORY{what} is needed, e.g. --workdir=runs/first'
    )
  return holder.value


def which() -> flags.FlagHolder[str]:
  """--which=best|latest."""
  return flags.DEFINE_enum(
    'which',
    'best',
    ['best', 'latest'],
    'Checkpoint to use: the lowest validation loss, or the newest.',
  )


def base() -> flags.FlagHolder[str]:
  """--base=PATH."""
  return flags.DEFINE(
    _Directory(),
    'base',
    '',
    'Where the base of a run with adapters is now, if it has moved.',
    serializer=flags.ArgumentSerializer(),
  )


def seed(help: str) -> flags.FlagHolder[int]:
  """--seed."""
  return flags.DEFINE_integer('seed', get_config().seed, help)


def task(default: str) -> flags.FlagHolder[str]:
  """--task."""
  return flags.DEFINE_string(
    'task',
    default,
    'Problems of reasoning-gym: arithmetic (sums, products, greatest common '
    'divisors), or one of its data sets, such as chain_sum.',
  )


def max_tokens(tokens: int, help: str) -> flags.FlagHolder[int]:
  """--max_tokens, `tokens` by default."""
  return flags.DEFINE_integer('max_tokens', tokens, help)


def precision() -> flags.FlagHolder[str]:
  """--precision=float32|bfloat16."""
  return flags.DEFINE_enum(
    'precision',
    'float32',
    ['float32', 'bfloat16'],
    'Weights, keys and values in decoding; bfloat16 is faster and changes '
    'texts.',
  )


def sampling() -> Callable[[], dict[str, float | int]]:
  """--temperature, --top_p, --top_k, --min_p and --repetition_penalty.

  The defaults are those of config.sample.

  Returns:
    A function that gives their values as keywords of sampling.settings.
  """
  sample = get_config().sample
  holders = {
    'temperature': flags.DEFINE_float(
      'temperature',
      sample.temperature,
      'Higher is more surprising; 0 or less picks the likeliest token.',
    ),
    'top_p': flags.DEFINE_float(
      'top_p',
      sample.top_p,
      'Sample from the likeliest tokens that hold this probability together.',
    ),
    'top_k': flags.DEFINE_integer(
      'top_k',
      sample.top_k,
      'Sample from this many of the likeliest tokens. 0 or less: all.',
    ),
    'min_p': flags.DEFINE_float(
      'min_p', 0.0, 'Drop tokens less likely than this times the likeliest.'
    ),
    'repetition': flags.DEFINE_float(
      'repetition_penalty',
      1.0,
      'Above 1: tokens that have occurred become less likely.',
    ),
  }
  return lambda: {name: holder.value for name, holder in holders.items()}
