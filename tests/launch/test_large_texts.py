"""Large texts through the commands: ahead of training, and in two processes."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.support.data_tools import TEXT, write
from tests.support.workdirs import ROOT

pytestmark = pytest.mark.slow
COPIES = 2600  # 52 MB: more than SHARDS_FROM of corpus_tokens.py.


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  return write(tmp_path_factory.mktemp('text') / 'a.txt', TEXT * COPIES)


def run(*args, code=0):
  done = subprocess.run(
    [sys.executable, '-m', *map(str, args)],
    cwd=ROOT,
    text=True,
    capture_output=True,
    timeout=280,
  )
  assert done.returncode == code, done.stderr + done.stdout
  assert 'Traceback' not in done.stderr, done.stderr
  return done.stdout + done.stderr


def manifest(workdir):
  (path,) = workdir.glob('cache/corpus-*/manifest.json')
  return json.loads(path.read_text())


def test_two_processes_share_the_work_and_train(text, tmp_path):
  workdir = tmp_path / 'run'
  out = run(
    'launch.local',
    '--processes=2',
    '--',
    'launch.train',
    '--config=configs/smoke.py',
    '--config.parallel.distributed',
    '--config.total_steps=2',
    '--config.eval.full_at_end=false',
    f'--config.data.path={text}',
    f'--workdir={workdir}',
  )
  assert 'finished at step 2' in out
  found = manifest(workdir)
  assert found['n_tokens'] == found['chars'] == len(TEXT) * COPIES
  (first, *_) = sorted(workdir.glob('cache/corpus-*/*.bin'))
  tokens = np.fromfile(first, found['dtype'])
  assert np.array_equal(tokens[: len(TEXT)], tokens[len(TEXT) :][: len(TEXT)])


def test_shares_are_prepared_one_by_one(text, tmp_path):
  args = ['launch.prepare_data', '--config=configs/smoke.py']
  args += [f'--config.data.path={text}', f'--workdir={tmp_path / "run"}']
  out = run(*args, '--share=2/2', code=2)
  assert 'finds no tokenizer' in out
  run(*args, '--share=1/2')
  assert 'encoded 52 MB' in run(*args, '--share=2/2')
  assert 'encoded' not in run(*args)
  assert manifest(tmp_path / 'run')['n_tokens'] == len(TEXT) * COPIES
  assert 'give a number' in run(*args, '--share=3/2', code=2)
