"""launch.bench.hostile and launch.bench.turns against a tiny model."""

import json

import pytest

from tests.support.serving_tools import chat_tokenizer, make_random
from tests.support.workdirs import launch


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('bench') / 'run'
  make_random(workdir, chat_tokenizer(), block_size=256)
  return workdir


def report(*args):
  out, _ = launch(*args)
  return json.loads(out.splitlines()[-1])


@pytest.mark.slow
def test_hostile_clients_break_nothing(workdir):
  found = report('bench.hostile', f'--workdir={workdir}', '--duration=20')
  assert found['faults'] == []
  assert found['honest'] > 0 and found['slow_readers'] > 0
  assert (found['left_behind'], found['programs'], found['exit_code']) == (
    (0, 0, 0)
  )


@pytest.mark.slow
def test_the_next_turn_has_its_text_with_reuse_and_without(workdir):
  found = report('bench.turns', f'--workdir={workdir}', '--rounds=2')
  assert found['tokens'] == 200 and found['exit_codes'] == [0, 0]
