"""launch.info describes the run and the checkpoint."""

import importlib.metadata
import json
import re

import jax
import numpy as np
import pytest

from gpt.model import num_params
from gpt.runs import info
from gpt.runs.load import load_model, params_sha256
from gpt.tokenizers import build_tokenizer
from tests.support.workdirs import launch, make_run


def test_json_describes_the_run(trained_workdir):
  out, err = launch('info', f'--workdir={trained_workdir}', '--json')
  facts = json.loads(out)
  loaded = load_model(trained_workdir)
  assert err == ''
  assert facts['name'] == 'randygpt-2L-4H-32D'
  assert facts['architecture']['n_layer'] == 2
  assert facts['architecture']['mlp'] == 'relu2'  # 'auto', resolved.
  assert facts['parameters'] == num_params(loaded.cfg)
  assert facts['params_sha256'] == params_sha256(loaded.params)
  assert facts['tokenizer']['kind'] == 'char'
  assert facts['tokenizer']['vocab_size'] == loaded.cfg.vocab_size
  assert facts['tokenizer']['fingerprint'] == loaded.tokenizer.fingerprint
  assert facts['step'] == loaded.step
  assert facts['total_steps'] == 20
  assert facts['best_loss'] == loaded.meta['best_loss']
  assert facts['elapsed_s'] > 0
  assert facts['data']['description'] == 'the built-in sample text'
  assert re.fullmatch('[0-9a-f]{64}', facts['data']['text_sha256'])
  assert facts['checkpoints']['latest'] == [15, 20]
  assert facts['versions']['jax'] == jax.__version__
  for name, package in (
    ('orbax', 'orbax-checkpoint'),
    ('rgpt', 'rgpt'),
    ('flax', 'flax'),
    ('optax', 'optax'),
  ):
    assert facts['versions'][name] == importlib.metadata.version(package)
  assert facts['config']['model']['mlp'] == 'auto'


def test_the_page_names_every_topic(trained_workdir):
  out, _ = launch('info', f'--workdir={trained_workdir}', '--which=latest')
  page = dict(re.split('  +', line, maxsplit=1) for line in out.splitlines())
  assert 'randygpt-2L-4H-32D' in page['run']
  assert page['checkpoint'].startswith('latest, step 20 of 20, best val loss ')
  assert page['architecture'].startswith('randy: 2 layers x 32, 4 heads')
  assert page['tokenizer'].startswith('char, ')
  assert page['data'] == 'the built-in sample text'
  assert 'latest: 15, 20' in page['checkpoints']
  assert f'jax {jax.__version__}' in page['versions']
  assert len(page['params_sha256']) == 64


def test_options_that_are_on_are_named(tmp_path):
  tokenizer = build_tokenizer('char', ['ab'], 0, special_tokens=['<|user|>'])
  options = dict(
    qk_norm=True,
    tied_embeddings=True,
    n_kv_head=2,
    pos='rope',
    logit_softcap=15.0,
    mlp='swiglu',
  )
  make_run(tmp_path, tokenizer, lambda _, shape: np.ones(shape), **options)
  facts = info.describe(load_model(tmp_path), tmp_path)
  line = info.page(facts)
  for part in (
    'qk_norm',
    'tied_embeddings',
    '2 key/value heads',
    'swiglu',
    'positions rope',
    'capped at 15',
    'with <|user|>',
  ):
    assert part in line
  assert 'final_norm' not in line


def test_unknown_values_are_null_in_valid_json(tmp_path):
  """An import knows no loss and no elapsed time."""
  tokenizer = build_tokenizer('char', ['ab'], 0)
  make_run(
    tmp_path,
    tokenizer,
    lambda _, shape: np.ones(shape),
    meta={'best_loss': float('inf')},
  )
  facts = info.describe(load_model(tmp_path), tmp_path)
  assert facts['best_loss'] is None and facts['elapsed_s'] is None
  json.dumps(facts, allow_nan=False)
  assert 'best val loss' not in info.page(facts)


def test_equal_weights_have_equal_hashes(tmp_path):
  tokenizer = build_tokenizer('char', ['ab'], 0)
  hashes = set()
  for name, value in (('one', 1), ('two', 2), ('again', 1)):
    make_run(
      tmp_path / name, tokenizer, lambda _, shape, x=value: np.full(shape, x)
    )
    hashes.add(params_sha256(load_model(tmp_path / name).params))
  assert len(hashes) == 2


@pytest.mark.parametrize(
  'args, message',
  [
    ([], '--workdir=DIRECTORY of a trained run is needed'),
    (['--workdir=nowhere'], 'no trained model in nowhere'),
  ],
)
def test_mistakes_are_explained(args, message):
  out, err = launch('info', *args, code=2)
  assert out == ''
  assert err.startswith('error: ') and message in err
