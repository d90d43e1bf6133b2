"""Print the plan of a budget, or of a step on other devices.

    python -m launch.plan --budget=10m --data=book.txt
    python -m launch.plan --budget=8h --data=book.txt --config.model.n_embd=256
    python -m launch.plan --budget=10m --data=book.txt --json
    python -m launch.plan --devices=64 --kind=h100 --config=gpt2_124m \\
      --config.batch_size=512 --config.parallel.micro_batch_size=8

With --budget: the model that a time and a text allow on this machine. Reads
samples of the text, measures the machine for about a second, and keeps nothing.
launch.train with the same arguments follows the plan.

With --devices: compiles the training step for that many devices of a kind,
which need not be there. Prints the memory of a device, the work and
communication of a step, and bounds of its time. Reads no text.
"""

import dataclasses
import json
from typing import TYPE_CHECKING

from absl import flags

from gpt import logs
from gpt.errors import UserError
from gpt.runs.config_file import flatten
from launch import cli, config_flag

if TYPE_CHECKING:
  from ml_collections import ConfigDict

config_flag.define('configs/model_l.py')
config_flag.define_short()
JSON = flags.DEFINE_bool(
  'json', False, 'Print one JSON object instead of a table.'
)

DEVICES = flags.DEFINE_integer(
  'devices', 0, 'Devices to plan for.', lower_bound=0, upper_bound=4096
)
KIND = flags.DEFINE_string(
  'kind', 'h100', 'a100, h100, h200, b200, l4, rtx4090, v5e, v5p or v6e.'
)
VOCAB_SIZE = flags.DEFINE_integer(
  'vocab_size',
  0,
  'Tokens of the vocabulary, with --devices; 0: data.vocab_size, and 100 for '
  'characters.',
  lower_bound=0,
)


def for_devices(config: 'ConfigDict') -> None:
  """Prints what a step of `config` needs on --devices of a --kind."""
  from gpt.planning import kinds  # JAX, after the flags are right.

  kind = kinds.find(KIND.value)
  import jax

  from gpt import devices
  from gpt.config_check import check_config

  check_config(config)
  jax.config.update('jax_platforms', 'cpu')
  devices.setup_devices(DEVICES.value)
  if jax.device_count() != DEVICES.value:
    raise UserError(
      f'JAX has {jax.device_count()} devices here: unset XLA_FLAGS'
    )
  from gpt.planning import cluster, cluster_text

  known = 100 if config.data.tokenizer == 'char' else config.data.vocab_size
  plan = cluster.make(config, VOCAB_SIZE.value or known, kind)
  if JSON.value:
    print(json.dumps(cluster_text.as_dict(plan)))
  else:
    print('\n'.join(cluster_text.lines(plan)))


def main(_: list[str]) -> None:
  config = config_flag.of_run(None)
  if DEVICES.value and config.budget:
    raise UserError('--budget and --devices are two plans: give one of them')
  if DEVICES.value:
    for_devices(config)
    return
  for name in ('kind', 'vocab_size'):
    if flags.FLAGS[name].present:
      raise UserError(f'--{name} belongs to a plan for --devices=NUMBER')
  if not config.budget:
    raise UserError(
      '--budget=TIME is needed, such as --budget=10m, or --devices=NUMBER'
    )
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
