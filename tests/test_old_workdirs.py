"""Workdirs of rgpt 0.1 still resume, generate, evaluate, serve and export.

tests/fixtures/v0.1/README.md explains how they were made. The expected numbers
are those of the version that wrote them.
"""

import json
import pathlib
import shutil
import tarfile

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from gpt.formats.convert import export, import_directory
from gpt.formats.randygpt import read_rgpt
from gpt.formats.randygpt_run import export_rgpt
from gpt.runs import info, metrics
from gpt.runs.config_file import read_config
from gpt.runs.evaluate import full_pass, open_dataset
from gpt.runs.load import load_model, params_sha256
from gpt.train import train_and_evaluate
from tests.support.serving_tools import serving
from tests.support.workdirs import launch

FIXTURES = pathlib.Path(__file__).parent / 'fixtures' / 'v0.1'
EXPECTED = json.loads((FIXTURES / 'expected.json').read_text())
# Four devices sum in another order than the one that made the numbers. A resume
# that lost the weights, the moments, the schedule's step or the data's order
# would be off by 1e-5 or more.
LOSS_TOLERANCE = 2e-6


@pytest.fixture(scope='module')
def old(tmp_path_factory):
  """A directory with the three workdirs and their data; not to be changed."""
  directory = tmp_path_factory.mktemp('old')
  for name in ('text.txt', 'names.txt', 'chat.jsonl'):
    shutil.copy(FIXTURES / name, directory)
  for name in EXPECTED:
    with tarfile.open(FIXTURES / f'{name}.tar.gz') as archive:
      archive.extractall(directory, filter='data')
  return directory


@pytest.fixture(scope='module', params=EXPECTED)
def run(request, old):
  """(workdir at step 6, what 0.1 did with it)."""
  return old / request.param, EXPECTED[request.param]


@pytest.fixture(autouse=True)
def beside_the_data(old, monkeypatch):
  """data.path is relative to the directory that training was started in."""
  monkeypatch.chdir(old)


def test_an_old_run_loads_bit_for_bit(run):
  workdir, expected = run
  loaded = load_model(workdir)
  assert params_sha256(loaded.params) == expected['params_sha256']
  assert loaded.tokenizer.fingerprint == expected['fingerprint']
  facts = info.describe(loaded, workdir)
  assert (facts['step'], facts['total_steps']) == (6, 6)
  assert facts['best_loss'] == expected['val_loss']['6']
  assert facts['checkpoints'] == {'best': [6], 'latest': [6]}
  assert facts['data']['description'] == facts['config']['data']['path']
  assert workdir.name in info.page(facts)


def test_an_old_run_resumes_as_the_old_version_did(run, tmp_path):
  old_workdir, expected = run
  workdir = tmp_path / old_workdir.name
  shutil.copytree(old_workdir, workdir)
  config = ConfigDict(read_config(workdir))
  config.total_steps = 9
  config.parallel.num_cpu_devices = jax.device_count()
  result = train_and_evaluate(config, workdir)
  assert (result.outcome, result.step) == ('finished', 9)

  before = metrics.read(old_workdir / metrics.FILE)
  lines = metrics.read(workdir / metrics.FILE)
  assert lines[: len(before)] == before
  new = lines[len(before) :]
  steps = {str(x['step']): x for x in new if 'loss' in x}
  assert steps.keys() == expected['steps'].keys()
  for step, wanted in expected['steps'].items():
    given = steps[step]
    assert given['loss'] == pytest.approx(wanted['loss'], rel=LOSS_TOLERANCE)
    assert given['grad_norm'] == pytest.approx(wanted['grad_norm'], rel=1e-3)
    assert given['lr'] == pytest.approx(wanted['lr'], rel=1e-6)
    assert given['tokens'] == wanted['tokens']
  evals = {str(x['step']): x['val_loss'] for x in lines if 'val_loss' in x}
  assert evals == pytest.approx(expected['val_loss'], rel=LOSS_TOLERANCE)
  assert result.best_loss == evals['9'] < evals['6']
  assert new[-1]['full_final_tokens'] == expected['full_tokens']
  assert new[-1]['full_final_nats_per_token'] == pytest.approx(
    expected['full_pass']['9'], rel=LOSS_TOLERANCE
  )


def test_an_old_run_is_evaluated_on_its_own_data(run, tmp_path):
  old_workdir, expected = run
  workdir = tmp_path / old_workdir.name
  shutil.copytree(old_workdir, workdir)
  loaded = load_model(workdir, 'latest')
  with open_dataset(loaded, workdir) as (dataset, split):
    values = full_pass(loaded, dataset, split)
  assert split == 'val'
  assert values['tokens'] == expected['full_tokens']
  assert values['nats_per_token'] == pytest.approx(
    expected['full_pass']['6'], rel=LOSS_TOLERANCE
  )


@pytest.mark.parametrize('name', ['text', 'names'])
def test_an_old_run_generates_the_same_text(name, old):
  out, _ = launch(
    'generate',
    f'--workdir={old / name}',
    '--temperature=0',
    '--max_tokens=24',
    '--prompt=The ',
  )
  assert out == EXPECTED[name]['greedy'] + '\n'


def test_an_old_chat_run_is_served_and_says_the_same(old):
  with serving(old / 'chat') as server, server.client() as client:
    reply = client.post(
      '/v1/chat/completions',
      json={
        'messages': [{'role': 'user', 'content': 'The '}],
        'temperature': 0,
        'max_tokens': 24,
      },
    ).json()
  content = reply['choices'][0]['message']['content']
  assert content == EXPECTED['chat']['greedy']


def test_an_old_run_exports_to_every_format_that_can_hold_it(run, tmp_path):
  workdir, _ = run
  loaded = load_model(workdir)
  for format in ('safetensors', 'hf'):
    assert export(workdir, 'best', format, tmp_path / format, 'f32')[1] == 6
  import_directory(
    tmp_path / 'hf', 'hf', default.get_config(), tmp_path / 'again'
  )
  again = load_model(tmp_path / 'again')
  jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)
  assert again.tokenizer.fingerprint == loaded.tokenizer.fingerprint

  if loaded.cfg.pos == 'learned':  # All that an RGPT file can hold.
    export_rgpt(workdir, 'best', tmp_path / 'best.bin')
    old_bytes = (workdir / 'checkpoint_best.bin').read_bytes()
    assert (tmp_path / 'best.bin').read_bytes() == old_bytes
    cfg = loaded.cfg
    read = read_rgpt(
      tmp_path / 'best.bin',
      cfg.n_embd,
      cfg.n_layer,
      cfg.block_size,
      cfg.vocab_size,
    )
    assert read.iter == 5
