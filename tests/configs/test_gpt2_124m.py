"""The recipe gpt2_124m: what it is, and that it trains at toy size."""

import pytest

from configs import gpt2_124m
from gpt.config_check import check_config
from gpt.model import GPTConfig, num_params
from tests.support.workdirs import launch


def test_the_recipe_has_the_shape_of_gpt2_and_modern_options():
  config = gpt2_124m.get_config()
  check_config(config)
  cfg = GPTConfig.from_config(config.model, config.data.vocab_size, 'cuda')
  assert (cfg.n_layer, cfg.n_head, cfg.n_embd) == (12, 12, 768)
  assert (cfg.pos, cfg.qk_norm, cfg.dtype) == ('rope', True, 'bfloat16')
  assert (config.opt.name, config.data.packing) == ('normuon', True)
  cpu = GPTConfig.from_config(config.model, config.data.vocab_size, 'cpu')
  assert round(num_params(cpu) / 1e6) == 135


@pytest.mark.slow
def test_it_trains_on_packed_documents(tmp_path):
  text = tmp_path / 'corpus.txt'
  lines = [f'Document {i} says that {i} is {i * i}.' for i in range(400)]
  text.write_text('\n'.join(lines))
  out, _ = launch(
    'train',
    '--config=gpt2_124m',
    f'--config.data.path={text}',
    f'--workdir={tmp_path}/run',
    '--config.total_steps=3',
    '--config.batch_size=4',
    '--config.model.n_embd=32',
    '--config.model.n_head=2',
    '--config.model.n_layer=2',
    '--config.model.block_size=64',
    '--config.data.vocab_size=300',
    '--config.data.val_fraction=0.1',
    '--config.opt.warmup_steps=1',
    '--config.sample.max_tokens=2',
  )
  assert 'finished at step 3' in out
