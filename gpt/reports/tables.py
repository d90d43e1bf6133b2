"""The tables of the report: evaluations, configuration, origin."""

import json

from gpt.planning import outcome
from gpt.reports.markup import Markup, element, escape, join
from gpt.runs.config_file import flatten
from gpt.runs.info import versions
from gpt.runs.metrics import number
from gpt.runs.record import RunRecord

EVAL_COLUMNS = {
  'train_loss': ('train', '.4f'),
  'val_loss': ('validation', '.4f'),
  'val_ppl': ('perplexity', '.4g'),
  'val_bits_per_byte': ('bits/byte', '.4f'),
  'ms_per_step': ('ms/step', '.4g'),
  'tokens_per_s': ('tokens/s', ',.0f'),
}


def eval_table(record: RunRecord) -> Markup:
  """Every evaluation, and all values of the full passes."""
  rows = [line for line in record.lines if 'val_loss' in line]
  head = element(
    'tr',
    _cell('step', 'th'),
    *(_cell(name, 'th') for name, _ in EVAL_COLUMNS.values()),
  )
  body = [
    element(
      'tr',
      _cell(number(line['step'], ',')),
      *(
        _cell(number(line.get(key), spec))
        for key, (_, spec) in EVAL_COLUMNS.items()
      ),
    )
    for line in rows
  ]
  table = element(
    'details',
    element('summary', f'{len(rows)} evaluations'),
    element('div', element('table', head, *body), class_='scroll'),
  )
  full = [
    element(
      'tr',
      element(
        'td', f'step {line["step"]:,}: {key[len("full_") :].replace("_", " ")}'
      ),
      _cell(number(value, '.6g')),
    )
    for line in record.lines
    for key, value in line.items()
    if key.startswith('full_')
  ]
  if not full:
    return table
  note = 'Full passes over the validation split (weights, value):'
  return join(table, element('p', note, class_='note'), element('table', *full))


def plan_table(record: RunRecord) -> Markup:
  """What a budget planned beside what happened; nothing for other runs."""
  facts = outcome.describe(record.workdir)
  if facts is None:
    return Markup('')
  head = element('tr', *map(_head, (facts['budget'], 'planned', 'real')))
  body = [
    element('tr', element('td', what), _cell(planned), _cell(real or 'not yet'))
    for what, planned, real in outcome.rows(facts)
  ]
  moves = [
    element(
      'tr',
      _cell(f'{target["step"]:,}'),
      _cell(f'{target["total_steps"]:,}'),
      element('td', target['why']),
      _cell(number(1e3 * target['step_s'] or None, '.4g')),
    )
    for target in facts['targets']
  ]
  names = ('at step', 'steps in all', 'because', 'ms/step')
  return join(
    element('h2', 'Plan'),
    element('table', head, *body),
    element(
      'details',
      element('summary', f'{len(moves)} targets'),
      element('table', element('tr', *map(_head, names)), *moves),
    ),
  )


def _head(text: str) -> Markup:
  return element('th', text)


def _cell(text: str, tag: str = 'td') -> Markup:
  """A right-aligned cell."""
  return element(tag, text, class_='n')


def config_table(config: dict, defaults: dict | None) -> Markup:
  """All keys; those that differ from the defaults stand out."""
  flat = flatten(config)
  known = flatten(defaults) if defaults else {}
  changed = [k for k in flat if k in known and known[k] != flat[k]]

  def row(key: str) -> Markup:
    was = _value(known[key]) if key in changed else ''
    return element(
      'tr',
      element('td', element('code', key)),
      element('td', element('code', _value(flat[key]))),
      element('td', element('code', was), class_='was'),
      class_='changed' if key in changed else None,
    )

  names = ('key', 'value', 'default')
  head = element('tr', *(element('th', name) for name in names))
  parts = []
  if changed:
    note = f'{len(changed)} of {len(flat)} keys differ from the defaults:'
    parts = [
      element('p', note, class_='note'),
      element('table', head, *map(row, changed)),
    ]
  everything = element(
    'details',
    element('summary', f'all {len(flat)} keys'),
    element('table', head, *map(row, flat)),
  )
  return join(*parts, everything)


def _value(value: object) -> str:
  return json.dumps(value, ensure_ascii=False)


def origin(record: RunRecord) -> Markup:
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
  return element(
    'table',
    *(
      element('tr', element('th', name), element('td', escape(value)))
      for name, value in rows.items()
      if value
    ),
  )
