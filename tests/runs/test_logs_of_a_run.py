"""metrics.jsonl and samples.txt: damaged or in the way, they stop nothing."""

import json
import os
import shutil

import pytest

from gpt.reports import html
from gpt.runs import metrics, samples
from gpt.runs.metrics import MetricsLog
from tests.support.logs import log_lines
from tests.support.train_runs import run_here
from tests.support.workdirs import launch

ROOT_USER = hasattr(os, 'geteuid') and os.geteuid() == 0


def lines(n: int) -> list[bytes]:
  return [
    json.dumps({'step': i, 'loss': 1 / i, 'lr': 0.1}).encode()
    for i in range(1, n + 1)
  ]


def reopened(workdir, step: int):
  """(steps kept, warnings) of a log after a resume at `step`."""
  with log_lines() as seen:
    log = MetricsLog(workdir, step)
    log.write(step + 1, loss=0.5)
    log.close()
  kept = (workdir / metrics.FILE).read_bytes().splitlines()
  return [json.loads(line)['step'] for line in kept], seen


DAMAGE = {
  'no json': b'{"step": 3, "lo',
  'cut inside a character': '{"step": 3, "text": "\u20ac'.encode()[:-1],
  'no step': b'{"loss": 1.0}',
  'a step that is text': b'{"step": "3"}',
  'a negative step': b'{"step": -3}',
  'a step beyond all integers': b'{"step": 1e300}',
  'more digits than Python reads': b'{"step": ' + b'9' * 5000 + b'}',
  'a list': b'[3]',
  'deep': b'[' * 100_000,
  'NULs': b'\x00' * 4096 + b'\xff',
  'a huge line': b'{"step": 3, "x": "' + b'x' * (1 << 21) + b'"}',
}


@pytest.mark.parametrize('bad', DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_line_costs_that_line_alone(tmp_path, bad):
  path, good = tmp_path / metrics.FILE, lines(26)
  damaged = b'\n'.join([*good[:2], bad, *good[3:], b''])
  path.write_bytes(damaged)
  steps, seen = reopened(tmp_path, 24)
  assert steps == [1, 2, *range(4, 26)]
  assert (tmp_path / f'{metrics.FILE}.damaged').read_bytes() == damaged
  assert seen == [
    f'warning: {path}: left out 1 damaged line; the file as it was is '
    f'{metrics.FILE}.damaged'
  ]
  # The second damage does not replace the bytes of the first.
  path.write_bytes(damaged)
  reopened(tmp_path, 24)
  assert (tmp_path / f'{metrics.FILE}.damaged.1').read_bytes() == damaged


def test_a_cut_last_line_of_a_step_that_is_trained_again_is_no_damage(tmp_path):
  (tmp_path / metrics.FILE).write_bytes(b'\n'.join(lines(9))[:-5])
  assert reopened(tmp_path, 8) == ([*range(1, 10)], [])
  assert [p.name for p in tmp_path.iterdir()] == [metrics.FILE]


def test_a_cut_last_line_of_a_step_that_is_kept_is_set_aside(tmp_path):
  cut = b'\n'.join(lines(9))[:-5]
  (tmp_path / metrics.FILE).write_bytes(cut)
  steps, seen = reopened(tmp_path, 9)
  assert steps == [*range(1, 9), 10]
  assert len(seen) == 1 and 'left out 1 damaged line' in seen[0]
  assert (tmp_path / f'{metrics.FILE}.damaged').read_bytes() == cut


def test_nuls_before_a_line_do_not_cost_the_line(tmp_path):
  path = tmp_path / metrics.FILE
  path.write_bytes(b'\x00' * 100 + b'\n'.join([*lines(3), b'']))
  assert [x['step'] for x in metrics.read(path)] == [1, 2, 3]


def test_values_that_no_run_writes_are_dropped(tmp_path):
  path = tmp_path / metrics.FILE
  path.write_text('{"step": 1, "a": [1], "b": {}, "c": 1e400, "d": null}\n')
  assert metrics.read(path) == [{'step': 1, 'c': float('inf'), 'd': None}]
  path.write_text('{"step": 1, "a": ' + '9' * 400 + ', "b": true}\n')
  assert metrics.read(path) == [{'step': 1, 'b': True}]


@pytest.mark.parametrize('name', [metrics.FILE, samples.FILE, 'tensorboard'])
@pytest.mark.parametrize('kind', ['directory', 'pipe', 'unreadable'])
def test_something_else_in_its_place_stops_no_run(tmp_path, name, kind):
  path = tmp_path / name
  changes = {'total_steps': 2, 'eval.sample': True, 'tensorboard': True}
  run_here(tmp_path, changes)
  if path.is_dir():
    path.rename(tmp_path / 'elsewhere')
  else:
    path.unlink()
  if kind == 'directory' and name != 'tensorboard':
    path.mkdir()
  elif kind == 'pipe':
    os.mkfifo(path)
  else:
    path.write_bytes(b'\xff')
    path.chmod(0)
  result, seen = run_here(tmp_path, changes, additional_steps=2)
  assert result.step == 4
  steps = [line['step'] for line in metrics.read(tmp_path / metrics.FILE)]
  assert steps[-1] == 4
  assert [step for step, _ in samples.read(tmp_path)][-1] == 4
  warned = [x for x in seen if 'cannot be' in x and 'damaged' in x]
  if name != 'tensorboard' and not (kind == 'unreadable' and ROOT_USER):
    assert len(warned) == 1, seen
    assert (tmp_path / f'{name}.damaged').exists()
  if name == 'tensorboard':
    assert any('training goes on without them' in x for x in seen)


@pytest.mark.parametrize('name', [metrics.FILE, samples.FILE])
def test_a_log_of_a_terabyte_is_set_aside_unread(tmp_path, name):
  path = tmp_path / name
  path.touch()
  os.truncate(path, 1 << 40)  # Sparse.
  with log_lines() as seen:
    samples.keep(tmp_path, 3)
    MetricsLog(tmp_path, 3).close()
  assert len(seen) == 1 and f'is now {name}.damaged' in seen[0]
  path.touch()
  os.truncate(path, 1 << 40)
  with log_lines() as seen:
    found = samples.read(tmp_path) or metrics.read(tmp_path / metrics.FILE)
  assert not found and 'more than 4,294,967,296 bytes' in seen[0]


def test_a_full_disk_costs_lines_and_no_step(tmp_path):
  os.symlink('/dev/full', tmp_path / metrics.FILE)
  with log_lines() as seen:
    log = MetricsLog(tmp_path)
    for step in range(3):
      log.write(step, loss=1.0)
    log.close()
  # A device is no log: it is set aside.
  assert len(seen) == 1 and 'is now metrics.jsonl.damaged' in seen[0]
  assert len(metrics.read(tmp_path / metrics.FILE)) == 3


def test_samples_keep_their_bytes_and_resume_at_any_cut(tmp_path):
  path = tmp_path / samples.FILE
  good = '--- step 2\nOne \u20ac\n--- step 4\nTwo\n'.encode()
  path.write_bytes(good + b'--- step 6\nThree \xe2\x82')
  samples.keep(tmp_path, 6)
  assert path.read_bytes().startswith(good)
  assert samples.read(tmp_path)[-1] == (6, 'Three \ufffd')
  samples.keep(tmp_path, 4)
  assert path.read_bytes() == good
  path.write_bytes(good + b'--- step 6')  # Cut inside its first line.
  samples.keep(tmp_path, 5)
  assert path.read_bytes() == good
  path.write_bytes(good.replace('\u20ac'.encode(), b'\xff\x00'))
  samples.keep(tmp_path, 4)
  assert samples.read(tmp_path) == [(2, 'One \ufffd\x00'), (4, 'Two')]


def test_report_info_generate_and_export_survive_damaged_logs(
  trained_workdir, tmp_path
):
  run = shutil.copytree(trained_workdir, tmp_path / 'run')
  path = run / metrics.FILE
  good = path.read_bytes().splitlines()
  path.write_bytes(b'\n'.join([good[0], b'\xff\x00', b'{}', *good[1:]]))
  (run / samples.FILE).write_bytes(b'\xff\xfe--- step \n\x00')
  with log_lines() as seen:
    page = html.report(run)
  assert f'step {metrics.last_step(metrics.read(path)):,} of' in page
  assert seen == [f'warning: {path}: left out 2 damaged lines']
  for command in (
    ['info'],
    ['generate', '--max_tokens=2'],
    ['export', '--format=hf', f'--output={tmp_path / "hf"}'],
    ['report'],
  ):
    name, *args = command
    _, err = launch(name, f'--workdir={run}', *args)
    assert err.count('damaged lines') == (name in ('export', 'report')), err
