"""The plan of a run beside what happened."""

import os
from typing import Any

from gpt.fields import Fields
from gpt.planning import record
from gpt.runs.metrics import duration, number


def describe(workdir: str | os.PathLike) -> dict[str, Any] | None:
  """JSON-able facts of a run with a budget; None for any other.

  Returns:
    budget (as given), budget_s, used_s (None before the end),
    expected_bits_per_byte (of the plan), expected_for_steps (of the steps that
    the clock allowed; None: not measured), expected_halfway (by the losses of
    the first half; None before it), bits_per_byte (of the full pass of the
    weights that are used; None before the end, or without a full pass),
    planned_steps, total_steps, targets ([{step, total_steps, why, ...}]).

  Raises:
    UserError: plan.json is damaged.
  """
  kept = record.read(workdir)
  if kept is None:
    return None
  where = os.path.join(workdir, record.FILE)
  plan = Fields(kept.plan, f'{where}: plan')
  now, halfway = plan.mapping('now', {}), plan.mapping('halfway', {})
  end = Fields(kept.end, f'{where}: end')
  reached = end.mapping('bits_per_byte', {})
  final = reached.number('final', 0, 1e6, None)
  return {
    'budget': kept.budget,
    'budget_s': kept.seconds,
    'used_s': end.number('elapsed_s', 0, 1e12, None),
    'expected_bits_per_byte': now.number('bits_per_byte', 0, 1e6, None),
    'expected_for_steps': kept.last.expected or None,
    'expected_halfway': halfway.number('bits_per_byte', 0, 1e6, None),
    'bits_per_byte': reached.number('best', 0, 1e6, final),
    'planned_steps': kept.targets[0].total_steps,
    'total_steps': kept.last.total_steps,
    'targets': [vars(x) for x in kept.targets],
  }


def rows(facts: dict[str, Any]) -> list[tuple[str, str, str]]:
  """(what, planned, what happened; '' where it has not happened yet)."""
  used, reached = facts['used_s'], number(facts['bits_per_byte'], '.4f')
  expected = [
    number(facts[name], '.4f')
    for name in (
      'expected_bits_per_byte',
      'expected_for_steps',
      'expected_halfway',
    )
  ]
  return [
    (
      'time',
      duration(facts['budget_s']),
      '' if used is None else duration(used),
    ),
    ('bits/byte', ' and then '.join(filter(None, expected)), reached),
    ('steps', f'{facts["planned_steps"]:,}', f'{facts["total_steps"]:,}'),
  ]


def line(facts: dict[str, Any]) -> str:
  """The plan in one line: '10m: time 10:00 (9:48), bits/byte ...'."""
  parts = [
    f'{what} {planned or "?"}' + (f' -> {real}' if real else '')
    for what, planned, real in rows(facts)
  ]
  return f'{facts["budget"]}: {", ".join(parts)}'
