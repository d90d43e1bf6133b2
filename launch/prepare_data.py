"""Encode training data in advance; report document lengths.

    python -m launch.prepare_data --config=configs/chat_small.py \\
      --config.data.path=conversations.jsonl --workdir=runs/chat_small
    python -m launch.prepare_data --config=... --report

The first form leaves the tokenizer and the tokens where training with the same
arguments finds them. The second needs no workdir and keeps nothing: it prints
the median and the 90th percentile of the lengths, and the block_size that suits
them.
"""

import contextlib
import os

from absl import flags

from gpt import logs, staging, unfinished
from gpt.errors import UserError, explained_writes
from launch import cli, common_flags, config_flag

config_flag.define('configs/model_l.py')
WORKDIR = common_flags.workdir(
  'Directory of the run that will train on the data.'
)
REPORT = flags.DEFINE_bool(
  'report', False, 'Print the lengths of the documents or conversations.'
)


def main(_: list[str]) -> None:
  from gpt.config_check import check_config
  from gpt.data import length_report, prepare
  from gpt.data.documents import Documents
  from gpt.runs.config_file import read_config
  from gpt.runs.workdir import check_unused, make_workdir

  logs.to_console('stdout')
  saved = read_config(WORKDIR.value) if WORKDIR.value else None
  config = config_flag.of_run(saved)
  check_config(config)
  if not (WORKDIR.value or REPORT.value or config.data.cache_dir):
    raise UserError(
      'nothing would be kept: give the --workdir=DIRECTORY of a run or a '
      '--config.data.cache_dir, or ask for a --report'
    )
  with contextlib.ExitStack() as stack:
    workdir = WORKDIR.value
    if not workdir:
      new = unfinished.temporary_directory('rgpt-prepare')
      workdir = stack.enter_context(new)
    elif not os.path.lexists(workdir):  # Then it is complete, or not made.
      stack.enter_context(explained_writes(workdir))
      workdir = stack.enter_context(staging.directory(workdir))
    make_workdir(workdir)
    if saved is None:
      check_unused(workdir)
    begun = saved is not None
    tokenizer, corpus = prepare.prepare(config.data, workdir, begun)
    prepare.create_dataset(config, corpus, tokenizer)
    if not REPORT.value:
      return
    print()
    if isinstance(corpus, Documents):
      lines = length_report.report(corpus, tokenizer, config.batch_size)
      print('\n'.join(lines))
    else:
      print(
        f'{corpus.info.stats.bytes / max(len(corpus.tokens), 1):.2f} bytes per '
        f'token; {len(corpus.tokens) // config.model.block_size:,} windows of '
        f'block_size {config.model.block_size}'
      )


if __name__ == '__main__':
  cli.run(main)
