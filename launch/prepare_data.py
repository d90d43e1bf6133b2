"""Encode training data in advance; report document lengths.

    python -m launch.prepare_data --config=configs/chat_small.py \\
      --config.data.path=conversations.jsonl --workdir=runs/chat_small
    python -m launch.prepare_data --config=... --report
    python -m launch.prepare_data --config=... --workdir=runs/x --share=3/16

The first form leaves the tokenizer and the tokens where training with the same
arguments finds them. The second needs no workdir and keeps nothing: it prints
the median and the 90th percentile of the lengths, and the block_size that suits
them. The third encodes one share of a large text, for several machines with one
file system; the tokenizer must exist, or the first share have made it.
"""

import contextlib
import os
import pathlib
import re
from typing import Any

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
SHARE = flags.DEFINE_string(
  'share', '', 'I/N: encode share I (from 1) of N of a large text.'
)


def share_of(given: str) -> tuple[int, int]:
  """'3/16' -> (2, 16)."""
  found = re.fullmatch(r'([1-9]\d{0,5})/([1-9]\d{0,5})', given)
  if not found or int(found[1]) > int(found[2]):
    raise UserError(
      f'--share={given}: give a number and how many there are, 1/16 to 16/16'
    )
  return int(found[1]) - 1, int(found[2])


def main(_: list[str]) -> None:
  from gpt.config_check import check_config
  from gpt.data import length_report, prepare, text_choice
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
  if SHARE.value:
    encode_share(config, saved is not None)
    return
  with contextlib.ExitStack() as stack:
    workdir = WORKDIR.value
    if not workdir:
      new = unfinished.temporary_directory('rgpt-prepare')
      workdir = stack.enter_context(new)
    elif not os.path.lexists(workdir) and not text_choice.large(config.data):
      # It is complete, or not made; a large text goes on where it stopped.
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


def encode_share(config: Any, begun: bool) -> None:
  """Encodes --share of the text into the workdir's cache."""
  from gpt.data import prepare, text_choice
  from gpt.runs.workdir import check_unused, make_workdir

  share, shares = share_of(SHARE.value)
  if not text_choice.large(config.data):
    raise UserError(
      f'--share={SHARE.value}: the text is small, or token ids already, and '
      'is not divided: leave out --share'
    )
  workdir = WORKDIR.value
  if not workdir or REPORT.value:
    raise UserError('--share needs a --workdir, and prints no --report')
  make_workdir(workdir)
  if not begun:
    check_unused(workdir)
  tokenizer = pathlib.Path(workdir, 'tokenizer', 'tokenizer.json')
  if share and not (config.data.tokenizer_path or tokenizer.exists()):
    raise UserError(
      f'--share={SHARE.value} finds no tokenizer in {workdir}: let '
      f'--share=1/{shares} make it first, or give one with '
      '--config.data.tokenizer_path'
    )
  prepare.encode_share(
    config.data,
    workdir,
    begun,
    None,
    share,
    shares,
    contextlib.nullcontext(),
    wait=False,
  )


if __name__ == '__main__':
  cli.run(main)
