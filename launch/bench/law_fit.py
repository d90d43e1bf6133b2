"""Fits the law of planning to its table: gpt/planning/coefficients.py."""

import csv
import dataclasses
import json
import math
import pathlib
import statistics
from collections.abc import Sequence

import numpy as np

from gpt.planning import recipe
from gpt.planning.entropy import Entropy
from gpt.planning.law import Coefficients, bits_per_byte
from gpt.planning.text import VOCABULARIES

TABLE = pathlib.Path(__file__).parents[2] / 'docs' / 'figures' / 'law.csv'

# Where the fit starts, and what it stays near where the runs do not decide.
PRIOR = Coefficients(
  floor=0.4,
  per_parameter=0.1,
  parameter_power=0.4,
  per_byte=0.3,
  byte_power=0.4,
  useful_passes=8.0,
  parameters_per_byte=3.0,
  entropy_power=1.0,
  yield_power=0.0,
  level=0.0,
  pieces=0.0,
  per_entry=10.0,
)
# The others are fitted as logarithms.
SIGNED = ('yield_power', 'level', 'pieces')
# Standard deviations: of a loss's logarithm, of constants around PRIOR.
NOISE, WIDTH = 0.02, {'yield_power': 10.0, 'entropy_power': 0.5}
# Residuals of more standard deviations count less than their square: a text
# that is unlike the others must not bend the law for them.
OUTLYING = 2.0
# Weight of the residual of a run that was planned: others are to be.
PLANNED = 2.0
# What a run with an older recipe loses, relative to today's (docs/results.md):
# Muon instead of NorMuon, by three seeds of speedrun_1min with either; and what
# was before exclusive attention, and gates, by those and runs of 8 units.
WORSE = {'exclusive': 0.0, 'normuon': 0.006, 'muon': 0.0172}
# Of a vocabulary of characters, about; the table has 0 for all of them.
CHARACTERS = 70
# Texts of one kind: leaving one out leaves out the others too.
KINDS = {
  'shakespeare_200k': 'shakespeare',
  'plays': 'shakespeare',
  'sotu_500k': 'sotu',
  'kjv_400k': 'kjv',
  'kjv_json': 'kjv',
  'tinyshakespeare': 'shakespeare',
  'chitchat_chat': 'chitchat',
  'oasst1_400k': 'oasst1',
  'oasst1_chat': 'oasst1',
  'chitchat_400k': 'chitchat',
  'stdlib_400k': 'stdlib',
}


@dataclasses.dataclass(frozen=True)
class Row:
  """A run of the table."""

  text: str
  entropy: Entropy
  parameters: float
  tokens_seen: float
  text_tokens: float
  bytes_per_token: float
  vocab: float
  measured: float
  worse: float
  weight: float

  @property
  def kind(self) -> str:
    return KINDS.get(self.text, self.text)

  def predicted(self, coefficients: Coefficients) -> float:
    """Bits per byte by the law, with the recipe of the run."""
    return (1 + self.worse) * bits_per_byte(
      self.parameters,
      self.tokens_seen,
      self.text_tokens,
      self.bytes_per_token,
      self.vocab,
      self.entropy,
      coefficients,
    )

  def residual(self, coefficients: Coefficients) -> float:
    """log(predicted / measured): 0.01 is 1 % too high."""
    return math.log(self.predicted(coefficients) / self.measured)


def read_table(path: pathlib.Path) -> list[Row]:
  """The runs of a table that launch.bench.law made."""
  with path.open(encoding='utf-8') as file:
    return [_row(x) for x in csv.DictReader(file) if _is_planned_for(x)]


def _is_planned_for(values: dict[str, str]) -> bool:
  """Whether a plan considers the vocabulary of a run for its text.

  Pieces tell less of a short text than the law says: of 228 KB of names, a run
  with them loses 13 % more than one with characters.
  """
  least = VOCABULARIES.get(int(values['vocab']), 0)
  return int(values['text_bytes']) >= least


def _row(values: dict[str, str]) -> Row:
  share = float(values['share_trained'])
  return Row(
    text=values['text'],
    entropy=Entropy(
      *(float(values[key]) for key in ('bits', 'half', 'quarter'))
    ),
    parameters=recipe.block_parameters(
      int(values['width']), int(values['depth'])
    ),
    tokens_seen=share * float(values['tokens_seen']),
    text_tokens=share * float(values['text_tokens']),
    bytes_per_token=float(values['bytes_per_token']),
    vocab=int(values['vocab']) or CHARACTERS,
    measured=float(values['bits_per_byte']),
    worse=WORSE[values['recipe']],
    weight=PLANNED if values['budget'] else 1.0,
  )


def fit(rows: Sequence[Row]) -> Coefficients:
  """Least squares of the residuals but for outliers, with PRIOR."""
  from scipy import optimize

  start = _vector(PRIOR)
  names = [field.name for field in dataclasses.fields(Coefficients)]
  widths = np.array([WIDTH.get(name, 1.0) for name in names])

  def errors(vector):
    coefficients = _coefficients(vector)
    residuals = [
      row.weight * row.residual(coefficients) / NOISE for row in rows
    ]
    return np.append(residuals, (vector - start) / widths)

  found = optimize.least_squares(
    errors, start, loss='soft_l1', f_scale=OUTLYING
  )
  return _coefficients(found.x)


def left_out(rows: Sequence[Row]) -> dict[str, list[float]]:
  """{kind of text: residuals under a fit to all other kinds}."""
  found = {}
  kinds = sorted({row.kind for row in rows})
  for kind in kinds if len(kinds) > 1 else []:
    others = fit([row for row in rows if row.kind != kind])
    found[kind] = [row.residual(others) for row in rows if row.kind == kind]
  return found


def _vector(coefficients: Coefficients) -> np.ndarray:
  values = dataclasses.asdict(coefficients)
  return np.array(
    [x if k in SIGNED else math.log(x) for k, x in values.items()]
  )


def _coefficients(vector: np.ndarray) -> Coefficients:
  names = [field.name for field in dataclasses.fields(Coefficients)]
  return Coefficients(
    *(float(x if k in SIGNED else np.exp(x)) for k, x in zip(names, vector))
  )


def write(coefficients: Coefficients, rows: int, path: pathlib.Path) -> None:
  """Writes gpt/planning/coefficients.py."""
  lines = [
    f'"""Constants of law.py, fitted to {rows} runs by launch.bench.law."""',
    '',
    'COEFFICIENTS = {',
    *(
      f"  '{key}': {value:.5g},"
      for key, value in dataclasses.asdict(coefficients).items()
    ),
    '}',
    '',
  ]
  path.write_text('\n'.join(lines), encoding='utf-8')


def draw(path: pathlib.Path, rows: Sequence[Row]) -> None:
  """A point per run: predicted by a fit without its text, and measured."""
  from gpt.reports import plots
  from gpt.reports.charts import COLORS, GRID

  kinds = sorted({row.kind for row in rows})
  fits = {k: fit([row for row in rows if row.kind != k]) for k in kinds}

  def points(axes):
    ends = np.array([0.4, 3.2])
    axes.fill_between(ends, 0.96 * ends, 1.04 * ends, color=GRID)
    for i, kind in enumerate(kinds):
      own = [row for row in rows if row.kind == kind]
      axes.plot(
        [row.predicted(fits[kind]) for row in own],
        [row.measured for row in own],
        'os^D'[i // len(COLORS)],
        color=COLORS[i % len(COLORS)],
        markersize=5,
        alpha=0.75,
        label=kind,
      )
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.set_xlabel('predicted bits per byte, by runs on other texts')
    axes.set_ylabel('measured')
    axes.legend(frameon=False)

  title = 'Predicted and measured loss of texts that the fit has not seen'
  plots.write_png(path, points, title, size=(6.2, 5.2))


def describe(rows: Sequence[Row], coefficients: Coefficients) -> dict:
  """Prints the residuals; their summary."""
  print(
    f'{"text":18s}{"params":>9s}{"tokens":>9s}{"passes":>8s}'
    f'{"bytes/tok":>10s}{"bits/byte":>10s}{"law":>8s}{"off":>8s}'
  )
  for row in rows:
    print(
      f'{row.text:18s}{row.parameters / 1e6:8.2f}M{row.tokens_seen / 1e6:8.2f}M'
      f'{row.tokens_seen / row.text_tokens:8.2f}{row.bytes_per_token:10.2f}'
      f'{row.measured:10.4f}{row.predicted(coefficients):8.4f}'
      f'{100 * math.expm1(row.residual(coefficients)):+7.1f}%'
    )
  own = [abs(row.residual(coefficients)) for row in rows]
  apart = left_out(rows)
  for kind, residuals in apart.items():
    print(
      f'without {kind}: median off by '
      f'{100 * math.expm1(statistics.median(residuals)):+.1f} %, at most '
      f'{100 * max(abs(r) for r in residuals):.1f} %'
    )
  unseen = [abs(r) for residuals in apart.values() for r in residuals]
  summary = {
    'runs': len(rows),
    'median_error': statistics.median(own),
    'largest_error': max(own),
    'median_error_of_unseen_texts': statistics.median(unseen),
    'unseen_within_4_percent': sum(r < 0.04 for r in unseen) / len(unseen),
  }
  print(json.dumps({k: round(v, 4) for k, v in summary.items()}))
  return summary
