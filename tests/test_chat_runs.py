"""Whole runs of chat models: prepare, train, resume, generate."""

import importlib
import json

import pytest

from gpt.model import GPTConfig, num_params
from gpt.runs import info
from gpt.runs.evaluate import full_pass, open_dataset
from gpt.runs.load import load_model
from gpt.tokenizers import chat_format, load_tokenizer
from gpt.tokenizers.template_files import CHATML
from tests.support.commands import JAX, run_all
from tests.support.document_tools import (
  assert_same_params,
  conversations,
  train_small,
  write_lines,
)
from tests.support.workdirs import launch

TALKS = conversations(40)
CHAT_RUN = {
  'data.format': 'chat',
  'data.loss_on': 'assistant',
  'data.skip_long': True,
  'data.tokenizer': 'sentencepiece',
  'data.vocab_size': 420,
  'model.block_size': 64,
  'model.arch': 'microgpt',
  'model.dropout': 0.0,
  'sample.prompt': 'what is rust',
}


@pytest.fixture(scope='module')
def talks_file(tmp_path_factory):
  return write_lines(tmp_path_factory.mktemp('talks') / 'talks.jsonl', TALKS)


@pytest.mark.parametrize(
  'name, shape, parameters',
  [
    ('small', (128, 4, 4, 512), 1_900_544),
    ('medium', (256, 8, 6, 1024), 7_077_888),
    ('large', (384, 8, 8, 1024), 17_694_720),
  ],
)
def test_recipes_equal_those_of_microgpt(name, shape, parameters):
  module = importlib.import_module(f'configs.chat_{name}')
  config = module.get_config()
  model, opt = config.model, config.opt
  assert shape == (model.n_embd, model.n_head, model.n_layer, model.block_size)
  cfg = GPTConfig.from_config(model, config.data.vocab_size, 'cpu')
  assert num_params(cfg) == parameters
  assert f'{parameters / 1e6:.2f}M parameters' in module.__doc__
  assert (model.arch, opt.schedule) == ('microgpt', 'linear_warmup')
  assert (opt.b1, opt.b2, opt.eps) == (0.85, 0.99, 1e-8)
  assert opt.clip == 'none'
  assert config.data.format == 'chat'
  assert config.data.skip_long == (name != 'small')
  assert config.data.loss_on == 'assistant'


@pytest.mark.slow
def test_training_reuses_prepared_data(tmp_path):
  path = write_lines(tmp_path / 'talks.jsonl', TALKS)
  workdir = tmp_path / 'run'
  launch(
    'prepare_data',
    '--config=configs/smoke.py',
    '--config.data.format=chat',
    f'--config.data.path={path}',
    '--config.data.tokenizer=sentencepiece',
    '--config.data.vocab_size=420',
    f'--workdir={workdir}',
  )

  def made():
    files = *(workdir / 'cache').glob('*.bin'), workdir / 'tokenizer/spm.model'
    return [(path, path.stat().st_mtime_ns) for path in files]

  before = made()
  train_small(
    workdir,
    {
      'data.format': 'chat',
      'data.path': path,
      'total_steps': 1,
      'data.tokenizer': 'sentencepiece',
      'data.vocab_size': 420,
    },
  )
  assert len(before) == 2 and made() == before


@pytest.mark.slow
@pytest.mark.parametrize('packing', [False, True])
def test_killed_and_resumed_equals_uninterrupted(packing, talks_file, tmp_path):
  changes = {**CHAT_RUN, 'data.path': talks_file, 'data.packing': packing}
  result, _ = train_small(tmp_path / 'whole', changes)
  train_small(tmp_path / 'parts', changes, crash_at='step 4/6')
  _, lines = train_small(tmp_path / 'parts', changes)
  assert 'resuming from step 3' in lines
  assert_same_params(tmp_path / 'parts', tmp_path / 'whole')
  loaded = load_model(tmp_path / 'whole', 'latest')
  with open_dataset(loaded, tmp_path / 'whole') as (ds, s):
    values = full_pass(loaded, ds, s)
  assert values['all_nats_per_token'] == pytest.approx(
    result.final['final']['all_nats_per_token'], rel=1e-5
  )


@pytest.fixture(scope='module')
def trained(talks_file, tmp_path_factory):
  """(workdir, Result, lines) of a run of 2 steps; tests may continue it."""
  workdir = tmp_path_factory.mktemp('trained') / 'run'
  changes = {'data.path': talks_file, 'total_steps': 2, 'seed': 7}
  changes['data.packing'] = True
  return workdir, *train_small(workdir, {**CHAT_RUN, **changes})


def test_the_assistants_loss_is_reported_beside_that_of_all_tokens(trained):
  _, result, lines = trained
  text = '\n'.join(lines)
  assert 'assistant only: ' in text and 'all tokens: ' in text
  assert "sample after 'what is rust':\nwhat is rust\n" in text
  final = result.final['final']
  assert final['nats_per_token'] == final['assistant_nats_per_token']
  assert final['assistant_tokens'] < final['all_tokens']


def test_a_run_resumes_with_its_own_settings(trained, tmp_path):
  """microgpt's --resume DIR --steps N: everything else is the run's."""
  workdir = trained[0]
  before = json.loads((workdir / 'config.json').read_text())
  fingerprint = load_tokenizer(workdir).fingerprint
  resumed, evaluated = run_all(
    [
      ['launch.train', f'--workdir={workdir}', '--additional_steps=2'],
      ['launch.evaluate', f'--workdir={workdir}'],
    ],
    preload=JAX,
  )
  assert resumed.code == 0, resumed.err
  out = resumed.out
  assert 'resuming from step 2' in out and 'finished at step 4' in out
  assert 'skip_long: ' in out and 'windows of 64 tokens' in out
  after = json.loads((workdir / 'config.json').read_text())
  assert after.pop('total_steps') == 4 and before.pop('total_steps') == 2
  assert before == after
  assert load_tokenizer(workdir).fingerprint == fingerprint
  assert evaluated.code == 0, evaluated.err
  values = json.loads(evaluated.out.splitlines()[-1])
  assert values['assistant_tokens'] < values['all_tokens']
  assert 'assistant only: ' in evaluated.out
  assert 'all tokens: ' in evaluated.out
  # Another file is evaluated as a whole.
  other = write_lines(tmp_path / 'other.jsonl', TALKS[:3])
  with open_dataset(load_model(workdir), workdir, other) as (_, split):
    assert split == 'all'


@pytest.mark.slow
def test_samples_of_a_chat_model_are_answers_or_conversations(
  talks_file, tmp_path
):
  workdir = tmp_path / 'run'
  train_small(workdir, {**CHAT_RUN, 'data.path': talks_file, 'total_steps': 2})
  out, err = launch(
    'generate', f'--workdir={workdir}', '--prompt=hello', '--max_tokens=9'
  )
  assert 'python -m launch.chat' in err and '<|' not in out
  out, _ = launch(
    'generate',
    f'--workdir={workdir}',
    '--temperature=3',
    '--top_p=1',
    '--seed=3',
  )
  assert (
    chat_format.USER in out
    or chat_format.ASSISTANT in out
    or chat_format.END_TURN in out
  )


@pytest.mark.slow
def test_a_run_with_a_chat_template_trains_resumes_and_answers(
  talks_file, tmp_path
):
  workdir = tmp_path / 'run'
  changes = {**CHAT_RUN, 'data.path': talks_file, 'total_steps': 2}
  changes |= {'data.chat_template': 'chatml', 'data.packing': True}
  result, lines = train_small(workdir, changes)
  assert "sample after 'what is rust':\nwhat is rust\n" in '\n'.join(lines)
  final = result.final['final']
  assert 0 < final['assistant_tokens'] < final['all_tokens']
  _, lines = train_small(workdir, {**changes, 'total_steps': 3})
  assert 'resuming from step 2' in lines
  loaded = load_model(workdir)
  assert loaded.tokenizer.chat_template == CHATML
  facts = info.describe(loaded, workdir)
  assert 'chat: Jinja template of' in info.page(facts)
  with open_dataset(loaded, workdir) as (dataset, split):
    values = full_pass(loaded, dataset, split)
  assert values['assistant_tokens'] == final['assistant_tokens']
  # A new run from its weights follows the same template.
  other = {**changes, 'data.chat_template': '', 'total_steps': 1}
  train_small(tmp_path / 'other', other, init_from=str(workdir))
  assert load_tokenizer(tmp_path / 'other').chat_template == CHATML
