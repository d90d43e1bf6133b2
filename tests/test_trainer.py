"""The training loop: when it pauses, and what a start reads."""

import ast
import pathlib

import pytest

from gpt import files, train
from gpt.data import sources
from gpt.due import Due, what_is_due
from tests.support.data_tools import TEXT
from tests.support.train_runs import run_here, settings


@pytest.mark.parametrize(
  'step, due',
  [
    (5, ''),
    (4, 'first'),  # The process began after step 3.
    (6, 'eval'),
    (10, 'save'),
    (30, 'eval save'),
    (31, 'eval save'),  # The last step, whatever the intervals.
  ],
)
def test_what_is_due_after_a_step(step, due):
  config = settings({'eval.every': 6, 'checkpoint.every': 10})
  found = what_is_due(step, 3, 31, config)
  assert found == Due(*(name in due.split() for name in Due._fields))
  assert bool(found) == bool(due)


def test_without_an_interval_only_the_last_step_is_saved():
  config = settings({'checkpoint.every': 0})
  assert not what_is_due(30, 3, 31, config).save
  assert what_is_due(31, 3, 31, config).save


def test_a_start_reads_config_and_text_once(tmp_path, monkeypatch):
  text = tmp_path / 'text.txt'
  text.write_text(TEXT[:4000])
  changes = {'data.path': str(text), 'total_steps': 2, 'eval.every': 2}
  reads = []

  def count(path):
    reads.append(pathlib.Path(path).name)
    return open_file(path)

  def count_hash(self):
    reads.append('hash')
    return hashed.func(self)

  open_file, hashed = files.open_file, sources.Sources._hashed
  monkeypatch.setattr(files, 'open_file', count)
  patched = type(hashed)(count_hash)
  patched.__set_name__(sources.Sources, '_hashed')
  monkeypatch.setattr(sources.Sources, '_hashed', patched)
  for more in (0, 1):  # A new run, then a resumed one.
    reads.clear()
    run_here(tmp_path / 'run', {**changes, 'total_steps': 2 + more})
    assert reads.count('config.json') == 1, reads
    assert reads.count('hash') == 1, reads


def test_the_main_function_fits_two_screens():
  source = pathlib.Path(train.__file__).read_text(encoding='utf-8')
  (main,) = (
    node
    for node in ast.parse(source).body
    if isinstance(node, ast.FunctionDef) and node.name == 'train_and_evaluate'
  )
  first = main.body[1]  # After the docstring.
  assert main.end_lineno - first.lineno + 1 <= 60
