"""One small run for several test files: as a process, or in this one."""

import pytest

from configs import smoke
from gpt.errors import UserError
from gpt.train import train_and_evaluate
from tests.support.logs import log_lines

# Evals and saves out of step, dropout, plateaus, samples: all there is to get
# wrong in a resume.
SETTINGS = {
  'total_steps': 12,
  'model.n_layer': 1,
  'parallel.num_cpu_devices': 2,
  'eval.every': 2,
  'eval.sample': True,
  'eval.full_at_end': True,
  'checkpoint.every': 3,
  'opt.plateau_patience': 1,
  'opt.plateau_max_reductions': 50,
  'sample.max_tokens': 8,
}
ARGS = [f'--config.{key}={value}' for key, value in SETTINGS.items()]


def settings(changes=(), **more):
  """A config for a run in this process, on its four devices."""
  config = smoke.get_config()
  for key, value in {
    **SETTINGS,
    'parallel.num_cpu_devices': 4,
    'eval.full_at_end': False,
    'eval.sample': False,
    **dict(changes),
    **more,
  }.items():
    group, _, name = key.rpartition('.')
    (config[group] if group else config)[name] = value
  return config


class Crash(Exception):
  """Stands in for a kill when the run is in this process."""


def run_here(workdir, changes=(), crash_at='', **kwargs):
  """(Result, lines) of a run in this process; may crash at a log line."""

  def crash(text):
    if crash_at and crash_at in text:
      raise Crash

  with log_lines(crash) as lines:
    if crash_at:
      with pytest.raises(Crash):
        train_and_evaluate(settings(changes), workdir, **kwargs)
      return None, lines
    return train_and_evaluate(settings(changes), workdir, **kwargs), lines


def refused(workdir, changes=(), **kwargs) -> str:
  with pytest.raises(UserError) as error:
    run_here(workdir, changes, **kwargs)
  return str(error.value)
