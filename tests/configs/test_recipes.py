"""launch.bench.recipes: runs from a cold start, found again, and drawn."""

import json
import math

import pytest

from launch.bench.recipes import ABLATIONS
from tests.support.workdirs import launch


def test_a_recipe_is_run_once_and_drawn(tmp_path):
  args = 'bench.recipes', f'--output={tmp_path}'
  out, _ = launch(*args, '--recipe=smoke', '--seeds=1')
  assert out.count('-m launch.train --config=configs/smoke.py') == 1
  report = json.loads(out.splitlines()[-1])
  assert (report['recipe'], report['seeds']) == ('smoke', 1)
  assert 0 < report['nats_per_token'] < 2 * math.log(67)
  assert report['wall_s'] > 0
  again, _ = launch(*args, '--recipe=smoke', '--seeds=1')
  assert 'launch.train' not in again
  assert json.loads(again.splitlines()[-1]) == report
  out, _ = launch(*args, '--recipe=smoke', '--seeds=1', '--change=lr=1e-3')
  changed = json.loads(out.splitlines()[-1])
  assert changed['nats_per_token'] != report['nats_per_token']
  assert '--config.lr=1e-3' in out
  launch(*args, f'--draw={tmp_path}/loss.png')
  assert (tmp_path / 'loss.png').read_bytes().startswith(b'\x89PNG')
  path = tmp_path / 'smoke-1' / 'config.json'  # Of an older recipe.
  path.write_text(path.read_text().replace('"lr": ', '"lr": 1'))
  _, err = launch(*args, '--recipe=smoke', '--seeds=1', code=2)
  assert 'smoke-1 was made with lr ' in err


@pytest.mark.parametrize(
  'args, message',
  [
    ([], '--recipe=NAME'),
    (['--draw=x.png', '--output=nowhere'], 'no finished run in nowhere'),
    (['--recipe=nanogpt_cpu', '--ablate'], 'nanogpt_cpu has none of them'),
    (['--recipe=smoke', '--only=GELU'], 'give both'),
    (['--recipe=smoke', '--seeds='], 'at least one is needed'),
    (['--recipe=smoke', '--ablate', '--only=Glue'], 'the options are - Muon'),
    (['--recipe=smoke', '--ablate', '--change=lr=1'], 'leave out --change'),
  ],
)
def test_mistakes_are_explained(args, message):
  _, err = launch('bench.recipes', *args, code=2)
  assert message in err


def test_a_run_that_was_cut_short_is_not_resumed(tmp_path):
  (tmp_path / 'smoke-1').mkdir()
  _, err = launch(
    'bench.recipes',
    f'--output={tmp_path}',
    '--recipe=smoke',
    '--seeds=1',
    code=2,
  )
  assert 'smoke-1 holds a run that was cut short' in err


def test_ablations_change_keys_that_exist():
  from configs import default

  for changes in ABLATIONS.values():
    for key, new in changes.items():
      value = default.get_config()
      for part in key.split('.'):
        value = value[part]
      assert isinstance(new, type(value)), key
