"""The plan as a short table: what was chosen, and why."""

from collections.abc import Mapping
from typing import Any

from gpt.planning.machine import Machine
from gpt.planning.plan import Outlook, Plan
from gpt.planning.text import Text
from gpt.runs.metrics import count, duration

GIVEN = 'given'
# Twice the time for a loss that is lower by less than this part is too long.
LEARNT = 1e-3


def text_of(
  budget: str,
  text: Text,
  machine: Machine,
  plan: Plan,
  given: Mapping[str, Any],
) -> str:
  """Lines to print.

  Args:
    budget: as given, such as '10m'.
    text, machine: the facts.
    given: flat keys of the config that were not chosen.
  """
  rows = rows_of(text, machine, plan, given)
  widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
  lines = [f'plan for {budget}:']
  lines += [
    f'  {name:{widths[0]}}  {value:{widths[1]}}  {why}'.rstrip()
    for name, value, why in rows
  ]
  return '\n'.join(lines)


def rows_of(
  text: Text, machine: Machine, plan: Plan, given: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
  """(what, value, why) of every line."""
  now, options = plan.now, plan.now.options

  def why(keys: str, reason: str) -> str:
    return GIVEN if all(key in given for key in keys.split()) else reason

  kind = options['data.tokenizer']
  step_tokens = options['batch_size'] * options['model.block_size']
  rows = [
    ('text', f'{count(text.bytes)}B', _text(text)),
    ('machine', _machine(machine), _rates(machine)),
    (
      'tokenizer',
      f'{kind}, {now.vocab:,}',
      why(
        'data.tokenizer' + (' data.vocab_size' if kind != 'char' else ''),
        f'{now.bytes_per_token:.2f} bytes a token',
      ),
    ),
    (
      'model',
      f'{options["model.n_layer"]} x {options["model.n_embd"]}',
      why(
        'model.n_layer model.n_embd',
        f'{count(now.parameters)} parameters: the best for its size',
      ),
    ),
    (
      'context',
      f'{options["model.block_size"]}',
      why('model.block_size', 'tokens; wider models get more'),
    ),
    (
      'products',
      f'{options["model.dtype"]}',
      why('model.dtype', _speed(machine, now)),
    ),
    (
      'batch',
      f'{options["batch_size"]} x {options["model.block_size"]}',
      why('batch_size', f'{step_tokens:,} tokens a step'),
    ),
    (
      'steps',
      f'{now.steps:,}',
      why(
        'total_steps',
        f'about {1e3 * now.step_s:.3g} ms each; set once they are measured',
      ),
    ),
    (
      'reading',
      f'{now.passes:.3g} x',
      f'{count(now.tokens_seen)} tokens of {count(_train_tokens(now))}',
    ),
    ('dropout', *_regularisation(options, given, 'model.dropout', now)),
    (
      'weight decay',
      *_regularisation(options, given, 'opt.weight_decay', now),
    ),
    ('learning rate', f'{options["lr"]:g}', _optimizer(options)),
    (
      'held out',
      f'{options["data.val_fraction"]:.3g}',
      why('data.val_fraction', 'of the text, for validation'),
    ),
    (
      'time',
      duration(now.seconds),
      f'{now.fixed_s:.0f} s of it around the steps',
    ),
    ('memory', f'{now.memory / 1e9:.2g} GB', f'of {_memory(machine)}'),
    ('expected', f'{now.bits_per_byte:.3f} bits/byte', _others(plan)),
  ]
  return rows


def _text(text: Text) -> str:
  what = f'{text.distinct_characters:,} characters'
  if text.documents:
    noun = 'conversations' if text.format == 'chat' else 'lines'
    what += f', about {text.documents:,} {noun}'
  return f'{text.description}: {what}'


def _machine(machine: Machine) -> str:
  return f'{machine.devices} x {machine.platform}'


def _rates(machine: Machine) -> str:
  rates = ', '.join(
    f'{dtype} {max(of.values()) / 1e9:,.0f}'
    for dtype, of in machine.rates.items()
  )
  return f'GFLOP/s: {rates}'


def _memory(machine: Machine) -> str:
  return f'{machine.memory / 1e9:.3g} GB that are free'


def _speed(machine: Machine, now: Outlook) -> str:
  if machine.rates.keys() == {'float32'}:
    return 'this processor has none of bfloat16'
  width = now.options['model.n_embd']
  dtype, plain = now.options['model.dtype'], machine.rate('float32', width)
  if dtype not in machine.rates or dtype == 'float32':
    return 'bfloat16 does not pay here'
  return f'{machine.rate(dtype, width) / plain:.1f} x as fast as float32'


def _train_tokens(now: Outlook) -> float:
  return now.tokens_seen / now.passes


def _regularisation(
  options: Mapping[str, Any], given: Mapping[str, Any], key: str, now: Outlook
) -> tuple[str, str]:
  read = f'the text is read {now.passes:.2g} times'
  return f'{options[key]:g}', GIVEN if key in given else read


def _optimizer(options: Mapping[str, Any]) -> str:
  name = options['opt.name']
  if name == 'adamw':
    return name
  return f'and {options["opt.muon_lr"]:g} for the matrices of blocks ({name})'


def _others(plan: Plan) -> str:
  """What half and ten times the time would give."""
  found = []
  if plan.half is not None:
    found.append(f'half the time {plan.half.bits_per_byte:.3f}')
    if plan.half.bits_per_byte < plan.now.bits_per_byte * (1 + LEARNT):
      found[-1] += ' (the text has no more to teach)'
  found.append(f'ten times {plan.tenfold.bits_per_byte:.3f}')
  return ', '.join(found)
