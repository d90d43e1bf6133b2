"""The program: train a GPT on text, from a config to files in a workdir.

Read `train_and_evaluate` from top to bottom. A run is a pure function of its
config: data order, dropout and samples are keyed by (seed, step), so a run that
was killed and started again ends with the same parameters, bit for bit, as one
that never stopped.
"""

import os
import time

from ml_collections import ConfigDict

from gpt.config_check import check_config
from gpt.finish import finish_run
from gpt.planning import budget
from gpt.runs.result import Result
from gpt.runs.workdir import open_run
from gpt.start import load_data, with_dtype
from gpt.trainer import Trainer


def train_and_evaluate(
  config: ConfigDict,
  workdir: str | os.PathLike,
  *,
  init_from: str = '',
  base: str = '',
  additional_steps: int = 0,
  profile: bool = False,
  began: float | None = None,
) -> Result:
  """Trains until `config.total_steps`, resuming whatever the workdir holds.

  Progress goes to the standard `logging` ('gpt' and below), or to stdout if
  the caller has not configured it (see logs.shown_by_default).

  Args:
    config: ConfigDict with the keys of configs/default.py; left unchanged.
    workdir: directory of the run; created if missing. All processes of a
      multi-host run share it.
    init_from: workdir or RGPT file whose weights (only) start a new run.
    base: where the base of adapters is now, if it has moved (opt.lora_rank).
    additional_steps: train this many more steps instead of to total_steps.
    profile: write a trace of a few steps to workdir/profile.
    began: time.perf_counter() from which a budget (config.budget) counts;
      default: now.

  Raises:
    UserError: a mistake the user can fix; nothing was overwritten.
  """
  began = time.perf_counter() if began is None else began
  config, clock = budget.settle(config, workdir, began, init_from)
  check_config(config)
  with open_run(workdir, config) as run:
    config = with_dtype(run, config)
    tokenizer, dataset = load_data(run, config, init_from)
    with Trainer(run, config, tokenizer, dataset, clock) as trainer:
      trainer.start_or_resume(init_from, additional_steps, base)
      if trainer.nothing_to_do():
        return trainer.result('nothing')
      trainer.begin(profile)
      trainer.validate_once()  # At step 0, or if validation data has changed.
      for step in trainer.steps():
        trainer.dispatch(step)  # Then reads the metrics of step - 1.
        due = trainer.due(step)
        if due and trainer.pause(step, due):  # Evaluates, samples, saves.
          break
      return finish_run(trainer)
