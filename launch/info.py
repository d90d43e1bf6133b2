"""Describe a run: model, data, checkpoints, losses.

python -m launch.info --workdir=runs/l
python -m launch.info --workdir=runs/l --json
"""

import json

from absl import flags

from launch import cli, common_flags

WORKDIR = common_flags.workdir()
WHICH = common_flags.which()
BASE = common_flags.base()
JSON = flags.DEFINE_bool(
  'json', False, 'Print one JSON object instead of a page.'
)


def main(_: list[str]) -> None:
  workdir = common_flags.need_workdir(WORKDIR)
  from gpt import devices
  from gpt.planning import outcome
  from gpt.runs import info  # JAX, after the flags are right.
  from gpt.runs.load import load_model

  devices.setup_devices(1)
  loaded = load_model(workdir, WHICH.value, BASE.value)
  facts = info.describe(loaded, workdir)
  facts['plan'] = outcome.describe(workdir)
  if JSON.value:
    print(json.dumps(facts, indent=2))
    return
  plan = facts['plan']
  print(info.page(facts, {'plan': outcome.line(plan)} if plan else {}))


if __name__ == '__main__':
  cli.run(main)
