"""Every kind of file that rgpt reads: one line of the table each.

    python -m tests.fuzz.readers KIND COUNT [SEED]

damages COUNT files of a kind in a process of its own, with limits on memory and
processor time, and prints what went wrong.
"""

import collections
import contextlib
import dataclasses
import io
import json
import logging
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gpt import unfinished
from gpt.errors import UserError
from tests.fuzz import files, models
from tests.fuzz.mutate import mutate

SECONDS = 5  # Of processor time for one file.
NOT_FILES = 0.05  # How often something else stands in the place of a file.
NODES = {
  'a pipe': os.mkfifo,
  'a directory': os.mkdir,
  'a link to itself': lambda path: os.symlink(path.name, path),
}
MEMORY = 200 << 20  # Bytes for one file, beside 10 times its size.


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of file or directory.

  make(path) writes a real one into a new directory. read(path) reads it and
  returns its values. damage: globs of the files to damage. exact: the content
  is protected, so that whatever is read must be the original. writes: reading
  may change files. needs: optional libraries. named: errors name the file or
  its directory. quick: how many the essential tests damage.
  """

  make: Callable[[pathlib.Path], object]
  read: Callable[[pathlib.Path], Any]
  damage: tuple[str, ...] = ('**/*',)
  exact: bool = False
  writes: bool = False
  needs: tuple[str, ...] = ()
  named: bool = True
  quick: int = 25


HF = ('tokenizers',)
KINDS = {
  'config': Kind(files.make_run, files.read_config, ('config.json',), True),
  'metadata': Kind(files.make_run, files.read_meta, ('**/metadata',), True),
  'arrays': Kind(
    files.make_run,
    files.read_arrays,
    ('checkpoints/latest/7/[pr_]*', 'checkpoints/latest/7/[pr]*/**/*'),
    True,
  ),
  'run': Kind(files.make_run, files.read_run, quick=8),
  'adapters': Kind(
    files.make_adapters,
    files.read_adapters,
    ('run/*.json', '**/metadata'),
    True,
    quick=8,
  ),
  'record': Kind(files.make_run, files.read_record, ('data.json',)),
  'plan': Kind(files.make_plan, files.read_plan),
  'char': Kind(files.make_char, files.read_tokenizer, exact=True),
  'spm': Kind(files.make_spm, files.read_tokenizer, exact=True),
  'randy': Kind(files.make_randy, files.read_tokenizer, exact=True),
  'hf': Kind(files.make_hf, files.read_tokenizer, exact=True, needs=HF),
  'template': Kind(
    files.make_template,
    files.read_template,
    ('*.jinja',),
    needs=(*HF, 'jinja2'),
    named=False,  # Clients of a server see these errors.
  ),
  'vocab.json': Kind(files.make_vocab, files.read_vocab),
  'spm.model': Kind(files.make_model, files.read_model),
  'tokenizer.json': Kind(files.make_hf_json, files.read_hf_json, needs=HF),
  'cache': Kind(
    files.make_cache,
    files.read_cache,
    ('cache/*',),
    exact=True,
    writes=True,
  ),
  'records': Kind(files.make_records, files.read_records),
  'token file': Kind(
    files.make_token_file,
    files.read_token_file,
    ('a.bin', 'b.npy'),
    writes=True,
  ),
  'metrics': Kind(files.make_logs, files.read_metrics, ('metrics.jsonl',)),
  'samples': Kind(files.make_logs, files.read_samples, ('samples.txt',)),
  'rgpt': Kind(models.make_rgpt, models.read_rgpt),
  'safetensors': Kind(models.make_tensors, models.read_tensors),
  'microgpt': Kind(models.make_microgpt, models.read_foreign, needs=HF),
  'rgpt-hf': Kind(
    models.make_our_hf, models.read_foreign, ('*.json', '*.s*'), needs=HF
  ),
  'import': Kind(
    models.make_import,
    models.read_import,
    ('in/*.json', 'in/rgpt_tokenizer/*'),
    writes=True,
    needs=HF,
    quick=8,
  ),
  'llama': Kind(
    models.make_stock(
      'llama', mlp='swiglu', pos='rope', norm_gain=True, final_norm=True
    ),
    models.read_stock,
    needs=HF,
  ),
  'gpt2': Kind(
    models.make_stock(
      'gpt2',
      mlp='gelu',
      norm='layer',
      norm_gain=True,
      final_norm=True,
      bias=True,
      tied_embeddings=True,
    ),
    models.read_stock,
    needs=HF,
  ),
  'randygpt-hf': Kind(models.make_randygpt_hf, models.read_foreign),
  'gguf': Kind(models.make_gguf, models.read_gguf_file, needs=(*HF, 'gguf')),
  'report': Kind(
    files.make_run,
    files.read_report,
    ('*.json', '*.jsonl', '*.txt'),
    quick=8,
  ),
  'chat': Kind(files.make_chat, files.read_chat),
  'lines': Kind(files.make_text, files.read_lines),
  'text': Kind(files.make_text, files.read_text),
}


def same(a: Any, b: Any) -> bool:
  """Equal trees; arrays bit by bit."""
  leaves, structure = jax.tree.flatten(a)
  others, other_structure = jax.tree.flatten(b)
  return structure == other_structure and all(
    type(x) is type(y)
    and (
      (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())
      if isinstance(x, np.ndarray)
      else x == y or repr(x) == repr(y)
    )
    for x, y in zip(leaves, others)
  )


def snapshot(directory: pathlib.Path) -> dict[str, bytes]:
  return {
    str(path.relative_to(directory)): path.read_bytes()
    for path in sorted(directory.rglob('*'))
    if path.is_file()
  }


def fuzz(
  kind: str,
  count: int,
  seed: int = 0,
  before: Callable[[int, int], None] = lambda i, size: None,
  first: int = 0,
) -> tuple[collections.Counter, list[str]]:
  """Damages `count` files of a kind one after the other and reads each.

  Args:
    before: called with the number and the size of each damaged file before it
      is read.
    first: skips the mutations before this one.

  Returns:
    ({'refused': n, 'same': n, 'other': n}, faults): 'other' are files that are
    still valid, with other values.
  """
  entry, counts, faults = KINDS[kind], collections.Counter(), []
  with tempfile.TemporaryDirectory() as name:
    good, bad = pathlib.Path(name) / 'good', pathlib.Path(name) / 'bad'
    good.mkdir()
    entry.make(good)
    targets = sorted(
      path.relative_to(good)
      for path in {p for glob in entry.damage for p in good.glob(glob)}
      if path.is_file() and path.name not in ('made', '.lock')
    )
    assert targets, f'{kind}: nothing to damage'
    shutil.copytree(good, bad)
    wanted, original = entry.read(bad), snapshot(good)
    if entry.writes:
      shutil.rmtree(bad)
      shutil.copytree(good, bad)
    for i in range(first, count):
      rng = random.Random(f'{kind} {seed} {i}')
      target = rng.choice(targets)
      what, data = mutate(original[str(target)], rng)
      wanted_files = original | {str(target): data}
      if rng.random() < NOT_FILES:
        what, data = rng.choice(list(NODES)), b''
        wanted_files.pop(str(target))
        (bad / target).unlink()
        NODES[what](bad / target)
      else:
        (bad / target).write_bytes(data)
      label = f'{kind} {seed} {i}: {target}: {what}'
      before(i, len(data))
      try:
        outcome = _outcome(entry, bad, wanted)
      except BaseException as e:
        if isinstance(e, KeyboardInterrupt):
          raise
        outcome = f'{type(e).__name__}: {str(e)[:300]}\n'
        outcome += ''.join(traceback.format_tb(e.__traceback__)[-2:])
      if outcome in ('refused', 'same', 'other'):
        counts[outcome] += 1
        if outcome == 'other' and entry.exact:
          faults.append(f'{label}: other values are believed')
      else:
        faults.append(f'{label}: {outcome}')
      if entry.writes:
        shutil.rmtree(bad)
        shutil.copytree(good, bad)
      else:
        if snapshot(bad) != wanted_files:
          faults.append(f'{label}: reading changed files')
        unfinished.remove(bad / target)
        (bad / target).write_bytes(original[str(target)])
  return counts, faults


def _outcome(entry: Kind, path: pathlib.Path, wanted: Any) -> str:
  with contextlib.redirect_stderr(io.StringIO()):
    try:
      found = entry.read(path)
    except UserError as e:
      if len(str(e)) > 1500 + 2 * len(str(path)):
        return f'a message of {len(str(e))} characters'
      if entry.named and str(path) not in str(e):
        return f'a message that names no file: {e}'
      return 'refused'
  return 'same' if same(found, wanted) else 'other'


def main(kind: str, count: int, seed: int = 0, first: int = 0) -> None:
  """Prints a JSON line for each file that is begun, and the result."""
  logging.disable(logging.CRITICAL)

  def before(i: int, size: int) -> None:
    print(json.dumps({'begun': i}), flush=True)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(300)
    used = int(pathlib.Path('/proc/self/statm').read_text().split()[5])
    limit = used * resource.getpagesize() + MEMORY + 10 * size
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))

  counts, faults = fuzz(kind, count, seed, before, first)
  signal.setitimer(signal.ITIMER_PROF, 0)
  print(json.dumps({'counts': counts, 'faults': faults}), flush=True)


def fuzz_in_a_process(
  kind: str, count: int, seed: int = 0
) -> tuple[collections.Counter, list[str]]:
  """fuzz() with limits; a file that kills the process is a fault."""
  import subprocess

  counts, faults, first = collections.Counter(), [], 0
  while first < count:
    arguments = [kind, str(count), str(seed), str(first)]
    done = subprocess.run(
      [sys.executable, '-m', 'tests.fuzz.readers', *arguments],
      capture_output=True,
      text=True,
      env={**os.environ, 'FUZZ_WORKER': '1'},
      cwd=pathlib.Path(__file__).parents[2],
    )
    lines = [json.loads(x) for x in done.stdout.splitlines() if x[:1] == '{']
    result = [x for x in lines if 'counts' in x]
    if result:
      counts.update(result[0]['counts'])
      return counts, faults + result[0]['faults']
    begun = [x['begun'] for x in lines if 'begun' in x]
    if not begun or len(faults) > 20:
      return counts, [*faults, f'{kind}: {done.stderr[-2000:]}']
    first = begun[-1] + 1
    faults.append(
      f'{kind} {seed} {begun[-1]}: the process ended with {done.returncode} '
      f'{done.stderr[-300:]}'
    )
    counts['lost'] += begun[-1] - begun[0]
  return counts, faults


if __name__ == '__main__':
  if os.environ.get('FUZZ_WORKER'):
    main(sys.argv[1], *map(int, sys.argv[2:]))
  else:
    for name in sys.argv[1].split(','):
      totals, problems = fuzz_in_a_process(name, *map(int, sys.argv[2:]))
      print(name, dict(totals), len(problems), 'faults', flush=True)
      for problem in problems[:12]:
        print('  ', problem)
