"""ReduceLROnPlateau by table: patience, cuts, the floor, the early stop."""

import dataclasses
import math

import pytest

from configs import default
from gpt.training import plateau
from gpt.training.plateau import Plateau


def options(patience=3, reductions=2, factor=0.5):
  config = default.get_config()
  config.opt.plateau_patience = patience
  config.opt.plateau_max_reductions = reductions
  config.opt.plateau_factor = factor
  return config.opt


def play(losses, opt, state=None, first=1):
  """[(state, message)] after each of the losses, evaluated 10 steps apart."""
  state = state or Plateau()
  history = []
  for i, loss in enumerate(losses, first):
    state, message = plateau.update(state, opt, loss, 10 * i)
    history.append((state, message))
  return history


def test_new_best_is_remembered_with_its_step():
  state, message = play([3.0, 2.0, 2.5], options())[-1]
  assert (state.best_loss, state.best_step) == (2.0, 20)
  assert state.evals_since_best == 1 and not message


def test_equal_loss_is_no_new_best():
  state, _ = play([2.0, 2.0], options())[-1]
  assert state.best_step == 10 and state.evals_since_best == 1


def test_patience_then_cuts_then_early_stop():
  history = play([1.0] + [2.0] * 9, options(patience=3, reductions=2))
  cuts = [state.reductions for state, _ in history]
  assert cuts == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
  stops = [state.stopped for state, _ in history]
  assert stops == [False] * 9 + [True]
  messages = [message for _, message in history if message]
  assert messages == [
    'plateau: no new best in 3 evals; peak learning rate x 0.5 (reduction 1 '
    'of 2)',
    'plateau: no new best in 3 evals; peak learning rate x 0.5 (reduction 2 '
    'of 2)',
    'early stop at step 100: no new best in 3 evals after 2 reductions of the '
    'learning rate (best 1.0000 at step 10)',
  ]


def test_new_best_restores_patience_but_not_the_rate():
  history = play([1.0, 2.0, 2.0, 2.0, 0.5, 2.0, 2.0], options(patience=3))
  state, _ = history[-1]
  assert state.reductions == 1 and state.evals_since_best == 2
  assert plateau.lr_scale(state, options()) == 0.5


def test_worse_than_best_after_a_cut_is_still_no_new_best():
  history = play([1.0, 2.0, 2.0, 2.0, 1.5, 1.4, 1.3], options(patience=3))
  assert history[-1][0].reductions == 2


def test_scale_is_factor_to_the_number_of_reductions():
  opt = options(factor=0.3)
  scales = [plateau.lr_scale(Plateau(reductions=n), opt) for n in range(3)]
  assert scales == pytest.approx([1.0, 0.3, 0.09])


def test_patience_zero_is_off():
  history = play([1.0] + [2.0] * 100, options(patience=0))
  assert not any(message for _, message in history)
  assert history[-1][0].reductions == 0 and not history[-1][0].stopped


def test_nan_is_never_a_best():
  state, _ = play([math.nan, 2.0, math.nan], options())[-1]
  assert (state.best_loss, state.evals_since_best) == (2.0, 1)


@pytest.mark.parametrize('cut', range(1, 10))
def test_state_saved_and_restored_goes_on_as_if_never_stopped(cut):
  losses = [1.0] + [2.0] * 5 + [0.5] + [2.0] * 6
  opt = options()
  whole = play(losses, opt)
  saved = dataclasses.asdict(whole[cut - 1][0])
  resumed = play(losses[cut:], opt, Plateau(**saved), first=cut + 1)
  assert resumed == whole[cut:]
