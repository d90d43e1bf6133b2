"""`config.budget`: from a time to a config with every key set.

A key that is None waits for a plan. A new run measures its text and its machine
and fills them in (plan.py); one that resumes takes them from its workdir.
"""

import dataclasses
import logging
import os
import re
from typing import Any

import jax
from ml_collections import ConfigDict

from gpt import devices, logs
from gpt.errors import UserError, quoted
from gpt.kernels import library
from gpt.native import training
from gpt.planning import cost, machine, plan, record, table, text
from gpt.planning.clock import BudgetClock
from gpt.planning.record import Record, Target
from gpt.runs.config_file import flatten, read_config, with_later_options
from gpt.runs.metrics import duration

logger = logging.getLogger(__name__)

UNITS = {'s': 1, 'm': 60, 'h': 3600}
SHORTEST_S, LONGEST_S = 5, 30 * 86400
EXAMPLES = 'write it as 90s, 10m or 8h'


def seconds_of(budget: str) -> float:
  """'90s', '10m', '1.5h' -> seconds.

  Raises:
    UserError: not a number with a unit, or out of range.
  """
  match = re.fullmatch(r'(\d+\.?\d*|\.\d+)([smh])', budget.strip().lower())
  if not match:
    raise UserError(f'budget {quoted(budget)} is not a time: {EXAMPLES}')
  seconds = float(match[1]) * UNITS[match[2]]
  if not SHORTEST_S <= seconds <= LONGEST_S:
    raise UserError(
      f'budget {budget} is out of range: it must be between {SHORTEST_S}s and '
      f'{LONGEST_S // 3600}h'
    )
  return seconds


def settle(
  config: Any,
  workdir: str | os.PathLike,
  began: float,
  init_from: str = '',
) -> tuple[Any, BudgetClock | None]:
  """(config with all keys set, the clock of its budget or None).

  Args:
    config: ConfigDict; left unchanged. Without a budget it is returned as it
      is.
    workdir: of the run.
    began: time.perf_counter() at the start of the process.
    init_from: weights to start from, which a plan cannot take into account.

  Raises:
    UserError: no plan can be made, or the workdir holds another run.
  """
  if not config.get('budget'):
    return config, None
  seconds = seconds_of(config.budget)
  saved = read_config(workdir)
  if saved is None:
    return _planned(config, workdir, seconds, began, init_from)
  return _resumed(config, workdir, saved, seconds, began)


def _planned(
  config: Any,
  workdir: str | os.PathLike,
  seconds: float,
  began: float,
  init_from: str,
) -> tuple[Any, BudgetClock]:
  """Plans a new run; logs the table."""
  if init_from:
    raise UserError(
      'a budget plans a new model; --init_from starts from the weights of '
      'another, whose shape is fixed: give --config.total_steps instead of a '
      'budget'
    )
  if config.parallel.distributed:
    raise UserError(
      'a budget plans for the devices of one process: leave out '
      '--config.parallel.distributed, or give total_steps instead'
    )
  values = flatten(config.to_dict())
  given = {key: x for key, x in values.items() if x is not None}
  with logs.shown_by_default():
    devices.setup_devices(config.parallel.num_cpu_devices)
    if jax.default_backend() == 'cpu':
      # Once compiled here, not when the time is nearly up.
      library.load()
      training.load()
    facts, where, made = planned(seconds, given)
    logger.info(table.text_of(config.budget, facts, where, made, given))
    if 'total_steps' in given:
      logger.warning(
        f'total_steps is given: the run takes about '
        f'{duration(made.now.total_s)}, not {config.budget}'
      )
  chosen = {
    key: made.now.options[key] for key, x in values.items() if x is None
  }
  kept = Record(
    budget=config.budget,
    seconds=seconds,
    chosen=chosen,
    plan={
      'text': dataclasses.asdict(facts),
      'machine': dataclasses.asdict(where),
      **dataclasses.asdict(made),
    },
    targets=[_first_target(chosen, given)],
    end={},
  )
  return _filled(config, chosen), _clock(kept, workdir, began)


def planned(
  seconds: float, given: dict[str, Any]
) -> tuple[text.Text, machine.Machine, plan.Plan]:
  """The facts and the plan of a run that starts now.

  Args:
    seconds: of the budget.
    given: flat keys of the config that have a value.
  """
  facts = text.measure(given)
  where = machine.measure(given['parallel.num_cpu_devices'])
  return facts, where, plan.make(facts, where, seconds, given)


def _first_target(chosen: dict[str, Any], given: dict[str, Any]) -> Target:
  if 'total_steps' in chosen:
    return Target(0, chosen['total_steps'])
  return Target(0, given['total_steps'], 'given')


def _resumed(
  config: Any,
  workdir: str | os.PathLike,
  saved: dict[str, Any],
  seconds: float,
  began: float,
) -> tuple[Any, BudgetClock | None]:
  """Takes from a run what it was planned with."""
  before = saved.get('budget', '')
  if not before or seconds_of(before) != seconds:
    has = f'the budget {before}' if before else 'no budget'
    raise UserError(
      f'{workdir} holds a run with {has}: continue it with --workdir alone '
      '(and --additional_steps=N to train longer), or choose another --workdir'
    )
  known = with_later_options(flatten(saved))
  open_keys = [k for k, x in flatten(config.to_dict()).items() if x is None]
  kept = record.read(workdir)
  filled = _filled(config, {k: known[k] for k in open_keys if k in known})
  if kept is None:
    with logs.shown_by_default():
      logger.warning(
        f'{workdir} has lost its {record.FILE}: the run goes on to step '
        f'{filled.total_steps}, whatever the time'
      )
    return filled, None
  if filled.total_steps == saved['total_steps']:
    # A kill between the two files may have left the older target there.
    filled.total_steps = kept.last.total_steps
  return filled, _clock(kept, workdir, began)


def _clock(
  kept: Record, workdir: str | os.PathLike, began: float
) -> BudgetClock:
  # From the plan: JAX must not start yet.
  platform = kept.plan.get('machine', {}).get('platform', 'cpu')
  return BudgetClock(kept, workdir, began, cost.end_seconds(platform))


def _filled(config: Any, values: dict[str, Any]) -> ConfigDict:
  """A copy of the config with open keys set."""
  filled = ConfigDict(config.to_dict())
  filled.update_from_flattened_dict(values)
  return filled.lock()
