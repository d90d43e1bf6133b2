"""Train a GPT, or go on training it.

    python -m launch.train --config=configs/model_l.py --workdir=runs/l
    python -m launch.train --config=configs/model_l.py --config.lr=1e-5 ...

The same command again resumes. Without --config, a workdir that holds a run
goes on with its own configuration.
"""

from absl import flags
from ml_collections import ConfigDict

from gpt import run
from gpt.errors import UserError
from launch import cli

DEFAULT_CONFIG = 'configs/model_l.py'
CONFIG = cli.define_config_flag(DEFAULT_CONFIG)
WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of the run.')
INIT_FROM = flags.DEFINE_string(
  'init_from', '', 'Workdir or RGPT file whose weights (only) start a new run.'
)
ADDITIONAL_STEPS = flags.DEFINE_integer(
  'additional_steps', 0, 'Train this many more steps than are done.',
  lower_bound=0,
)


def main(_):
  if not WORKDIR.value:
    raise UserError('--workdir=DIRECTORY is needed, e.g. --workdir=runs/first')
  from gpt.train import train_and_evaluate  # JAX, after the flags are right.

  train_and_evaluate(
    CONFIG.value,
    WORKDIR.value,
    init_from=INIT_FROM.value,
    additional_steps=ADDITIONAL_STEPS.value,
  )


if __name__ == '__main__':
  cli.run(main)
