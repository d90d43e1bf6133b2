"""The dtype of a run's products: chosen once, recorded, and kept."""

import types

import jax
import pytest

from configs import smoke
from gpt import devices, processor, start
from gpt.runs.config_file import differences, plain, read_config
from gpt.runs.load import load_model
from tests.support.train_runs import run_here

# jax 0.5, the version for jax-metal, stays in float32.
MIXED = 'mixed' if hasattr(jax, 'shard_map') else 'float32'


def chosen(monkeypatch, *, saved='', given='auto', able=True, **changes):
  """The dtype of a run, new unless its config.json has a `saved` one."""
  backend = changes.pop('backend', 'cpu')
  monkeypatch.setattr(devices, 'backend_name', lambda: backend)
  monkeypatch.setattr(processor, 'multiplies_bfloat16', lambda: able)
  config = smoke.get_config()
  config.model.dtype = given
  config.opt.lora_rank = changes.pop('lora_rank', 0)
  before = {'model': {'dtype': saved}} if saved else None
  found = start.with_dtype(types.SimpleNamespace(saved=before), config)
  assert config.model.dtype == given  # The caller's is left as it was.
  return found.model.dtype


@pytest.mark.parametrize(
  'case, dtype',
  [
    ({}, MIXED),
    ({'able': False}, 'float32'),
    ({'given': 'float32'}, 'float32'),
    ({'given': 'mixed', 'able': False}, 'mixed'),
    ({'lora_rank': 4}, 'float32'),
    ({'backend': 'cuda'}, 'auto'),
    ({'backend': 'metal'}, 'auto'),
  ],
)
def test_a_new_run_multiplies_bfloat16_where_the_processor_does(
  monkeypatch, case, dtype
):
  assert chosen(monkeypatch, **case) == dtype


@pytest.mark.parametrize('able', [True, False])
@pytest.mark.parametrize('backend', ['cpu', 'cuda'])
@pytest.mark.parametrize('saved', ['mixed', 'float32', 'auto'])
def test_a_run_that_goes_on_keeps_its_dtype(monkeypatch, saved, able, backend):
  where = {'able': able, 'backend': backend}
  assert chosen(monkeypatch, saved=saved, **where) == saved
  asked = chosen(monkeypatch, saved=saved, given='float32', **where)
  assert asked == 'float32'


def test_auto_differs_from_no_recorded_dtype():
  config = smoke.get_config()
  config.model.dtype = 'auto'
  saved = plain(config)
  saved['model']['dtype'] = 'mixed'
  assert differences(saved, config) == {}
  config.model.dtype = 'float32'
  assert differences(saved, config) == {'model.dtype': ('mixed', 'float32')}


def test_config_json_records_the_choice_and_another_processor_resumes_it(
  tmp_path, monkeypatch
):
  for steps, able in ((1, True), (2, False)):
    monkeypatch.setattr(processor, 'multiplies_bfloat16', lambda a=able: a)
    _, lines = run_here(tmp_path, {'model.dtype': 'auto', 'total_steps': steps})
    assert read_config(tmp_path)['model']['dtype'] == MIXED
    assert not [line for line in lines if 'model.dtype' in line]
  assert load_model(tmp_path).cfg.dtype == MIXED
