"""Train a GPT, or resume its training.

    python -m launch.train --config=configs/model_l.py --workdir=runs/l
    python -m launch.train --config=configs/model_l.py --config.lr=1e-5 ...

The same command again resumes. Without --config, a workdir that holds a run
continues with its own configuration.
"""

import os
import platform
import sys

from absl import flags

from gpt import logs
from gpt.errors import UserError
from gpt.runs import config_file
from launch import cli, common_flags, config_flag, signals

DEFAULT_CONFIG = 'configs/model_l.py'
config_flag.define(DEFAULT_CONFIG)
WORKDIR = common_flags.workdir('Directory of the run.')
INIT_FROM = flags.DEFINE_string(
  'init_from', '', 'Workdir or RGPT file whose weights (only) start a new run.'
)
BASE = common_flags.base()
ADDITIONAL_STEPS = flags.DEFINE_integer(
  'additional_steps',
  0,
  'Train this many more steps than are done.',
  lower_bound=0,
)


PROFILE = flags.DEFINE_bool(
  'profile', False, 'Write a trace of a few steps to WORKDIR/profile.'
)
HUGE_PAGES = 'glibc.malloc.hugetlb=1'


def use_huge_pages() -> None:
  """Starts this process again with malloc asking for transparent huge pages.

  Fresh pages cost a training step several percent of its CPU time on Linux
  with glibc, where only the environment at the start of a process can ask for
  them. Same process id, same arguments. RGPT_HUGE_PAGES=0 leaves it alone, and
  so does a GLIBC_TUNABLES that is set already.
  """
  wanted = os.environ.get('RGPT_HUGE_PAGES', '1') != '0'
  if (
    not wanted
    or platform.libc_ver()[0] != 'glibc'
    or 'GLIBC_TUNABLES' in os.environ
  ):
    return
  os.environ['GLIBC_TUNABLES'] = HUGE_PAGES
  signals.hold()  # Until the new start of Python can handle them.
  os.execv(sys.executable, sys.orig_argv)


def main(_: list[str]) -> None:
  directory = common_flags.need_workdir(WORKDIR, '')
  if ADDITIONAL_STEPS.value and config_flag.is_given('total_steps'):
    raise UserError(
      '--additional_steps and --config.total_steps are two targets: give one '
      'of them'
    )
  # With --config, only train_and_evaluate reads the run's config.json.
  named = config_flag.is_named()
  saved = None if named else config_file.read_config(directory)
  config = config_flag.of_run(saved)
  logs.to_console('stdout', survive=True)
  from gpt.train import train_and_evaluate  # JAX, after the flags are right.

  train_and_evaluate(
    config,
    directory,
    init_from=INIT_FROM.value,
    base=BASE.value,
    additional_steps=ADDITIONAL_STEPS.value,
    profile=PROFILE.value,
  )


if __name__ == '__main__':
  use_huge_pages()
  cli.run(main)
