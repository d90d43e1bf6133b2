"""Measure a model: loss over a text, or answers to problems.

    python -m launch.evaluate --workdir=runs/l
    python -m launch.evaluate --workdir=runs/l --data=other.txt
    python -m launch.evaluate --workdir=runs/l --ids=F.npy --logits_out=G.npy
    python -m launch.evaluate --workdir=runs/arithmetic --task=arithmetic

The last line on stdout is JSON. The second form evaluates all of another text;
the third writes the raw logits float32[B, L, V] of token ids int[B, L], to
compare with another implementation; the last asks a chat model problems that
`launch.problems` never writes, and counts the exact answers.
"""

import json
import math
import os
from typing import TYPE_CHECKING, Any

from absl import flags

from gpt.errors import UserError
from launch import cli, common_flags

if TYPE_CHECKING:
  from gpt.runs.load import LoadedModel

WORKDIR = common_flags.workdir()
WHICH = common_flags.which()
BASE = common_flags.base()
DATA = flags.DEFINE_string(
  'data',
  '',
  "Files or globs, comma separated, in the run's data.format. Empty: the run's "
  'own text.',
)
SPLIT = flags.DEFINE_enum(
  'split',
  None,
  ['val', 'train', 'all'],
  "Part of the text, split as in the run. Default: val for the run's own text, "
  'all for any other.',
)
IDS = flags.DEFINE_string('ids', '', 'A .npy file of token ids int[B, L].')
LOGITS_OUT = flags.DEFINE_string(
  'logits_out', '', 'The .npy file for their logits float32[B, L, V].'
)
OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'Replace an existing file at --logits_out.'
)

TASK = common_flags.task('')
PROBLEMS = flags.DEFINE_integer(
  'problems', 300, 'How many problems of --task to ask.', lower_bound=1
)

# What numpy raises for files that are no arrays, or that say absurd things.
UNREADABLE = (
  OSError,
  ValueError,
  EOFError,
  AttributeError,
  OverflowError,
  MemoryError,
  RecursionError,
)


def main(_: list[str]) -> None:
  common_flags.need_workdir(WORKDIR)
  if bool(IDS.value) != bool(LOGITS_OUT.value):
    raise UserError('--ids=F.npy and --logits_out=G.npy belong together')
  if IDS.value and (DATA.value or SPLIT.value):
    raise UserError('--ids replaces --data and --split: leave those out')
  if TASK.value and (IDS.value or DATA.value or SPLIT.value):
    raise UserError('--task asks problems: leave out --ids, --data and --split')
  if IDS.value:
    logits()
  elif TASK.value:
    answers()
  else:
    loss()


def loss() -> None:
  """Runs a full pass; prints a table and a line of JSON."""
  from tqdm import tqdm

  from gpt.runs.evaluate import full_pass, open_dataset
  from gpt.training.evaluation import describe_parts

  loaded = load(num_cpu_devices=0)
  with open_dataset(loaded, WORKDIR.value, DATA.value, SPLIT.value or '') as (
    dataset,
    split,
  ):
    total = dataset.targets(split) if len(dataset.losses) == 1 else None
    bar = tqdm(total=total, unit='token', leave=False, disable=None)
    with bar:
      values = full_pass(loaded, dataset, split, bar.update)
    text, info = dataset.corpus.description, dataset.corpus.info
  print(f'{loaded.name}, {loaded.which} checkpoint, step {loaded.step}')
  print(f'full pass over {text}, split {split}:\n')
  for name, shown in (
    ('tokens', f'{values["tokens"]:,}'),
    ('nats/token', f'{values["nats_per_token"]:.4f}'),
    ('perplexity', f'{values["ppl"]:.4f}'),
    ('bits/byte', f'{values["bits_per_byte"]:.4f}'),
  ):
    print(f'  {name:10}  {shown:>12}')
  for line in describe_parts(values):
    print(f'  {line}')
  print()
  print_json(
    {
      **values,
      'pass': 'full',
      'split': split,
      'data': text,
      'dropped_characters': sum(info.unknown.values()),
      **described(loaded),
    }
  )


def logits() -> None:
  """Reads token ids from a file, writes their logits to another."""
  import numpy as np

  from gpt.decoding.inspect import write_logits
  from gpt.runs.output import check_file

  check_file(LOGITS_OUT.value, '--logits_out', OVERWRITE.value)
  try:
    if not os.path.isfile(IDS.value):  # A pipe would block.
      raise OSError('it is not a file')
    # A map is no larger than the file, whatever its header says.
    with np.errstate(over='ignore'):
      ids_BL = np.load(IDS.value, mmap_mode='r', allow_pickle=False)
    ids_BL.ndim  # noqa: B018  An .npz has none.
  except UNREADABLE as e:
    raise UserError(
      f'cannot read --ids={IDS.value} as a .npy array: {e}'
    ) from e
  loaded = load(num_cpu_devices=1)
  batch, length, vocab = write_logits(
    loaded.cfg, loaded.params, ids_BL, LOGITS_OUT.value
  )
  print(f'wrote float32[{batch}, {length}, {vocab}] to {LOGITS_OUT.value}')
  print_json(
    {
      'logits_out': LOGITS_OUT.value,
      'shape': [batch, length, vocab],
      **described(loaded),
    }
  )


def answers() -> None:
  """Asks held-out problems; prints the share of exact answers by kind."""
  from tqdm import tqdm

  from gpt.data.problems import problems
  from gpt.runs.exact_match import answer

  asked = problems(TASK.value, PROBLEMS.value, seed=0, held_out=True)
  loaded = load(num_cpu_devices=1)
  bar = tqdm(total=len(asked), unit='problem', leave=False, disable=None)
  with bar:
    given = answer(loaded, asked, progress=bar.update)
  print(f'{loaded.name}, {loaded.which} checkpoint, step {loaded.step}')
  print(f'{len(given)} held-out problems of {TASK.value}, greedy answers:\n')
  shares = {}
  for kind in dict.fromkeys(x.problem.task for x in given):
    own = [x for x in given if x.problem.task == kind]
    shares[kind] = sum(x.right for x in own) / len(own)
    example = next((x for x in own if not x.right), own[0])
    print(
      f'  {kind:16}  {shares[kind]:7.1%}   {example.problem.question!r}: '
      f'{example.given!r} ({example.problem.answer!r})'
    )
  total = sum(x.right for x in given) / len(given)
  print(f'  {"all":16}  {total:7.1%}\n')
  print_json(
    {
      'task': TASK.value,
      'problems': len(given),
      'exact_match': total,
      'exact_match_by_kind': shares,
      **described(loaded),
    }
  )


def load(num_cpu_devices: int) -> 'LoadedModel':
  """The run's model, on all devices or on one."""
  from gpt import devices
  from gpt.runs.load import load_model

  devices.setup_devices(num_cpu_devices)
  return load_model(WORKDIR.value, WHICH.value, BASE.value)


def described(loaded: 'LoadedModel') -> dict[str, Any]:
  """The entries of the last line that identify the model."""
  return {'workdir': WORKDIR.value, 'which': loaded.which, 'step': loaded.step}


def print_json(values: dict[str, Any]) -> None:
  """Prints one line; inf and nan, which JSON lacks, become null."""
  print(
    json.dumps(
      {
        k: None if isinstance(v, float) and not math.isfinite(v) else v
        for k, v in values.items()
      }
    )
  )


if __name__ == '__main__':
  cli.run(main)
