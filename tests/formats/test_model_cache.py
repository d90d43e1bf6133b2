"""Imported models are made once, kept whole, and made again when damaged."""

import json
import multiprocessing
import os
import pathlib
import signal
import time

import pytest

from gpt.errors import UserError
from gpt.formats.model_cache import CachedRun, cache_directory, name_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  return cache_directory()


class Fill:
  """Makes a run of two files, and counts how often it was asked."""

  def __init__(self, text='weights'):
    self.times, self.text = 0, text

  def __call__(self, workdir):
    self.times += 1
    (workdir / 'checkpoints').mkdir(parents=True)
    (workdir / 'checkpoints/weights').write_text(self.text)
    (workdir / 'config.json').write_text('{}')


def test_a_run_is_made_once(cache):
  fill, run = Fill(), CachedRun('/models/tiny.gguf', context=64)
  assert not run.exists()
  workdir = run.make(fill)
  assert workdir.parent.parent == cache and workdir.name == 'tiny'
  assert (workdir / 'checkpoints/weights').read_text() == 'weights'
  assert CachedRun('/models/tiny.gguf', context=64).make(fill) == workdir
  assert fill.times == 1


def test_another_source_or_option_is_another_run():
  fill = Fill()
  places = {
    CachedRun(source, context=context).make(fill)
    for source in ('/a/tiny.gguf', '/b/tiny.gguf')
    for context in (64, 128)
  }
  assert len(places) == 4 and fill.times == 4


def test_a_changed_source_replaces_its_run():
  fill, run = Fill(), CachedRun('/models/tiny.gguf')
  run.make(fill, stamp=[1])
  assert run.exists([1]) and not run.exists([2])
  fill.text = 'new'
  workdir = run.make(fill, stamp=[2])
  assert (workdir / 'checkpoints/weights').read_text() == 'new'
  assert len(list(workdir.parent.glob('[!.]*'))) == 2  # And source.json.


@pytest.mark.parametrize('damage', ['cut', 'missing', 'more', 'record', 'list'])
def test_a_damaged_run_is_made_anew(damage):
  fill, run = Fill(), CachedRun('/models/tiny.gguf')
  workdir = run.make(fill)
  record = workdir.parent / 'source.json'
  if damage == 'cut':
    (workdir / 'checkpoints/weights').write_text('wei')
  elif damage == 'missing':
    (workdir / 'config.json').unlink()
  elif damage == 'more':
    (workdir / 'stray').write_text('x')
  else:
    record.write_text('{"version": ' if damage == 'record' else '[]')
  assert not run.exists()
  run.make(fill)
  assert fill.times == 2 and run.exists()
  assert (workdir / 'checkpoints/weights').read_text() == 'weights'
  assert json.loads(record.read_text())['source'] == '/models/tiny.gguf'


def test_a_run_that_was_trained_in_the_cache_is_not_deleted():
  fill, run = Fill(), CachedRun('/models/tiny.gguf')
  metrics = run.make(fill) / 'metrics.jsonl'
  metrics.write_text('{"step": 1}')
  with pytest.raises(UserError, match='move it out of the cache'):
    run.make(fill)
  assert fill.times == 1 and metrics.exists()


def test_locks_and_temporary_files_do_not_count():
  fill, run = Fill(), CachedRun('/models/tiny.gguf')
  (run.make(fill) / '.lock').touch()
  assert run.exists()


def test_a_discarded_run_is_made_anew():
  fill, run = Fill(), CachedRun('/models/tiny.gguf')
  run.make(fill)
  run.discard()
  run.make(fill)
  assert fill.times == 2


def test_a_failed_import_leaves_nothing(cache):
  def fails(workdir):
    Fill()(workdir)
    raise UserError('no such format')

  run = CachedRun('/models/tiny.gguf')
  with pytest.raises(UserError, match='no such format'):
    run.make(fails)
  assert [p.name for p in cache.rglob('*') if p.is_file()] == ['.lock']


def import_slowly(started):
  def fill(workdir):
    Fill('from the other process')(workdir)
    started.set()
    time.sleep(600)  # Until it is killed.

  CachedRun('/models/tiny.gguf').make(fill)


def test_a_killed_import_is_no_run():
  context = multiprocessing.get_context('spawn')
  started = context.Event()
  process = context.Process(target=import_slowly, args=(started,))
  process.start()
  assert started.wait(60)
  os.kill(process.pid, signal.SIGKILL)
  process.join()
  run, fill = CachedRun('/models/tiny.gguf'), Fill()
  assert not run.exists()
  workdir = run.make(fill)
  assert fill.times == 1
  assert not list(workdir.parent.glob('.making-*'))


def import_counting(counter, barrier):
  def fill(workdir):
    with counter.get_lock():
      counter.value += 1
    Fill()(workdir)

  barrier.wait(60)
  workdir = CachedRun('/models/tiny.gguf').make(fill)
  assert (workdir / 'checkpoints/weights').read_text() == 'weights'


def test_of_many_processes_one_makes_the_run():
  context = multiprocessing.get_context('spawn')
  counter, barrier = context.Value('i', 0), context.Barrier(4)
  processes = [
    context.Process(target=import_counting, args=(counter, barrier))
    for _ in range(4)
  ]
  for process in processes:
    process.start()
  for process in processes:
    process.join()
  assert [process.exitcode for process in processes] == [0] * 4
  assert counter.value == 1


def test_a_cache_that_cannot_be_written_is_a_clear_error(cache):
  cache.parent.mkdir(parents=True)
  cache.write_text('a file in its place')
  with pytest.raises(UserError, match='cannot write to .*models/tiny-'):
    CachedRun('/models/tiny.gguf').make(Fill())


@pytest.mark.parametrize(
  'source, name',
  [
    ('hf://owner/Name-1.5', 'Name-1.5'),
    ('hf://owner/name@main', 'name'),
    ('hf://owner/name/sub/file.Q4_1.gguf', 'file.Q4_1'),
    ('/models/tiny.gguf', 'tiny'),
    ('/models/a b/', 'a-b'),
    ('/', 'model'),
    ('/models/..', 'model'),
  ],
)
def test_runs_are_named_after_their_source(source, name):
  assert name_of(source) == name


def test_the_cache_is_where_xdg_says(monkeypatch, tmp_path):
  assert cache_directory() == tmp_path / 'rgpt/models'
  monkeypatch.setenv('XDG_CACHE_HOME', '')
  monkeypatch.setenv('HOME', '/home/ann')
  assert cache_directory() == pathlib.Path('/home/ann/.cache/rgpt/models')
