"""What a workdir holds: the model, where it came from, how far it got.

python -m launch.info --workdir=runs/l
python -m launch.info --workdir=runs/l --json
"""

import json

from absl import flags

from gpt.errors import UserError
from launch import cli

WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of a trained run.')
WHICH = flags.DEFINE_enum(
  'which',
  'best',
  ['best', 'latest'],
  'The checkpoint of the lowest validation loss, or the newest.',
)
JSON = flags.DEFINE_bool('json', False, 'One JSON object instead of a page.')


def main(_):
  if not WORKDIR.value:
    raise UserError('--workdir=DIRECTORY of a trained run is needed')
  from gpt import devices
  from gpt.runs import info  # JAX, after the flags are right.
  from gpt.runs.load import load_model

  devices.setup_devices(1)
  facts = info.describe(load_model(WORKDIR.value, WHICH.value), WORKDIR.value)
  print(json.dumps(facts, indent=2) if JSON.value else info.page(facts))


if __name__ == '__main__':
  cli.run(main)
