"""The family of recipes meets the ones that were tuned by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import default, speedrun_1min, speedrun_10min
from gpt.config_check import check_config
from gpt.model import GPTConfig
from gpt.model.transformer import num_params
from gpt.planning import recipe


def config_of(options):
  config = default.get_config()
  config.update_from_flattened_dict(options)
  return config


@pytest.mark.parametrize(
  'tuned, tokens', [(speedrun_1min, 2.36e6), (speedrun_10min, 15.6e6)]
)
def test_a_speedrun_is_a_member_of_the_family(tuned, tokens):
  config = tuned.get_config()
  model, opt = config.model, config.opt
  options = recipe.options(
    model.n_embd, model.n_layer, 67, model.block_size, tokens, 1.0e6
  )
  assert options['batch_size'] == config.batch_size
  assert options['total_steps'] == pytest.approx(config.total_steps, rel=0.01)
  assert options['opt.muon_lr'] == pytest.approx(opt.muon_lr, rel=0.05)
  assert options['lr'] == config.lr
  assert options['model.n_head'] == model.n_head
  assert options['model.dropout'] == pytest.approx(model.dropout, abs=0.03)
  assert options['opt.weight_decay'] == pytest.approx(
    opt.weight_decay, abs=0.05
  )


@given(
  st.integers(1, 24),
  st.integers(1, 16),
  st.integers(60, 32_000),
  st.sampled_from([64, 128, 256, 512]),
  st.floats(1e4, 1e10),
  st.floats(1e4, 1e9),
)
def test_every_member_is_a_config_that_can_run(
  heads, depth, vocab, context, tokens, text
):
  options = recipe.options(
    recipe.HEAD_DIM * heads, depth, vocab, context, tokens, text
  )
  check_config(config_of(options))
  assert options['opt.warmup_steps'] <= max(5, 0.1 * options['total_steps'])


def test_regularisation_grows_with_how_often_a_text_is_read():
  passes = [recipe.options(128, 6, 67, 256, n * 1e6, 1e6) for n in (1, 8, 64)]
  dropouts = [options['model.dropout'] for options in passes]
  decays = [options['opt.weight_decay'] for options in passes]
  assert dropouts == sorted(dropouts) and dropouts[0] == 0 < dropouts[-1]
  assert decays == sorted(decays) and decays[0] < decays[-1]


def parameters_of(options, vocab):
  model = config_of(options).model
  cfg = GPTConfig.from_config(model, vocab_size=vocab, backend='cpu')
  return num_params(cfg)


@pytest.mark.parametrize('width, depth, vocab', [(96, 4, 67), (256, 8, 4000)])
def test_parameters_are_those_of_the_model(width, depth, vocab):
  options = recipe.options(width, depth, vocab, 128, 1e6, 1e6)
  assert options['model.mlp'] == 'relu2'
  expected = recipe.parameters(width, depth, vocab)
  assert parameters_of(options, vocab) == expected
  # Ten passes: the MLPs have gates, and a width that is rounded.
  options = recipe.options(width, depth, vocab, 128, 1e6, 1e5)
  assert options['model.mlp'] == 'swiglu'
  assert parameters_of(options, vocab) == pytest.approx(expected, rel=0.01)
