"""config.json of other programs' models: what is read, and what is refused."""

import pytest

from gpt.errors import UserError
from gpt.formats import architectures
from gpt.formats.architectures import FAMILIES
from gpt.model import GPTConfig
from tests.formats.test_architectures import model


def config_of(name, **changes):
  config = FAMILIES[name].write_config(model(name)) | changes
  return {k: v for k, v in config.items() if v is not ...}


def read(config):
  return architectures.from_hf_config(config, 'config.json')[1]


LLAMA3 = {
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 8192,
}


@pytest.mark.parametrize(
  'spelling',
  [
    {'rope_theta': 5e5, 'rope_scaling': {'rope_type': 'llama3', **LLAMA3}},
    {'rope_theta': 5e5, 'rope_scaling': {'type': 'llama3', **LLAMA3}},
    {
      'rope_parameters': {
        'rope_type': 'llama3',
        'rope_theta': 500_000,
        **LLAMA3,
      }
    },
  ],
)
def test_both_spellings_of_rope_are_read(spelling):
  absent = dict.fromkeys(('rope_theta', 'rope_scaling', 'rope_parameters'), ...)
  options = read(config_of('llama', **absent | spelling))
  assert options['rope_base'] == 5e5
  assert options['rope_scaling'] == 'llama3:8,1,4,8192'


def test_missing_entries_have_the_defaults_of_the_class():
  """Older files leave out what did not exist yet, or was the default."""
  llama = read({'model_type': 'llama', 'vocab_size': 100, 'rope_scaling': None})
  assert (llama['n_embd'], llama['mlp_width'], llama['n_kv_head']) == (
    4096,
    11_008,
    0,
  )
  assert (llama['norm_eps'], llama['rope_base'], llama['head_dim']) == (
    1e-6,
    1e4,
    128,
  )
  assert not llama['tied_embeddings'] and not llama['bias']
  gpt2 = read({'model_type': 'gpt2', 'n_ctx': 1024})
  assert gpt2['vocab_size'] == 50_257 and gpt2['mlp_width'] == 4 * 768
  assert gpt2['tied_embeddings'] and gpt2['norm'] == 'layer' and gpt2['bias']
  qwen3 = read({'model_type': 'qwen3', 'num_key_value_heads': 8})
  assert (qwen3['head_dim'], qwen3['n_kv_head']) == (128, 8)
  nanochat = read({'model_type': 'nanochat', 'final_logit_softcapping': None})
  assert nanochat['logit_softcap'] == 0.0


def test_smollm2_is_read_as_what_it_is():
  options = read(
    {
      'architectures': ['LlamaForCausalLM'],
      'model_type': 'llama',
      'attention_bias': False,
      'hidden_act': 'silu',
      'hidden_size': 576,
      'initializer_range': 0.041666666666666664,
      'intermediate_size': 1536,
      'is_llama_config': True,
      'max_position_embeddings': 8192,
      'mlp_bias': False,
      'num_attention_heads': 9,
      'num_hidden_layers': 30,
      'num_key_value_heads': 3,
      'pretraining_tp': 1,
      'rms_norm_eps': 1e-05,
      'rope_interleaved': False,
      'rope_scaling': None,
      'rope_theta': 100000,
      'tie_word_embeddings': True,
      'torch_dtype': 'bfloat16',
      'vocab_size': 49152,
    }
  )
  assert GPTConfig(**options) == GPTConfig(
    vocab_size=49152,
    n_embd=576,
    n_head=9,
    n_kv_head=3,
    n_layer=30,
    block_size=8192,
    mlp='swiglu',
    mlp_width=1536,
    pos='rope',
    rope_base=1e5,
    norm_gain=True,
    final_norm=True,
    tied_embeddings=True,
    init_std=0.041666666666666664,
  )


@pytest.mark.parametrize(
  'name, changes, feature',
  [
    ('llama', {'model_type': 'mamba'}, "'mamba'; known: llama, qwen3, gpt2"),
    ('llama', {'model_type': ...}, 'model_type is null; known'),
    ('llama', {'model_type': 'qwen2'}, 'biases on queries, keys and values'),
    ('llama', {'model_type': 'mixtral', 'num_local_experts': 8}, 'experts'),
    ('qwen3', {'num_experts': 128}, r'experts \(MoE\): num_experts is 128'),
    ('llama', {'sliding_window': 4096}, 'sliding windows'),
    (
      'qwen3',
      {'use_sliding_window': True, 'sliding_window': 9, 'max_window_layers': 1},
      'sliding windows',
    ),
    ('qwen3', {'layer_types': ['full_attention', 'sliding_attention']}, 'slid'),
    ('llama', {'alibi': True}, 'ALiBi'),
    ('llama', {'v_head_dim': 64}, 'heads of different sizes'),
    ('llama', {'partial_rotary_factor': 0.5}, 'partial rotary embedding'),
    (
      'llama',
      {'rope_parameters': {'partial_rotary_factor': 0.25}},
      'partial rotary embedding',
    ),
    ('llama', {'attention_bias': True}, 'attention_bias without mlp_bias'),
    ('qwen3', {'attention_bias': True}, 'attention_bias is true'),
    (
      'llama',
      {'rope_scaling': {'rope_type': 'yarn', 'factor': 4.0}},
      "scales RoPE by 'yarn'",
    ),
    (
      'llama',
      {'rope_scaling': {'type': 'dynamic', 'factor': 2.0}},
      "scales RoPE by 'dynamic'",
    ),
    (
      'llama',
      {'rope_parameters': {'full_attention': {'rope_theta': 1e4}}},
      'differs between layers',
    ),
    ('gpt2', {'activation_function': 'gelu'}, 'exact GELU'),
    ('llama', {'hidden_act': 'gelu'}, 'exact GELU'),
    ('gpt2', {'add_cross_attention': True}, 'cross attention'),
    ('gpt2', {'scale_attn_weights': False}, 'scale_attn_weights is false'),
    (
      'gpt2',
      {'scale_attn_by_inverse_layer_idx': True},
      'scale_attn_by_inverse_layer_idx is true',
    ),
    ('llama', {'quantization_config': {'bits': 4}}, 'quantized weights'),
    ('llama', {'vision_config': {'a': 1}}, 'not text'),
    ('llama', {'hidden_size': '8'}, "hidden_size is '8'; a whole number"),
    ('llama', {'hidden_size': True}, 'hidden_size is true; a whole number'),
    ('llama', {'hidden_size': 8.5}, 'hidden_size is 8.5; a whole number'),
    ('llama', {'rms_norm_eps': []}, r'rms_norm_eps is \[\]; a number'),
    ('llama', {'rms_norm_eps': -1.0}, 'config.json: model.rope_base and norm'),
    ('llama', {'tie_word_embeddings': 'no'}, "is 'no'; true or false"),
    ('llama', {'num_hidden_layers': -2}, 'config.json: model.n_layer is -2'),
    ('llama', {'num_key_value_heads': 3}, 'not divisible by n_kv_head'),
    ('llama', {'rope_theta': 'a'}, "rope_theta is 'a'; a number"),
    ('llama', {'attention_bias': 1}, 'attention_bias is 1; true or false'),
    (
      'llama',
      {'rope_scaling': {'rope_type': 'llama3', 'factor': 8.0}},
      'low_freq_factor is null; a number',
    ),
  ],
)
def test_what_we_lack_is_refused_by_its_name(name, changes, feature):
  absent = dict.fromkeys(('rope_parameters', 'rope_scaling', 'rope_theta'), ...)
  rope = {} if name == 'gpt2' else absent
  with pytest.raises(UserError, match=feature) as error:
    read(config_of(name, **rope | changes))
  assert 'config.json' in str(error.value)


def test_features_that_are_switched_off_are_no_reason():
  for name, changes in (
    ('qwen3', {'sliding_window': 4096, 'use_sliding_window': False}),
    ('qwen3', {'layer_types': ['full_attention', 'full_attention']}),
    ('llama', {'sliding_window': None, 'num_experts': 0}),
    ('llama', {'partial_rotary_factor': 1.0}),
    ('gpt2', {'reorder_and_upcast_attn': True, 'embd_pdrop': 0.1}),
  ):
    assert GPTConfig(**read(config_of(name, **changes))) == model(name)
