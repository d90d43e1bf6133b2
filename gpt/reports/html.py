"""One HTML page about a run: curves, numbers, samples, configuration.

The page is one file that needs no network, no script and no library: charts
are drawn here as SVG. It can be made while the run is still going.
"""

import html
import json
import math
import pathlib
import re
import statistics

from gpt.model.config import FUNCTION, SHAPE, describe_options
from gpt.reports.svg_chart import Series, line_chart, loss_range, smooth
from gpt.runs import metrics
from gpt.runs import workdir as run
from gpt.runs.info import versions
from gpt.runs.record import RunRecord, read_run

MAX_SAMPLES = 40


def report(workdir, defaults: dict | None = None) -> str:
  """The page.

  Args:
    workdir: of a run.
    defaults: the default configuration (nested dicts), to show what differs.

  Raises:
    UserError: see read_run.
  """
  record = read_run(workdir)
  css = pathlib.Path(__file__).parent / 'report.css'
  name = record.workdir.resolve().name
  sections = [
    header(record, name),
    tiles(record),
    '<h2>Curves</h2>',
    curves(record),
    *([samples(record)] if record.samples else []),
    '<h2>Evaluations</h2>',
    eval_table(record),
    '<h2>Configuration</h2>',
    config_table(record.config, defaults),
    '<h2>Where it comes from</h2>',
    origin(record),
  ]
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<title>{esc(name)}: training report</title>'
    f'<style>{css.read_text(encoding="utf-8")}</style></head><body>\n'
    + '\n'.join(sections)
    + '\n</body></html>\n'
  )


def esc(value) -> str:
  """Text for HTML. Control characters, which HTML has not, as U+FFFD."""
  text = re.sub(r'[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]', '\ufffd', str(value))
  return html.escape(text)


def header(record: RunRecord, name: str) -> str:
  options = describe_options(record.config['model'], (SHAPE, FUNCTION))
  target = record.config['total_steps']
  done = 'finished' if record.step >= target else 'under way or interrupted'
  state = record.end.get('outcome') or done
  size = ''
  if record.parameters:
    size = f'{metrics.count(record.parameters)} parameters, '
  return (
    f'<h1>{esc(name)}</h1><p class="lead">{size}'
    f'{esc(", ".join(options))}; '
    f'step {record.step:,} of {target:,}, {esc(state)}</p>'
  )


def tiles(record: RunRecord) -> str:
  """The numbers one looks for first."""
  found = []

  def tile(name, value, note=''):
    small = f'<small>{esc(note)}</small>' if note else ''
    found.append(f'<div><dt>{esc(name)}</dt><dd>{esc(value)}{small}</dd></div>')

  val = [(y, x) for x, y in record.series('val_loss') if y is not None]
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
      note = f'nats/token, {bits:.4f} bits/byte' if bits else 'nats/token'
      tile(f'full pass, {which} weights', f'{nats:.4f}', note)
      break
  train = record.last('train_loss')
  if train is not None:
    tile('training loss', f'{train:.4f}', 'nats/token, last interval')
  speed = [y for _, y in record.series('tokens_per_s') if y]
  if speed:
    ms = [y for _, y in record.series('ms_per_step') if y]
    tile(
      'tokens per second',
      metrics.count(statistics.median(speed)),
      f'median; {statistics.median(ms):.4g} ms/step' if ms else 'median',
    )
  elapsed = record.last('elapsed_s')
  if elapsed is not None:
    tile('time', metrics.duration(elapsed), 'evaluations included')
  model, config = record.config['model'], record.config
  seen = record.step * config['batch_size'] * model['block_size']
  tile(
    'tokens seen',
    metrics.count(seen),
    f'{config["batch_size"]} x {model["block_size"]} a step, at most',
  )
  if record.parameters:
    tile(
      'parameters',
      metrics.count(record.parameters),
      f'vocabulary {record.vocab_size:,}',
    )
  return f'<dl class="tiles">{"".join(found)}</dl>'


def _exp(x: float) -> float:
  return math.exp(min(x, 700))


def curves(record: RunRecord) -> str:
  loss, val = record.series('loss'), record.series('val_loss')
  smoothed = smooth(loss)
  main = [
    Series('', loss, 0, 'faint'),
    Series('training (smoothed)', smoothed, 0),
    Series('validation', val, 1, 'dots'),
  ]
  ema_note = ''
  if record.config['opt']['ema_decay']:
    ema_note = ' Validation is of the averaged weights.'
  big = _figure(
    'Loss in nats/token',
    line_chart(
      main,
      label='training and validation loss by step',
      y_label='nats/token',
      y_range=loss_range(smoothed, val),
      width=780,
      height=340,
    ),
  )
  small = [
    _figure(
      'Learning rate',
      line_chart(
        [Series('', record.series('lr'), 2)],
        label='learning rate by step',
        width=480,
        height=240,
      ),
    ),
    _figure(
      'Tokens per second',
      line_chart(
        [Series('', record.series('tokens_per_s'), 3, 'dots')],
        label='tokens per second by step',
        width=480,
        height=240,
        y_range=_from_zero(record.series('tokens_per_s')),
      ),
    ),
    _figure(
      'Gradient norm',
      line_chart(
        [
          Series('', record.series('grad_norm'), 0, 'faint'),
          Series('', smooth(record.series('grad_norm')), 0),
        ],
        label='gradient norm by step',
        width=480,
        height=240,
        log_y=True,
      ),
    ),
    _figure(
      'Validation, bits per byte',
      line_chart(
        [Series('bits/byte', record.series('val_bits_per_byte'), 1, 'dots')],
        label='validation bits per byte by step',
        width=480,
        height=240,
      ),
    ),
  ]
  return (
    f'<div class="charts">{big}</div>'
    f'<p class="note">Points show their numbers under the mouse.{ema_note}</p>'
    f'<div class="charts small">{"".join(small)}</div>'
  )


def _figure(title: str, chart: str) -> str:
  return f'<figure><figcaption>{esc(title)}</figcaption>{chart}</figure>'


def _from_zero(points):
  ys = [y for _, y in points if y is not None]
  return (0.0, 1.1 * max(ys)) if ys and max(ys) > 0 else None


def samples(record: RunRecord) -> str:
  """What the model wrote on its way; the last one open."""
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
    note = f', validation loss {loss:.4f}' if loss is not None else ''
    opened = ' open' if i == len(shown) - 1 else ''
    parts.append(
      f'<details{opened}><summary>step {step:,}{note}</summary>'
      f'<pre>{esc(text)}</pre></details>'
    )
  return '<h2>Samples over time</h2>' + ''.join(parts)


EVAL_COLUMNS = {
  'train_loss': ('train', '.4f'),
  'val_loss': ('validation', '.4f'),
  'val_ppl': ('perplexity', '.4g'),
  'val_bits_per_byte': ('bits/byte', '.4f'),
  'ms_per_step': ('ms/step', '.4g'),
  'tokens_per_s': ('tokens/s', ',.0f'),
}


def eval_table(record: RunRecord) -> str:
  """Every evaluation, and all values of the full passes."""
  rows = [line for line in record.lines if 'val_loss' in line]
  head = ''.join(
    f'<th class="n">{name}</th>' for name, _ in EVAL_COLUMNS.values()
  )
  body = ''.join(
    f'<tr><td class="n">{line["step"]:,}</td>'
    + ''.join(
      f'<td class="n">{_format(line.get(key), spec)}</td>'
      for key, (_, spec) in EVAL_COLUMNS.items()
    )
    + '</tr>'
    for line in rows
  )
  full = [
    (f'step {line["step"]:,}: {key[len("full_") :].replace("_", " ")}', value)
    for line in record.lines
    for key, value in line.items()
    if key.startswith('full_')
  ]
  full_rows = ''.join(
    f'<tr><td>{esc(name)}</td><td class="n">{_format(value, ".6g")}</td></tr>'
    for name, value in full
  )
  table = (
    f'<details><summary>{len(rows)} evaluations</summary><div class="scroll">'
    f'<table><tr><th class="n">step</th>{head}</tr>{body}</table></div>'
    '</details>'
  )
  if full:
    table += (
      '<p class="note">Full passes over the validation split (weights, '
      f'value):</p><table>{full_rows}</table>'
    )
  return table


def _format(value, spec: str) -> str:
  return format(value, spec) if isinstance(value, (int, float)) else ''


def config_table(config: dict, defaults: dict | None) -> str:
  """All keys; those that differ from the defaults stand out, with these."""
  flat = run.flatten(config)
  known = run.flatten(defaults) if defaults else {}

  def row(key):
    changed = key in known and known[key] != flat[key]
    was = _value(known[key]) if changed else ''
    mark = ' class="changed"' if changed else ''
    return (
      f'<tr{mark}><td><code>{esc(key)}</code></td>'
      f'<td><code>{esc(_value(flat[key]))}</code></td>'
      f'<td class="was"><code>{esc(was)}</code></td></tr>'
    )

  changed = [k for k in flat if k in known and known[k] != flat[k]]
  head = '<tr><th>key</th><th>value</th><th>default</th></tr>'
  all_rows = ''.join(map(row, flat))
  parts = []
  if changed:
    parts.append(
      f'<p class="note">{len(changed)} of {len(flat)} keys differ from the '
      f'defaults:</p><table>{head}{"".join(map(row, changed))}</table>'
    )
  parts.append(
    f'<details><summary>all {len(flat)} keys</summary><table>{head}{all_rows}'
    '</table></details>'
  )
  return ''.join(parts)


def _value(value) -> str:
  return json.dumps(value, ensure_ascii=False)


def origin(record: RunRecord) -> str:
  """Data, files and versions."""
  rows = {
    'data': record.data.get('description') or record.config['data']['path'],
    'sha256 of the text': record.data.get('text_sha256', ''),
    **{
      f'checkpoints, {which}': ', '.join(map(str, steps)) or 'none'
      for which, steps in record.saved.items()
    },
    'versions at this report': ', '.join(
      f'{name} {version or "missing"}' for name, version in versions().items()
    ),
  }
  return (
    '<table>'
    + ''.join(
      f'<tr><th>{esc(name)}</th><td>{esc(value)}</td></tr>'
      for name, value in rows.items()
      if value
    )
    + '</table>'
  )
