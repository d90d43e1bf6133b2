"""W/plan.json: the plan of a run with a budget, and what became of it.

    version   of this layout
    budget    as given, such as '10m'; seconds: the same as a number
    chosen    {key: value} of the config, as planned; what was given is absent
    plan      facts, predictions and reasons, for reports
    targets   [{step, total_steps, ...}]: the target in force from a step on
    end       how it ended: step, seconds used, bits per byte; {} before that

The targets are part of what a run is: one that resumes follows them, and moves
its target only beyond the last of them.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

from gpt.errors import UserError
from gpt.fields import Fields, read_fields
from gpt.files import write_atomic

FILE = 'plan.json'
VERSION = 1
MAX_BYTES = 1 << 22
MOST_TARGETS = 1000
MAX_STEP = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Target:
  """The number of steps of a run, from `step` completed steps on.

  Attributes:
    step: completed steps when it was set.
    total_steps: the target.
    why: 'planned', 'measured', 'late', 'early' or 'given'.
    elapsed_s: seconds of the run by then.
    step_s: measured seconds of a step; 0: not measured.
    expected: bits per byte for that many steps; 0: not known.
  """

  step: int
  total_steps: int
  why: str = 'planned'
  elapsed_s: float = 0.0
  step_s: float = 0.0
  expected: float = 0.0


@dataclasses.dataclass
class Record:
  """The content of plan.json; see the module."""

  budget: str
  seconds: float
  chosen: dict[str, Any]
  plan: dict[str, Any]
  targets: list[Target]
  end: dict[str, Any]

  def target_at(self, step: int) -> Target:
    """The target in force for the update of `step` completed steps."""
    return [x for x in self.targets if x.step <= step][-1]

  @property
  def last(self) -> Target:
    """The newest target."""
    return self.targets[-1]

  def write(self, workdir: str | os.PathLike) -> None:
    """Writes plan.json atomically."""
    tree = {'version': VERSION, **dataclasses.asdict(self)}
    text = json.dumps(tree, indent=1) + '\n'
    write_atomic(pathlib.Path(workdir) / FILE, text.encode())


def read(workdir: str | os.PathLike) -> Record | None:
  """The record of a run; None if it has no plan.json.

  Raises:
    UserError: the file is damaged, or of a newer version of rgpt.
  """
  path = pathlib.Path(workdir) / FILE
  if not os.path.lexists(path):
    return None
  fields = read_fields(path, max_bytes=MAX_BYTES)
  if fields.integer('version', 1, 2**31) > VERSION:
    raise UserError(
      f'{path} was written by a newer version of rgpt: use that one'
    )
  targets = [
    _target(Fields(x, f'{path}: targets[{i}]'))
    for i, x in enumerate(fields.items('targets', of=dict, most=MOST_TARGETS))
  ]
  if not targets or targets[0].step:
    raise fields.fault('targets', 'a target for step 0, and those after it')
  if any(a.step >= b.step for a, b in zip(targets, targets[1:])):
    raise fields.fault('targets', 'targets in the order of their steps')
  return Record(
    budget=fields.text('budget', most=40),
    seconds=fields.number('seconds', 0, 1e9),
    chosen=dict(fields.mapping('chosen').values),
    plan=dict(fields.mapping('plan').values),
    targets=targets,
    end=dict(fields.mapping('end').values),
  )


def _target(fields: Fields) -> Target:
  return Target(
    step=fields.integer('step', 0, MAX_STEP),
    total_steps=fields.integer('total_steps', 1, MAX_STEP),
    why=fields.text('why', most=40),
    elapsed_s=fields.number('elapsed_s', 0, 1e12),
    step_s=fields.number('step_s', 0, 1e12),
    expected=fields.number('expected', 0, 1e6, 0.0),
  )
