"""launch.bench.recipes: runs from a cold start, found again, and drawn."""

import json
import math

from launch.bench.recipes import ABLATIONS
from tests.support.commands import assert_refused, run_all

NAME = 'launch.bench.recipes'


def test_a_recipe_is_run_once_and_drawn(tmp_path):
  args = [NAME, f'--output={tmp_path}']
  changed = [*args, '--recipe=smoke', '--seeds=1', '--change=lr=1e-3']
  first, again, drawn = run_all(
    [changed, changed, [*args, f'--draw={tmp_path}/loss.png']]
  )
  assert first.code == 0, first.err
  assert first.out.count('-m launch.train --config=configs/smoke.py') == 1
  assert '--config.lr=1e-3' in first.out
  report = json.loads(first.out.splitlines()[-1])
  assert (report['recipe'], report['seeds']) == ('smoke', 1)
  assert 0 < report['nats_per_token'] < 2 * math.log(67)
  assert report['wall_s'] > 0
  assert 'launch.train' not in again.out
  assert json.loads(again.out.splitlines()[-1]) == report
  assert drawn.code == 0, drawn.err
  assert (tmp_path / 'loss.png').read_bytes().startswith(b'\x89PNG')
  path = tmp_path / 'smoke-lr_1e_3-1' / 'config.json'
  saved = json.loads(path.read_text())
  assert saved['lr'] == 1e-3
  path.write_text(json.dumps(saved | {'batch_size': 77}))  # An older recipe's.
  # Without the change it is another run, here one that was cut short.
  (tmp_path / 'smoke-1').mkdir()
  older, cut = run_all([changed, changed[:-1]])
  assert_refused(older, 'was made with batch_size 77')
  assert_refused(cut, 'smoke-1 holds a run that was cut short')


def test_mistakes_are_explained():
  cases = {
    '--recipe=NAME': [],
    'no finished run in nowhere': ['--draw=x.png', '--output=nowhere'],
    'nanogpt_cpu has none of them': ['--recipe=nanogpt_cpu', '--ablate'],
    'give both': ['--recipe=smoke', '--only=GELU'],
    'at least one is needed': ['--recipe=smoke', '--seeds='],
    'the options are - Muon': ['--recipe=smoke', '--ablate', '--only=Glue'],
    'leave out --change': ['--recipe=smoke', '--ablate', '--change=lr=1'],
  }
  done = run_all([[NAME, *args] for args in cases.values()])
  for one, message in zip(done, cases):
    assert_refused(one, message)


def test_ablations_change_keys_that_exist():
  from configs import default

  for changes in ABLATIONS.values():
    for key, new in changes.items():
      value = default.get_config()
      for part in key.split('.'):
        value = value[part]
      assert isinstance(new, type(value)), key
