"""The clock of a budget, on a machine whose speed the test decides."""

import copy
import dataclasses
import math

import pytest

from configs import default
from gpt.errors import UserError
from gpt.planning import clock, record
from gpt.planning.clock import BudgetClock
from gpt.planning.record import Record, Target
from gpt.runs import metrics

BUDGET = 60.0


class FakeTime:
  """time.perf_counter and time.process_time, moved by hand."""

  def __init__(self):
    self.now = self.cpu = 1000.0

  def perf_counter(self):
    return self.now

  def process_time(self):
    return self.cpu

  def work(self, seconds):
    self.now += seconds
    self.cpu += seconds


@pytest.fixture
def time(monkeypatch):
  fake = FakeTime()
  monkeypatch.setattr(clock, 'time', fake)
  monkeypatch.setattr(metrics, 'time', fake)
  return fake


def planned(steps=1000, **changes):
  chosen = {'total_steps': steps, 'eval.every': 100, 'checkpoint.every': 500}
  return dataclasses.replace(
    Record('1m', BUDGET, chosen, {}, [Target(0, steps)], {}), **changes
  )


def train(kept, workdir, time, speed, *, first=0, started=10.0, pause=0.5):
  """Follows a clock to the end of the run; {step: target set there}.

  Args:
    speed: step -> its seconds.
    first: the step of the checkpoint from which the run resumes.
    started: seconds before the first step.
    pause: seconds of an eval.
  """
  config = default.get_config()
  config.total_steps = kept.last.total_steps
  config.eval.every = 100
  budget = BudgetClock(kept, workdir, time.now)
  began = time.now
  last = budget.begin(first, config.total_steps)
  time.work(started)
  budget.start(None)
  step, moved = first, {}
  while step < last:
    step += 1
    time.work(speed(step))
    target = budget.after(step, config, val_tokens=0)
    if target is not None:
      moved[step] = last = config.total_steps = target.total_steps
      config.update_from_flattened_dict(budget.intervals(target))
    if step == first + 1 or step % config.eval.every == 0 or step == last:
      budget.pause(step)
      time.work(pause)
      budget.resume(step > first + 1)
  time.work(1.0)
  budget.finish(step, {})
  return moved, time.now - began


def test_the_first_steps_set_the_target(time, tmp_path):
  kept = planned(steps=100_000)
  moved, used = train(kept, tmp_path, time, lambda step: 0.03)
  assert [x.why for x in kept.targets[:2]] == ['planned', 'measured']
  assert min(moved) < 60
  assert 0.9 * BUDGET < used < 1.03 * BUDGET
  assert record.read(tmp_path) == kept
  assert kept.end['step'] == kept.last.total_steps


@pytest.mark.parametrize('later, why', [(0.09, 'late'), (0.015, 'early')])
def test_a_machine_that_changes_its_speed_moves_the_target(
  time, tmp_path, later, why
):
  kept = planned()
  moved, used = train(
    kept, tmp_path, time, lambda step: 0.03 if step < 500 else later
  )
  assert why in [x.why for x in kept.targets]
  assert 0.85 * BUDGET < used < 1.03 * BUDGET
  assert len(kept.targets) < 40


def test_a_machine_that_becomes_slower_and_slower_ends_in_time(time, tmp_path):
  kept = planned()
  _, used = train(kept, tmp_path, time, lambda step: 0.03 + 3e-4 * step)
  assert 0.85 * BUDGET < used < 1.03 * BUDGET


@pytest.mark.parametrize('at', [0.5, 0.7, 0.8, 0.85, 0.9])
def test_some_slow_seconds_do_not_cost_the_rest_of_the_time(time, tmp_path, at):
  """35 of 900 s at less than half the speed, as on a shared machine."""
  kept = planned(steps=4500, seconds=900.0)
  began = time.now

  def speed(step):
    return 0.42 if at * 900 < time.now - began < at * 900 + 35 else 0.2

  _, used = train(kept, tmp_path, time, speed)
  assert 0.95 * 900 < used < 1.0 * 900


FACTS = {
  'now': {
    'tokens_seen': 2e6,
    'steps': 1000,
    'passes': 2.0,
    'bytes_per_token': 1.0,
    'vocab': 65,
    'options': {'model.n_embd': 96, 'model.n_layer': 4},
  },
  'text': {
    'share_trained': 1.0,
    'entropy': {'bits': 2.2, 'half': 2.35, 'quarter': 2.5},
  },
}
# A plan made when other numbers described a text.
OLDER = {
  **FACTS,
  'text': {'share_trained': 1.0, 'entropy': {'bits': 2.5, 'fewer': 2.8}},
}


def test_halfway_the_losses_of_a_run_correct_the_law(time, tmp_path):
  kept = planned(plan=copy.deepcopy(FACTS))
  budget = BudgetClock(kept, tmp_path, time.now)
  budget.begin(0, 1000)
  budget.start(None)
  lost = 1.1  # This text is 10 % harder than the law expects.
  for step in (400, 500, 600):
    budget.pause(step)
    excess = 1 + clock.EXCESS * (1 - step / 1000) / (1 - clock.HALFWAY)
    budget.evaluated(0.5, 1000, lost * excess * budget.expected(step))
    budget.resume(evaluated=True)
    assert ('halfway' in kept.plan) == (step >= 500)
  found = record.read(tmp_path).plan['halfway']
  assert found['step'] == 500
  assert found['bits_per_byte'] == pytest.approx(lost * budget.expected(1000))


def test_a_full_pass_reads_more_than_what_has_a_loss(time, tmp_path):
  ends = []
  for share in (1.0, 0.5):
    facts = copy.deepcopy(FACTS)
    facts['text']['share_trained'] = share
    kept = planned(plan=facts)
    budget, config = BudgetClock(kept, tmp_path, time.now), default.get_config()
    budget.begin(0, 1000)
    budget.start(None)
    budget.resume(evaluated=False)
    for step in range(1, 5):
      time.work(0.1)
      budget.after(step, config, val_tokens=0)
    for seconds in (9.0, 2.0):  # The first compiles.
      budget.evaluated(seconds, tokens=100, bits=2.0)
    step_s = budget.step_seconds()
    ends.append(budget.end_seconds(config, step_s, val_tokens=1000))
  # 100 tokens in 2 s; 100 that have a loss of 200.
  assert ends == pytest.approx([1.0 + 20.0, 1.0 + 10.0])


@pytest.mark.parametrize(
  'facts, bits',
  [({'now': {}, 'text': 'edited'}, 2.0), (OLDER, 2.0), (FACTS, math.nan)],
)
def test_nothing_is_foreseen_without_a_plan_or_a_loss(
  time, tmp_path, facts, bits
):
  kept = planned(plan=copy.deepcopy(facts))
  budget = BudgetClock(kept, tmp_path, time.now)
  budget.begin(0, 1000)
  budget.start(None)
  budget.pause(500)
  budget.evaluated(0.5, 1000, bits)
  assert 'halfway' not in kept.plan


def test_a_resumed_run_moves_its_target_at_the_same_steps(time, tmp_path):
  kept = planned()
  moved, _ = train(
    kept, tmp_path, time, lambda step: 0.03 if step < 500 else 0.06
  )
  again = copy.deepcopy(record.read(tmp_path))
  first = sorted(moved)[1] - 1  # Before the second move; on another machine.
  replayed, _ = train(again, tmp_path, time, lambda _: 0.2, first=first)
  assert replayed == {k: x for k, x in moved.items() if k > first}
  assert again.targets == kept.targets


def test_a_target_that_was_given_stays(time, tmp_path):
  kept = planned(targets=[Target(0, 300, 'given')])
  moved, used = train(kept, tmp_path, time, lambda step: 1.0)
  assert not moved and kept.end['step'] == 300 and used > 300


def test_steps_added_to_a_finished_run_are_not_timed(time, tmp_path):
  kept = planned()
  train(kept, tmp_path, time, lambda step: 0.03)
  done = kept.end['step']
  budget = BudgetClock(kept, tmp_path, time.now)
  assert budget.begin(done, done + 50) == done + 50
  assert kept.last == Target(done, done + 50, 'given')


def test_time_in_which_the_process_was_stopped_does_not_count(time, tmp_path):
  kept, stopped = planned(), 100.0

  def speed(step):
    if step == 400:
      time.now += stopped  # No processor time: Ctrl-Z.
    return 0.03

  _, used = train(kept, tmp_path, time, speed)
  assert 0.9 * BUDGET < used - stopped < 1.03 * BUDGET
  assert kept.end['elapsed_s'] < 1.03 * BUDGET


def test_a_damaged_plan_names_the_field(tmp_path):
  kept = planned(targets=[Target(0, 10), Target(7, 9, 'late')])
  kept.write(tmp_path)
  path = tmp_path / record.FILE
  assert record.read(tmp_path) == kept
  good = path.read_text()
  for change, words in {
    ('"version": 1', '"version": 2'): 'newer version',
    ('"step": 7', '"step": 0'): 'in the order of their steps',
    ('"total_steps": 9', '"total_steps": -9'): 'targets\\[1\\]: total_steps',
  }.items():
    path.write_text(good.replace(*change))
    with pytest.raises(UserError, match=words):
      record.read(tmp_path)
  path.unlink()
  assert record.read(tmp_path) is None
