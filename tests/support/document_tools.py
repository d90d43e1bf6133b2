"""Documents, conversations and small runs for the tests of several files."""

import json

import jax
import numpy as np
import pytest

from configs import smoke
from gpt.data import prepare
from gpt.data.document_dataset import DocumentDataset
from gpt.runs import checkpoint
from gpt.runs.checkpoint import LATEST
from gpt.tokenizers import build_tokenizer
from gpt.train import train_and_evaluate
from tests.support.data_tools import data_config, memory_source
from tests.support.logs import log_lines


def names(n: int, seed: int = 0) -> list[str]:
  """n words of 1 to 12 letters, with duplicates."""
  rng = np.random.default_rng(seed)
  return [
    ''.join(rng.choice(list('abcdefg'), size=rng.integers(1, 13)))
    for _ in range(n)
  ]


def conversations(n: int, seed: int = 0) -> list[list[dict]]:
  """n conversations of 1 to 3 questions and answers."""
  rng = np.random.default_rng(seed)

  def text():
    words = ['hello', 'what', 'is', 'rust', 'a', 'language', 'of', 'systems']
    return ' '.join(rng.choice(words, size=rng.integers(1, 12)))

  return [
    [
      {'role': role, 'content': text()}
      for _ in range(rng.integers(1, 4))
      for role in ('user', 'assistant')
    ]
    for _ in range(n)
  ]


def jsonl(*items) -> str:
  """One item per line: str unchanged, others as JSON."""
  return ''.join(
    (x if isinstance(x, str) else json.dumps(x)) + '\n' for x in items
  )


def write_lines(path, items) -> str:
  """Writes jsonl(*items) to `path`, which it returns."""
  path.write_text(jsonl(*items), encoding='utf-8', newline='')
  return str(path)


NAMES = names(60)


@pytest.fixture(scope='module')
def tokenizer():
  return build_tokenizer('char', NAMES, 0)


@pytest.fixture(scope='module')
def documents(tokenizer, tmp_path_factory):
  text = '\n'.join(NAMES)
  return open_memory(text, 'lines', tokenizer, tmp_path_factory.mktemp('docs'))


def open_memory(text, format, tokenizer, tmp_path, **changes):
  """Documents of an in-memory text."""
  return prepare.open_data(
    data_config('', format, **changes),
    memory_source(text),
    tokenizer,
    tmp_path / 'cache',
  )


def readable(tokenizer, ids) -> str:
  """Text of ids, with names for control tokens."""
  # Reversed: one name per id, BOS even where EOS has the same id.
  special = reversed(tokenizer.special_tokens.items())
  named = {id: name for name, id in special}
  return ''.join(named.get(i) or tokenizer.decode([i]) for i in ids)


def batches_of(
  documents,
  tokenizer,
  block_size=16,
  batch_size=4,
  seed=0,
  **kwargs,
):
  """A DocumentDataset with small defaults."""
  return DocumentDataset(
    documents, block_size, batch_size, seed, tokenizer, **kwargs
  )


def train_small(workdir, changes, crash_at='', init_from=''):
  """Trains configs/smoke.py with `changes` in this process.

  Args:
    crash_at: the run crashes when it logs a line with this prefix.

  Returns:
    (Result, or None after a crash; log lines).
  """
  config = smoke.get_config()
  config.update_from_flattened_dict(
    {
      'total_steps': 6,
      'eval.every': 2,
      'checkpoint.every': 3,
      'eval.full_at_end': True,
      'model.n_layer': 1,
      'sample.max_tokens': 8,
      'sample.prompt': '',
      'parallel.num_cpu_devices': 4,
      **changes,
    }
  )

  def crash(line):
    if crash_at and line.startswith(crash_at):
      raise InterruptedError(line)

  with log_lines(crash) as lines:
    try:
      return train_and_evaluate(config, workdir, init_from=init_from), lines
    except InterruptedError:
      return None, lines


def assert_same_params(given, wanted) -> None:
  """Asserts that the latest params of two workdirs are bitwise equal."""
  trees = [
    checkpoint.restore_params(checkpoint.find(workdir, LATEST))
    for workdir in (given, wanted)
  ]
  jax.tree.map(np.testing.assert_array_equal, *trees)
