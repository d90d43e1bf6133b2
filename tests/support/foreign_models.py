"""Small model directories as other programs publish them."""

import json
import pathlib
from typing import Any

import numpy as np

from gpt.data.sample_text import sample_text
from gpt.formats.tensors import write_tensors
from tests.support import foreign_tokenizers

TEMPLATE = (
  "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content']"
  " + '<|im_end|>' + '\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def llama_tensors(config: dict[str, Any]) -> dict[str, np.ndarray]:
  """Random weights of a LlamaForCausalLM with tied embeddings."""
  rng = np.random.default_rng(0)
  d, f = config['hidden_size'], config['intermediate_size']
  kv = d // config['num_attention_heads'] * config['num_key_value_heads']
  shapes = {'embed_tokens': (config['vocab_size'], d)}
  for i in range(config['num_hidden_layers']):
    shapes |= {
      f'layers.{i}.self_attn.q_proj': (d, d),
      f'layers.{i}.self_attn.k_proj': (kv, d),
      f'layers.{i}.self_attn.v_proj': (kv, d),
      f'layers.{i}.self_attn.o_proj': (d, d),
      f'layers.{i}.mlp.gate_proj': (f, d),
      f'layers.{i}.mlp.up_proj': (f, d),
      f'layers.{i}.mlp.down_proj': (d, f),
      f'layers.{i}.input_layernorm': (d,),
      f'layers.{i}.post_attention_layernorm': (d,),
    }
  shapes['norm'] = (d,)
  return {
    f'model.{name}.weight': 0.1 * rng.standard_normal(shape, np.float32)
    + (len(shape) == 1)
    for name, shape in shapes.items()
  }


def write_llama(
  directory: pathlib.Path,
  tokenizer: str = 'smollm2',
  rows: int = 0,
  template: str = TEMPLATE,
  dtype: str = 'f32',
  **changed: Any,
) -> dict[str, Any]:
  """Writes a LlamaForCausalLM; returns its config.json.

  Args:
    tokenizer: of foreign_tokenizers.KINDS.
    rows: of the embedding, beyond the tokens.
    changed: entries of config.json.
  """
  theirs = foreign_tokenizers.write(directory, tokenizer)
  names = json.loads((directory / 'tokenizer_config.json').read_text())
  if template:
    (directory / 'chat_template.jinja').write_text(template)
  end = names['eos_token']
  end = end['content'] if isinstance(end, dict) else end
  config = {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    'vocab_size': theirs.get_vocab_size(with_added_tokens=True) + rows,
    'hidden_size': 32,
    'intermediate_size': 48,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'max_position_embeddings': 4096,
    'rms_norm_eps': 1e-5,
    'rope_theta': 10000.0,
    'hidden_act': 'silu',
    'attention_bias': False,
    'mlp_bias': False,
    'tie_word_embeddings': True,
    'eos_token_id': theirs.token_to_id(end),
    **changed,
  }
  (directory / 'config.json').write_text(json.dumps(config))
  tensors = llama_tensors(config)
  write_tensors(directory / 'model.safetensors', tensors, dtype)
  return config


def write_randygpt(directory: pathlib.Path) -> dict[str, np.ndarray]:
  """Writes RandyGPT's own directory; returns its tensors."""
  rng = np.random.default_rng(0)
  characters = sorted(set(sample_text()))
  vocab = ['<|bos|>', '<|eos|>', *characters, 'th', 'the']
  merges = [['t', 'h'], ['th', 'e']]
  d, layers, context = 24, 2, 16
  config = {
    'model_type': 'randygpt',
    'vocab_size': len(vocab),
    'n_embd': d,
    'n_head': 4,
    'n_layer': layers,
    'block_size': context,
    'bos_token_id': 0,
    'eos_token_id': 1,
  }
  shapes = {'wte': (len(vocab), d), 'wpe': (context, d)}
  shapes['lm_head'] = (len(vocab), d)
  for i in range(layers):
    for name in ('wq', 'wk', 'wv', 'wo'):
      shapes[f'layers.{i}.attn.{name}'] = (d, d)
    shapes[f'layers.{i}.mlp.fc1'] = (4 * d, d)
    shapes[f'layers.{i}.mlp.fc2'] = (d, 4 * d)
  tensors = {
    f'{name}.weight': 0.1 * rng.standard_normal(shape, np.float32)
    for name, shape in shapes.items()
  }
  directory.mkdir(parents=True, exist_ok=True)
  (directory / 'config.json').write_text(json.dumps(config))
  text = json.dumps({'vocab': vocab, 'merges': merges})
  (directory / 'tokenizer.json').write_text(text)
  write_tensors(directory / 'model.safetensors', tensors, 'f32')
  return tensors
