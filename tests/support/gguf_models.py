"""Small models for llama.cpp's architectures, and how they are compared."""

import functools

import jax
import numpy as np

from gpt.data.sample_text import sample_text
from gpt.formats.gguf import read_gguf, write_gguf
from gpt.formats.gguf.vocabulary import tokenizer_keys
from gpt.model import GPT, GPTConfig
from gpt.tokenizers import build_tokenizer
from gpt.tokenizers.chat_format import CHAT_TOKENS
from tests.support.models import random_params

TEXT = sample_text()[:30_000]
ROPE = {'pos': 'rope', 'final_norm': True}
# Architecture of llama.cpp -> options of a small model it computes.
MODELS = {
  'llama': {**ROPE, 'mlp': 'swiglu', 'n_kv_head': 2},
  'qwen3': {**ROPE, 'mlp': 'swiglu', 'qk_norm': True, 'n_kv_head': 2},
  'arcee': {**ROPE, 'mlp': 'relu2', 'n_kv_head': 2},
  'gpt2': {'mlp': 'gelu', 'norm': 'layer', 'bias': True, 'final_norm': True},
}
# Everything at once that an architecture can have beyond that.
MORE = {
  'llama': {
    'norm_gain': True,
    'bias': True,
    'mlp_width': 48,
    'head_dim': 6,
    'rope_base': 5e5,
    'rope_scaling': 'llama3:8,1,4,8192',
    'norm_eps': 1e-6,
    'tied_embeddings': True,
  },
  'qwen3': {
    'norm_gain': True,
    'qk_gain': True,
    'mlp_width': 96,
    'head_dim': 16,
    'rope_base': 1e6,
    'rope_scaling': 'linear:4',
    'tied_embeddings': True,
  },
  'arcee': {'norm_gain': True, 'rope_base': 2e4, 'norm_eps': 1e-5},
  'gpt2': {'norm_gain': True, 'tied_embeddings': True},
}
SHAPE = {'n_embd': 32, 'n_head': 4, 'n_layer': 2, 'block_size': 32}


@functools.cache
def small_bpe():
  """Byte-level BPE with chat tokens."""
  return build_tokenizer('hf', [TEXT], 320, CHAT_TOKENS)


def model(name, vocab_size, **options):
  cfg = GPTConfig(vocab_size=vocab_size, **{**SHAPE, **MODELS[name], **options})
  params = jax.device_get(random_params(cfg, 0.3))
  return cfg, params


def logits(cfg, params, ids):
  with jax.default_matmul_precision('highest'):
    out = jax.jit(GPT(cfg).apply)({'params': params}, ids.astype(np.int32))
  return np.asarray(out)


def some_ids(cfg):
  rng = np.random.default_rng(0)
  return rng.integers(0, cfg.vocab_size, (2, cfg.block_size))


def written(path, cfg, params, tokenizer, dtype='f32'):
  """The model read back, its config, and the name of its architecture."""
  keys = tokenizer_keys(tokenizer)
  name = write_gguf(path, cfg, params, keys, dtype, 'test')
  found = read_gguf(path)
  size = found.tokenizer.vocab_size
  return found, GPTConfig(vocab_size=size, **found.options), name
