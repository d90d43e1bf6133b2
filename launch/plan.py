"""Print the plan of a budget: the model that a time and a text allow here.

    python -m launch.plan --budget=10m --data=book.txt
    python -m launch.plan --budget=8h --data=book.txt --config.model.n_embd=256
    python -m launch.plan --budget=10m --data=book.txt --json

Reads samples of the text, measures this machine for about a second, and keeps
nothing. launch.train with the same arguments follows the plan.
"""

import dataclasses
import json

from absl import flags

from gpt import logs
from gpt.errors import UserError
from gpt.runs.config_file import flatten
from launch import cli, config_flag

config_flag.define('configs/model_l.py')
config_flag.define_short()
JSON = flags.DEFINE_bool(
  'json', False, 'Print one JSON object instead of a table.'
)


def main(_: list[str]) -> None:
  config = config_flag.of_run(None)
  if not config.budget:
    raise UserError('--budget=TIME is needed, such as --budget=10m')
  logs.to_console('stderr')
  from gpt.planning import budget, table  # JAX, after the flags are right.

  seconds = budget.seconds_of(config.budget)
  values = flatten(config.to_dict())
  given = {key: x for key, x in values.items() if x is not None}
  facts, where, made = budget.planned(seconds, given)
  if JSON.value:
    parts = {'text': facts, 'machine': where, 'plan': made}
    tree = {name: dataclasses.asdict(part) for name, part in parts.items()}
    print(json.dumps(tree, indent=2))
  else:
    print(table.text_of(config.budget, facts, where, made, given))


if __name__ == '__main__':
  cli.run(main)
