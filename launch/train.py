"""Train a GPT, or resume its training.

    python -m launch.train --budget=10m --data=book.txt --workdir=runs/book
    python -m launch.train --config=configs/model_l.py --workdir=runs/l
    python -m launch.train --config=configs/model_l.py --config.lr=1e-5 ...
    python -m launch.train --init_from=runs/l --config.opt.lora_rank=8 \\
      --config.data.path=mine.txt --workdir=runs/mine

The same command again resumes. Without --config, a workdir that holds a run
continues with its own configuration.
"""

import os
import pathlib
import platform
import sys
import time
from typing import TYPE_CHECKING

from absl import flags

from gpt import logs
from gpt.errors import UserError
from gpt.formats import hub
from gpt.runs import config_file
from launch import (
  cli,
  common_flags,
  config_flag,
  pretrained,
  signals,
  supervisor,
)

if TYPE_CHECKING:
  from ml_collections import ConfigDict

DEFAULT_CONFIG = 'configs/model_l.py'
config_flag.define(DEFAULT_CONFIG)
config_flag.define_short()
WORKDIR = common_flags.workdir('Directory of the run.')
INIT_FROM = flags.DEFINE_string(
  'init_from',
  '',
  'Run, RGPT file or model of another program (a Hugging Face directory, a '
  'GGUF file, hf://owner/name) whose weights (only) start a new run.',
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
INTERRUPTED_CODE = flags.DEFINE_integer(
  'interrupted_exit_code',
  0,
  'Exit code of a run that was interrupted and saved before its last step: '
  'schedulers start it again (deploy/).',
  lower_bound=0,
  upper_bound=255,
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


def find_source(init_from: str, directory: str) -> str:
  """The run or RGPT file to start from.

  A model of another program becomes a run in the cache, which stays: adapters
  need their base later.

  Args:
    init_from: as of the flag.
    directory: of the new run; one that has begun needs no source.
  """
  path = pathlib.Path(init_from)
  is_foreign = (
    init_from == pretrained.SMOLLM2
    or hub.is_reference(init_from)
    or path.suffix == '.gguf'
    or any((path / name).is_file() for name in ('config.json', 'meta.json'))
  )
  begun = config_file.read_config(directory) is not None
  if begun or not is_foreign or (path / 'checkpoints').is_dir():
    return init_from
  given = pretrained.Flags(init_from, pretrained.CONTEXT, yes=False)
  return str(pretrained.find(given, init_from).make())


def read_config(directory: str, init_from: str) -> 'ConfigDict':
  """The run's config; with --init_from, its model is that of the weights.

  Without --config a run continues with its own config, and a new one begins
  with that of the run it starts from.
  """
  source = pathlib.Path(init_from)
  is_rgpt = source.is_file() and source.suffix != '.gguf'
  if config_flag.is_named() and (not init_from or is_rgpt):
    return config_flag.of_run(None)  # train_and_evaluate reads config.json.
  saved = config_file.read_config(directory)
  if saved is None and (source / 'checkpoints').is_dir():
    saved = config_file.read_config(source)
  config = config_flag.of_run(saved)
  if init_from and not is_rgpt and saved is not None:
    config_flag.take_over_model(config, saved)
  return config


def main(_: list[str]) -> int:
  directory = common_flags.need_workdir(WORKDIR, '')
  if ADDITIONAL_STEPS.value and config_flag.is_given('total_steps'):
    raise UserError(
      '--additional_steps and --config.total_steps are two targets: give one '
      'of them'
    )
  init_from = find_source(INIT_FROM.value, directory)
  config = read_config(directory, init_from)
  if config.parallel.distributed and not supervisor.is_child():
    return supervisor.watch(directory, config.parallel.heartbeat_s)
  logs.to_console('stdout', survive=True)
  began = time.perf_counter()
  if config.budget:
    from gpt.planning.age import process_age

    began -= process_age()
  from gpt.train import train_and_evaluate  # JAX, after the flags are right.

  with supervisor.ends_at_once():
    result = train_and_evaluate(
      config,
      directory,
      init_from=init_from,
      base=BASE.value,
      additional_steps=ADDITIONAL_STEPS.value,
      profile=PROFILE.value,
      began=began,
    )
  return INTERRUPTED_CODE.value if result.outcome == 'interrupted' else 0


if __name__ == '__main__':
  use_huge_pages()
  cli.run(main)
