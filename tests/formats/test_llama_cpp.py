"""Exported GGUF files in llama.cpp: the same ids, the same greedy text.

Needs llama-cpp-python (extra: bench), so it is skipped where it is not
installed.
"""

import unicodedata
import warnings

import jax
import numpy as np
import pytest

from gpt.data.sample_text import sample_text
from gpt.decoding import generation, sampling
from gpt.formats.convert import export
from gpt.formats.gguf import read_gguf, write_gguf
from gpt.formats.gguf.vocabulary import tokenizer_keys
from gpt.model import GPT, GPTConfig
from gpt.runs.load import load_model
from gpt.tokenizers import build_tokenizer
from gpt.tokenizers.chat_format import CHAT_TOKENS
from tests.support.models import random_params
from tests.support.smollm2 import gguf_file
from tests.support.tokenizer_texts import ADVERSARIAL, multibyte
from tests.support.workdirs import launch, make_run

pytestmark = [
  pytest.mark.slow,
  pytest.mark.filterwarnings('default'),  # Its code is not ours.
]
llama_cpp = None
TEXT = sample_text()[:30_000]
TOKENS = 64


@pytest.fixture(scope='module', autouse=True)
def libraries():
  """Imports the library when a test runs: collection should stay fast."""
  global llama_cpp
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    llama_cpp = pytest.importorskip(
      'llama_cpp', reason='llama-cpp-python (extra: bench) is not installed'
    )


ROPE = {'pos': 'rope', 'final_norm': True}
RUNS = {
  'char as llama': ('char', {**ROPE, 'mlp': 'swiglu', 'n_kv_head': 2}),
  'bpe as qwen3': (
    'hf',
    {**ROPE, 'mlp': 'swiglu', 'qk_norm': True, 'embed_norm': True},
  ),
  'sentencepiece as llama': (
    'sentencepiece',
    {
      **ROPE,
      'mlp': 'swiglu',
      'bias': True,
      'norm_gain': True,
      'rope_base': 5e4,
      'rope_scaling': 'llama3:8,1,4,64',
      'tied_embeddings': True,
    },
  ),
  'relu2 as arcee': ('hf', {**ROPE, 'mlp': 'relu2', 'head_dim': 8}),
  'gpt2': (
    'hf',
    {'mlp': 'gelu', 'norm': 'layer', 'bias': True, 'final_norm': True},
  ),
  'linear': (
    'char',
    {**ROPE, 'mlp': 'swiglu', 'rope_scaling': 'linear:2', 'mlp_width': 96},
  ),
}


def tokenizer_of(kind):
  texts = [TEXT, multibyte()]
  return build_tokenizer(kind, texts, 500 if kind != 'hf' else 400, ())


def load(path, n_ctx=0):
  """The model in llama.cpp, in float32 throughout."""
  return llama_cpp.Llama(
    str(path),
    n_ctx=n_ctx,
    n_threads=1,
    n_threads_batch=1,
    logits_all=True,
    type_k=llama_cpp.GGML_TYPE_F32,
    type_v=llama_cpp.GGML_TYPE_F32,
    verbose=False,
  )


def their_ids(model, text, **kwargs):
  return model.tokenize(text.encode(), add_bos=False, special=False, **kwargs)


def their_greedy(model, ids, n):
  model.reset()
  model.eval(ids)
  new = []
  for _ in range(n):
    token = int(np.argmax(model.scores[model.n_tokens - 1]))
    new.append(token)
    model.eval([token])
  return new


def our_greedy(cfg, params, ids, n):
  settings = sampling.settings(1, seed=[0], temperature=0.0)
  stream = generation.generate(GPT(cfg), params, [ids], settings, n)
  return [token for _, new in stream for token in new or ()]


def their_text(model, ids):
  return b''.join(model.detokenize([id]) for id in ids).decode(
    'utf-8', 'replace'
  )


def check(path, cfg, params, tokenizer, prompts):
  model = load(path)
  for prompt in prompts:
    ids = tokenizer.encode(prompt).tolist()
    assert their_ids(model, prompt) == ids
    ours = our_greedy(cfg, params, ids, TOKENS)
    theirs = their_greedy(model, ids, TOKENS)
    assert theirs == ours
    if not set(ours) & set(tokenizer.special_tokens.values()):
      assert their_text(model, theirs) == tokenizer.decode(ours)


@pytest.mark.parametrize('name', RUNS)
def test_greedy_text_is_ours(tmp_path, name):
  kind, options = RUNS[name]
  tokenizer = tokenizer_of(kind)
  rng = np.random.default_rng(1)
  make_run(
    tmp_path / 'run',
    tokenizer,
    lambda leaf, shape: rng.normal(0, 0.2, shape),
    block_size=128,
    n_embd=64,
    n_head=4,
    n_layer=2,
    **options,
  )
  export(tmp_path / 'run', 'best', 'gguf', tmp_path / 'm.gguf')
  loaded = load_model(tmp_path / 'run')
  check(
    tmp_path / 'm.gguf',
    loaded.cfg,
    loaded.params,
    tokenizer,
    [TEXT[:40], 'Ünïcödé — \U0001f642 中'],
  )


def test_greedy_text_of_a_trained_model_is_ours(tmp_path):
  text = tmp_path / 'text.txt'
  text.write_text(sample_text()[:100_000])
  options = {
    'mlp': 'swiglu',
    'pos': 'rope',
    'final_norm': True,
    'qk_norm': True,
    'n_kv_head': 2,
    'n_head': 4,
    'n_embd': 64,
    'block_size': 128,
  }
  launch(
    'train',
    '--config=configs/smoke.py',
    f'--workdir={tmp_path / "run"}',
    f'--config.data.path={text}',
    '--config.total_steps=60',
    '--config.lr=0.003',
    *(f'--config.model.{k}={v}' for k, v in options.items()),
  )
  launch(
    'export',
    f'--workdir={tmp_path / "run"}',
    '--format=gguf',
    f'--output={tmp_path / "m.gguf"}',
  )
  loaded = load_model(tmp_path / 'run')
  check(
    tmp_path / 'm.gguf',
    loaded.cfg,
    loaded.params,
    loaded.tokenizer,
    ['The ', 'and then '],
  )


@pytest.mark.parametrize('kind', ['char', 'hf', 'sentencepiece'])
@pytest.mark.parametrize('chat', [False, True])
def test_ids_of_adversarial_text_are_ours(tmp_path, kind, chat):
  texts = [TEXT, multibyte()]
  names = CHAT_TOKENS if chat else ()
  tokenizer = build_tokenizer(kind, texts, 500, names)
  model = load(vocabulary_only(tmp_path, tokenizer))
  for text in [*ADVERSARIAL, TEXT[:5000]]:
    assert their_ids(model, text) == tokenizer.encode(text).tolist(), text


@pytest.mark.parametrize('rule', ['gpt-2', 'smollm', 'llama-bpe', 'qwen2'])
def test_words_are_cut_as_llama_cpp_cuts_them(tmp_path, rule):
  """The merges come from a tokenizer that cuts at bytes alone."""
  path = vocabulary_only(tmp_path, tokenizer_of('hf'), {'pre': rule})
  tokenizer = read_gguf(path).tokenizer
  model = load(path)
  for text in [*ADVERSARIAL, TEXT[:5000]]:
    if rule == 'qwen2' and text != nfc(text):
      continue  # llama.cpp does not normalize.
    assert their_ids(model, text) == tokenizer.encode(text).tolist(), text


def nfc(text):
  return unicodedata.normalize('NFC', text)


def vocabulary_only(tmp_path, tokenizer, changes=None):
  """A file whose model is as small as it can be."""
  cfg = GPTConfig(
    tokenizer.vocab_size, 32, 1, 1, 4096, mlp='swiglu', mlp_width=32, **ROPE
  )
  keys = tokenizer_keys(tokenizer)
  keys |= {f'tokenizer.ggml.{k}': v for k, v in (changes or {}).items()}
  path = tmp_path / 'vocabulary.gguf'
  params = jax.device_get(random_params(cfg))
  write_gguf(path, cfg, params, keys, 'f32', 'vocabulary')
  return path


# --- SmolLM2


def test_smollm2_exported_again_gives_the_same_text(tmp_path):
  found = read_gguf(gguf_file())
  size = found.tokenizer.vocab_size
  cfg = GPTConfig(size, **{**found.options, 'block_size': 256})
  keys = tokenizer_keys(found.tokenizer)
  write_gguf(tmp_path / 'm.gguf', cfg, found.params, keys, 'f32', 'SmolLM2')
  check(
    tmp_path / 'm.gguf',
    cfg,
    found.params,
    found.tokenizer,
    ['The capital of France is', ADVERSARIAL[0]],
  )
