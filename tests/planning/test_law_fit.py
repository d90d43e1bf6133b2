"""The constants of the law are those of its table, and they predict it."""

import dataclasses
import statistics

import pytest

from gpt.planning.coefficients import COEFFICIENTS
from gpt.planning.law import Coefficients
from launch.bench import law_fit

ROWS = law_fit.read_table(law_fit.TABLE)


def test_the_table_has_the_runs_that_a_law_needs():
  assert len(ROWS) >= 40
  assert len({row.kind for row in ROWS}) >= 5
  assert min(row.text_tokens for row in ROWS) < 2e5
  assert max(row.text_tokens for row in ROWS) > 1e7
  assert max(row.tokens_seen / row.text_tokens for row in ROWS) > 20
  often = {row.kind for row in ROWS if row.tokens_seen > 7 * row.text_tokens}
  assert len(often) >= 5  # Or one text says what reading it again is worth.
  assert any(row.bytes_per_token > 2 for row in ROWS)


def test_the_fit_of_the_table_gives_the_constants():
  fitted = dataclasses.asdict(law_fit.fit(ROWS))
  assert fitted == pytest.approx(COEFFICIENTS, rel=0.02, abs=0.01)


def test_the_law_predicts_its_runs():
  coefficients = Coefficients(**COEFFICIENTS)
  errors = [abs(row.residual(coefficients)) for row in ROWS]
  assert statistics.median(errors) < 0.0135
  assert max(errors) < 0.165


def test_the_law_predicts_texts_it_has_not_seen():
  residuals = law_fit.left_out(ROWS)
  errors = [abs(r) for rs in residuals.values() for r in rs]
  assert statistics.median(errors) < 0.021
  assert sum(e < 0.04 for e in errors) >= 0.82 * len(errors)
  assert sum(e < 0.08 for e in errors) >= 0.95 * len(errors)
