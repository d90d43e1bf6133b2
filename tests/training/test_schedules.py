"""Schedules against tables of values; invalid options are rejected."""

import math

import jax
import numpy as np
import pytest

from configs import default
from gpt.errors import UserError
from gpt.training import schedules


def make(name, **changes):
  config = default.get_config()
  config.update({'lr': 1.0, 'min_lr': 0.1, 'total_steps': 100})
  config.opt.schedule = name
  for key, value in changes.items():
    group = config if key in config else config.opt
    group[key] = value
  return schedules.from_config(config)


def with_warmup(name, **changes):
  return make(name, warmup_steps=0 if name == 'randy' else 10, **changes)


# Each row: schedule, options, {0-based step: learning rate}.
TABLE = [
  # RandyGPT: constant for 60 %, half a cosine to min_lr, then min_lr.
  (
    'randy',
    {},
    {
      0: 1.0,
      1: 1.0,
      59: 1.0,
      60: 1.0,
      70: 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2,
      80: 0.55,
      100: 0.1,
      150: 0.1,
    },
  ),
  ('randy', {'decay_fraction': 1.0}, {0: 1.0, 50: 0.55, 100: 0.1}),
  ('randy', {'decay_fraction': 0.0}, {0: 1.0, 99: 1.0}),
  ('randy', {'total_steps': 1000}, {600: 1.0, 800: 0.55, 1000: 0.1}),
  # microgpt: the first step uses lr / warmup, the last of warmup the peak.
  (
    'linear_warmup',
    {'warmup_steps': 20},
    {
      0: 0.05,
      1: 0.1,
      18: 0.95,
      19: 1.0,
      20: 1.0,
      60: 0.5,
      99: 1 / 80,
      100: 0.0,
      120: 0.0,
    },
  ),
  ('linear_warmup', {'warmup_steps': 0}, {0: 1.0, 50: 0.5, 100: 0.0}),
  ('linear_warmup', {'warmup_steps': 1}, {0: 1.0, 1: 1.0}),
  # Fewer steps than warmup: below the peak, not negative.
  ('linear_warmup', {'warmup_steps': 200}, {0: 1 / 200, 99: 0.5}),
  (
    'wsd',
    {'warmup_steps': 10},
    {
      0: 0.1,
      4: 0.5,
      9: 1.0,
      10: 1.0,
      60: 1.0,
      80: 0.55,
      100: 0.1,
      200: 0.1,
    },
  ),
  (
    'wsd',
    {'warmup_steps': 0, 'decay_fraction': 0.2},
    {
      0: 1.0,
      79: 1.0,
      80: 1.0,
      90: 0.55,
      100: 0.1,
    },
  ),
  # Warmup and decay overlap.
  (
    'wsd',
    {'warmup_steps': 10, 'decay_fraction': 1.0},
    {
      0: 0.1,
      4: 0.5,
      50: 0.55,
      100: 0.1,
    },
  ),
]


@pytest.mark.parametrize('name, options, table', TABLE)
def test_schedule_equals_its_table(name, options, table):
  schedule = jax.jit(make(name, **options))
  steps = np.array(list(table), np.int32)
  given = [float(schedule(step)) for step in steps]
  np.testing.assert_allclose(given, list(table.values()), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('name', ['randy', 'linear_warmup', 'wsd'])
@pytest.mark.parametrize('decay_fraction', [0.4, 0.95, 1.0])
def test_rate_is_continuous_and_bounded(name, decay_fraction):
  schedule = jax.jit(with_warmup(name, decay_fraction=decay_fraction))
  rates = np.array([float(schedule(np.int32(s))) for s in range(120)])
  assert 0.9 < rates.max() < 1 + 1e-6 and rates.min() >= 0.0
  # The warmup is steepest: a tenth of the peak per step.
  assert np.abs(np.diff(rates)).max() < 0.1 + 1e-6


@pytest.mark.parametrize('name', ['randy', 'linear_warmup', 'wsd'])
def test_python_and_traced_steps_agree(name):
  schedule = with_warmup(name)
  for step in (0, 5, 70, 100):
    assert float(schedule(step)) == pytest.approx(
      float(jax.jit(schedule)(np.int32(step))), rel=1e-6
    )


@pytest.mark.parametrize('name', ['randy', 'linear_warmup', 'wsd'])
def test_another_target_needs_no_other_program(name):
  schedule = jax.jit(with_warmup(name))
  for total in (100, 60, 250):
    usual = with_warmup(name, total_steps=total)
    for step in (0, 5, 40, 59, 99):
      rate = float(schedule(np.int32(step), np.int32(total)))
      assert rate == pytest.approx(float(usual(step)), rel=1e-5, abs=1e-6)
  assert schedule._cache_size() == 1


@pytest.mark.parametrize(
  'lr, scale, scaled',
  [
    (1.0, 1.0, 1.0),
    (1.0, 0.5, 0.5),
    (0.4, 0.125, 0.1),  # Not below min_lr.
    (0.1, 0.5, 0.1),
    (0.02, 0.5, 0.02),  # Not above the schedule (early in a warmup).
  ],
)
def test_plateau_factor_stops_at_min_lr(lr, scale, scaled):
  assert float(schedules.scale_lr(lr, scale, 0.1)) == pytest.approx(scaled)


@pytest.mark.parametrize(
  'options, words',
  [
    ({'lr': 0.0}, 'lr 0.0 must be positive'),
    ({'lr': -1.0}, 'lr -1.0 must be positive'),
    ({'lr': 0.01}, 'min_lr 0.1 must be between 0 and lr 0.01; set both'),
    ({'min_lr': -0.1}, 'min_lr -0.1 must be between 0 and lr'),
    ({'warmup_steps': -1}, 'opt.warmup_steps -1'),
    ({'decay_fraction': 1.5}, 'opt.decay_fraction 1.5 is not in [0, 1]'),
  ],
)
def test_invalid_options_are_rejected(options, words):
  with pytest.raises(UserError) as error:
    make('wsd', **options)
  assert words in str(error.value)


def test_unknown_schedule_lists_the_known_ones():
  with pytest.raises(UserError, match="'cosine' is not known; allowed: randy"):
    make('cosine')
