"""One HTML page about a run: curves, numbers, samples, configuration.

The page is one file without scripts that loads nothing: charts are inline SVG.
It can be made while the run is still going. Every value of the run passes
through `markup.element`, which escapes it.
"""

import math
import os
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

from gpt.errors import UserError
from gpt.model.config import describe_options
from gpt.model.options import FUNCTION, SHAPE
from gpt.reports import charts, plots
from gpt.reports.markup import Markup, element, join
from gpt.reports.series import Points, smooth, thin
from gpt.reports.tables import config_table, eval_table, origin, plan_table
from gpt.runs import metrics
from gpt.runs.metrics import is_number, number
from gpt.runs.record import RunRecord, read_run

MAX_SAMPLES = 40
MARK = '<meta name="generator" content="rgpt">'  # Of every report.
SMALL = {'width': 480, 'height': 240}  # Pixels of the charts below the first.


def report(workdir: str | os.PathLike, defaults: dict | None = None) -> str:
  """The page.

  Args:
    workdir: of a run.
    defaults: the default configuration (nested dicts), to show what differs.

  Raises:
    UserError: see read_run; a damaged config.json; matplotlib is missing.
  """
  record = read_run(workdir)
  css = pathlib.Path(__file__).parent / 'report.css'
  name = record.workdir.resolve().name
  head = join(
    Markup('<meta charset="utf-8">'),
    Markup(MARK),
    Markup(
      '<meta name="viewport" content="width=device-width, initial-scale=1">'
    ),
    element('title', f'{name}: training report'),
    element('style', Markup(css.read_text(encoding='utf-8'))),
  )
  body = [
    header(record, name),
    tiles(record),
    plan_table(record),
    element('h2', 'Curves'),
    curves(record),
    samples(record),
    element('h2', 'Evaluations'),
    eval_table(record),
    element('h2', 'Configuration'),
    config_table(record.config, defaults),
    element('h2', 'Origin'),
    origin(record),
  ]
  page = element(
    'html',
    element('head', head),
    element('body', *(join(Markup('\n'), part) for part in body)),
    lang='en',
  )
  return f'<!doctype html>\n{page}\n'


def header(record: RunRecord, name: str) -> Markup:
  """Name, size and state of the run."""
  try:
    options = describe_options(record.config['model'], (SHAPE, FUNCTION))
  except (TypeError, ValueError) as e:
    raise UserError(
      f'the config.json of {record.workdir} is damaged: in "model", {e}'
    ) from e
  target = record.config['total_steps']
  finished = is_number(target) and record.step >= target
  done = 'finished' if finished else 'running or interrupted'
  size = ''
  if record.parameters:
    size = f'{metrics.count(record.parameters)} parameters, '
  lead = (
    f'{size}{", ".join(options)}; step {record.step:,} of '
    f'{number(target, ",")}, {record.end.get("outcome") or done}'
  )
  return join(element('h1', name), element('p', lead, class_='lead'))


def tiles(record: RunRecord) -> Markup:
  """The numbers a reader looks for first."""
  found = []

  def tile(name: str, value: str, note: str = '') -> None:
    small = element('small', note) if note else ''
    found.append(
      element('div', element('dt', name), element('dd', value, small))
    )

  val = [(y, x) for x, y in record.series('val_loss') if is_number(y)]
  if val:
    loss, step = min(val)
    tile(
      'best validation loss',
      f'{loss:.4f}',
      f'nats/token at step {step:,}, estimate; perplexity {_exp(loss):.4g}',
    )
  for which in ('best', 'final'):
    nats = record.end.get(f'full_{which}_nats_per_token')
    if nats is not None:
      bits = record.end.get(f'full_{which}_bits_per_byte')
      note = f', {number(bits, ".4f")} bits/byte' if bits else ''
      tile(
        f'full pass, {which} weights',
        number(nats, '.4f'),
        f'nats/token{note}',
      )
      break
  train = record.last('train_loss')
  if train is not None:
    tile('training loss', number(train, '.4f'), 'nats/token, last interval')
  speed = [y for _, y in record.series('tokens_per_s') if is_number(y) and y]
  if speed:
    ms = [y for _, y in record.series('ms_per_step') if is_number(y) and y]
    tile(
      'tokens per second',
      metrics.count(statistics.median(speed)),
      f'median; {statistics.median(ms):.4g} ms/step' if ms else 'median',
    )
  elapsed = record.last('elapsed_s')
  if is_number(elapsed):
    tile('time', metrics.duration(elapsed), 'including evaluations')
  batch = record.config['batch_size']
  length = record.config['model']['block_size']
  if is_number(batch) and is_number(length):
    tile(
      'tokens seen',
      metrics.count(record.step * batch * length),
      f'at most {batch} x {length} a step',
    )
  if record.parameters:
    tile(
      'parameters',
      metrics.count(record.parameters),
      f'vocabulary {number(record.vocab_size, ",")}',
    )
  return element('dl', *found, class_='tiles')


def _exp(x: float) -> float:
  return math.exp(min(x, 700))


def curves(record: RunRecord) -> Markup:
  """The loss chart, and the small charts below it."""
  val = record.series('val_loss')
  runs = {'': record.lines}
  big = _figure(
    'Loss in nats/token',
    'training and validation loss by step',
    [*record.series('loss'), *val],
    lambda axes: plots.loss_curves(axes, runs),
    hover=_hover(val, 'validation'),
    width=780,
    height=340,
  )
  note = 'Points show their numbers under the mouse.'
  if record.config['opt']['ema_decay']:
    note += ' Validation uses the averaged weights.'
  small = [
    _small(record, 'Learning rate', 'lr', 2),
    _small(
      record, 'Tokens per second', 'tokens_per_s', 3, dots=True, zero=True
    ),
    _small(record, 'Gradient norm', 'grad_norm', 0, log_y=True),
    _small(
      record,
      'Validation, bits per byte',
      'val_bits_per_byte',
      1,
      dots=True,
    ),
  ]
  return join(
    element('div', big, class_='charts'),
    element('p', note, class_='note'),
    element('div', *small, class_='charts small'),
  )


def _small(
  record: RunRecord,
  title: str,
  key: str,
  color: int,
  *,
  dots: bool = False,
  zero: bool = False,
  log_y: bool = False,
) -> Markup:
  """The chart of one value by step.

  Args:
    color: index into charts.COLORS.
    dots: mark the values, and show them under the mouse.
    zero: the y axis starts at 0.
    log_y: a logarithmic y axis, with the smoothed curve over the pale one.
  """
  points = record.series(key)
  if log_y:
    points = [(x, y if is_number(y) and y > 0 else None) for x, y in points]

  def draw(axes: Any) -> None:
    style = {'color': charts.COLORS[color], 'linewidth': 1.6}
    if log_y:
      plots.line(axes, points, **style | {'linewidth': 0.8, 'alpha': 0.28})
      plots.line(axes, smooth(points), **style)
    else:
      marker = {'marker': 'o', 'markersize': 3.5} if dots else {}
      plots.line(axes, points, **style, **marker)
    if zero:
      axes.set_ylim(bottom=0)
    charts.short_numbers(axes, log_y)
    axes.set_xlabel('step')
    axes.grid(axis='y')

  return _figure(
    title,
    f'{title.lower()} by step',
    points,
    draw,
    hover=_hover(points, '') if dots else [],
    **SMALL,
  )


def _hover(points: Points, name: str) -> list[tuple[float, float, str]]:
  return [
    (x, y, f'step {x:,}: {name} {y:.5g}'.replace('  ', ' '))
    for x, y in thin(points)
    if is_number(y)
  ]


def _figure(
  title: str, label: str, points: Points, draw: Callable, **size
) -> Markup:
  """A chart with its title, or a note while there is nothing to draw."""
  chart = element('p', 'no numbers yet', class_='empty')
  if any(is_number(y) for _, y in points):
    chart = charts.svg(draw, label, **size)
  return element('figure', element('figcaption', title), chart)


def samples(record: RunRecord) -> Markup:
  """Texts the model wrote during training; the last one is open."""
  if not record.samples:
    return Markup('')
  val = dict(record.series('val_loss'))
  shown = record.samples
  if len(shown) > MAX_SAMPLES:  # Evenly, with the first and the last.
    keep = {
      round(i * (len(shown) - 1) / (MAX_SAMPLES - 1))
      for i in range(MAX_SAMPLES)
    }
    shown = [shown[i] for i in sorted(keep)]
  parts = []
  for i, (step, text) in enumerate(shown):
    loss = val.get(step)
    note = '' if loss is None else f', validation loss {number(loss, ".4f")}'
    parts.append(
      element(
        'details',
        element('summary', f'step {step:,}{note}'),
        element('pre', text),
        open=i == len(shown) - 1,
      )
    )
  return join(element('h2', 'Samples over time'), *parts)
