"""Write problems with exact answers as conversations.

    python -m launch.problems --task=arithmetic --output=arithmetic.jsonl
    python -m launch.train --config=configs/arithmetic_chat.py \\
      --workdir=runs/arithmetic
    python -m launch.evaluate --workdir=runs/arithmetic --task=arithmetic

The last command asks problems that the first never writes. Needs the extra
`evals` (reasoning-gym).
"""

import json

from absl import flags

from launch import cli, common_flags

TASK = common_flags.task('arithmetic')
COUNT = flags.DEFINE_integer(
  'count', 18_000, 'Different problems to write.', lower_bound=1
)
SEED = common_flags.seed('The same seed gives the same problems.')
OUTPUT = flags.DEFINE_string('output', '', 'The .jsonl file to write.')
OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace an existing file.')


def main(_: list[str]) -> None:
  from gpt.data.problems import problems
  from gpt.files import write_atomic
  from gpt.runs.output import check_file

  check_file(OUTPUT.value, '--output', OVERWRITE.value)
  found = problems(TASK.value, COUNT.value, SEED.value, held_out=False)
  lines = [json.dumps(problem.conversation()) + '\n' for problem in found]
  write_atomic(OUTPUT.value, ''.join(lines).encode())
  print(f'wrote {len(lines):,} problems to {OUTPUT.value}, the first:')
  print(f'  {found[0].question} -> {found[0].answer}')


if __name__ == '__main__':
  cli.run(main)
