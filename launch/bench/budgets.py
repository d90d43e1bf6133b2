"""Train within budgets, and speedruns in the same time.

    python -m launch.bench.budgets --texts=book.txt,log.txt --budgets=1m,5m
    python -m launch.bench.budgets --texts=book.txt --budgets=1m \\
      --against=speedrun_1min,shakespeare_bpe

Each run is a process with an empty compilation cache; keep the machine
otherwise idle. The wall time is that of the whole process, its share is of the
budget. A recipe of --against gets the same budget, and with it the same clock:
its settings are given, so that only the number of steps is chosen. A run that
is already in --output is not repeated. The last line is a JSON object.
"""

import json
import pathlib
import sys

from absl import flags

from gpt.errors import UserError
from gpt.planning import budget, outcome
from gpt.runs.metrics import number
from launch import cli
from launch.bench import cold, machine
from launch.bench.recipe_settings import settings

TEXTS = flags.DEFINE_list('texts', [], 'Files, as data.path.')
BUDGETS = flags.DEFINE_list('budgets', ['1m'], 'Times, as 90s, 10m or 8h.')
AGAINST = flags.DEFINE_list('against', [], 'Recipes of configs, by name.')
SEED = flags.DEFINE_integer('seed', 1, 'Seed of every run.')
OUTPUT = flags.DEFINE_string('output', 'runs/budgets', 'Directory of the runs.')


def run(text: str, time_given: str, recipe: str) -> dict:
  """Trains within a budget, unless --output has the run; its results."""
  name = '-'.join(
    filter(None, (pathlib.Path(text).stem, time_given, recipe, f'{SEED.value}'))
  )
  workdir = pathlib.Path(OUTPUT.value) / name
  if row := cold.finished(workdir):
    return row
  args = [
    *(sys.executable, '-m', 'launch.train'),
    f'--config=configs/budget.py:{time_given}',
    f'--workdir={workdir}',
    f'--config.data.path={text}',
    f'--config.seed={SEED.value}',
  ]
  if recipe:
    args += [f'--config.{key}={x}' for key, x in settings(recipe, text).items()]
  made_from = machine.commit()
  wall = cold.wall_seconds(args)
  facts = outcome.describe(workdir) or {}
  row = {
    'text': pathlib.Path(text).stem,
    'budget': time_given,
    'recipe': recipe,
    'seed': SEED.value,
    'wall_s': wall,
    'share': wall / budget.seconds_of(time_given),
    'commit': made_from,
    **{
      key: facts.get(key)
      for key in (
        'expected_bits_per_byte',
        'expected_for_steps',
        'expected_halfway',
        'bits_per_byte',
        'planned_steps',
        'total_steps',
      )
    },
  }
  (workdir / cold.RESULT).write_text(json.dumps(row))
  return row


def show(row: dict) -> None:
  """Prints a row of the table."""
  expected, reached = row['expected_bits_per_byte'], row['bits_per_byte']
  off = expected / reached - 1 if expected and reached else None
  losses = ''.join(
    f'{number(row.get(key), ".4f"):>9s}'
    for key in (
      'expected_bits_per_byte',
      'expected_for_steps',
      'expected_halfway',
      'bits_per_byte',
    )
  )
  print(
    f'{row["text"]:18s}{row["budget"]:>6s} {row["recipe"] or "plan":18s}'
    f'{row["wall_s"]:8.1f}{row["share"]:8.1%}{losses}{number(off, "+.1%"):>8s}'
    f'{row["planned_steps"]:8d}{row["total_steps"]:8d}',
    flush=True,
  )


def main(_: list[str]) -> None:
  if not TEXTS.value:
    raise UserError('--texts=FILE,... is needed')
  for time_given in BUDGETS.value:
    budget.seconds_of(time_given)
  print(machine.line())
  print(
    f'{"text":18s}{"budget":>6s} {"recipe":18s}{"wall s":>8s}{"share":>8s}'
    f'{"planned":>9s}{"then":>9s}{"halfway":>9s}{"reached":>9s}{"off":>8s}{"steps":>8s}'
    f'{"made":>8s}'
  )
  rows = []
  for time_given in BUDGETS.value:
    for text in TEXTS.value:
      for recipe in ('', *AGAINST.value):
        rows.append(run(text, time_given, recipe))
        show(rows[-1])
  print(json.dumps({'machine': machine.facts(), 'runs': rows}))


if __name__ == '__main__':
  cli.run(main)
