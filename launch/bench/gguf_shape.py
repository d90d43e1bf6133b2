"""Decoding a preset's shape beside llama.cpp, on the same random weights.

For launch.bench.decode --peer=llama. A preset whose options no architecture of
llama.cpp has takes part with its own matrices and the first of OPTIONS that
fit, on both sides. Both decode greedily in float32.
"""

import atexit
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from gpt import devices
from gpt.errors import UserError
from gpt.formats.gguf.architectures import choose
from gpt.model import GPT, GPTConfig
from launch.bench.peers import llama_cpp
from launch.bench.shapes import model_config

OURS, PEER = 'ours as GGUF', 'llama.cpp'
OPTIONS = (
  {},
  # Its architecture arcee; RoPE needs an even head dimension.
  {'pos': 'rope', 'mlp': 'relu2', 'final_norm': True},
  # gpt2
  {'mlp': 'gelu', 'norm': 'layer', 'bias': True, 'final_norm': True},
)


def contestants(batches: Sequence[int]) -> list[str]:
  """Names: ours for each batch, llama.cpp with one and all threads."""
  threads = sorted({1, devices.num_cores()})
  return [
    *(f'{OURS} B={b}' for b in batches),
    *(f'{PEER} threads={t}' for t in threads),
  ]


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
  """Our speed over llama.cpp's best, one stream."""
  speed = {row['name']: row['tokens_per_s'] for row in rows}
  peers = [v for name, v in speed.items() if name.startswith(PEER)]
  mine = speed.get(f'{OURS} B=1')
  if not peers or mine is None:
    return {}
  return {f'{OURS} / {PEER}, one stream': mine / max(peers)}


def choose_options(preset: str, vocab_size: int) -> dict[str, Any]:
  """The first of OPTIONS with which GGUF holds a preset. Raises UserError."""
  for options in OPTIONS:
    config = model_config(preset)
    config.update(options)
    try:
      choose(GPTConfig.from_config(config, vocab_size))
      return options
    except UserError as e:
      error = e
  raise error


def make_model(preset: str, vocab_size: int) -> tuple[GPT, Any]:
  """(GPT, its initial params as numpy arrays) of a shape that GGUF holds."""
  import jax
  import jax.numpy as jnp

  config = model_config(preset)
  config.update({'dtype': 'float32', **choose_options(preset, vocab_size)})
  model = GPT(GPTConfig.from_config(config, vocab_size))
  init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 1), jnp.int32)))
  return model, jax.device_get(init(jax.random.key(0))['params'])


def vocabulary(size: int) -> dict[str, Any]:
  """GGUF's entries for a tokenizer of `size` tokens that nobody reads."""
  return {
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.pre': 'gpt-2',
    'tokenizer.ggml.tokens': [f't{i}' for i in range(size)],
    'tokenizer.ggml.token_type': [1] * size,
    'tokenizer.ggml.merges': ['t 1'],
    'tokenizer.ggml.bos_token_id': 0,
    'tokenizer.ggml.eos_token_id': 0,
  }


def build(
  name: str, preset: str, vocab_size: int, tokens: int
) -> tuple[Callable[[], Any], dict[str, Any]]:
  """(run, facts) of a contestant named by `contestants`.

  Args:
    tokens: to decode in a round for each stream; 0: the window.
  """
  number = int(name.rpartition('=')[2])
  if name.startswith(OURS):
    return _build_ours(preset, vocab_size, tokens, number)
  from gpt.formats.gguf import write_gguf

  model, params = make_model(preset, vocab_size)
  cfg = model.cfg
  handle, path = tempfile.mkstemp(prefix='rgpt-bench-', suffix='.gguf')
  os.close(handle)
  atexit.register(os.unlink, path)
  write_gguf(path, cfg, params, vocabulary(vocab_size), 'f32', preset)
  window = max(cfg.block_size, tokens)
  return llama_cpp.decoder(path, tokens or cfg.block_size, number, window)


def _build_ours(
  preset: str, vocab_size: int, tokens: int, batch: int
) -> tuple[Callable[[], int], dict[str, Any]]:
  import jax

  from gpt.decoding import generation, sampling

  devices.setup_devices()
  model, params = make_model(preset, vocab_size)
  params = jax.tree.map(jax.numpy.asarray, params)
  settings = sampling.settings(batch, seed=range(batch), temperature=0.0)
  prompts = [[2 + i % (vocab_size - 2)] for i in range(batch)]
  count = tokens or model.cfg.block_size

  def run() -> int:
    stream = generation.generate(
      model, params, prompts, settings, count, block_steps=16
    )
    return sum(len(new or ()) for _, new in stream)

  run()
  facts = {'device': jax.devices()[0].device_kind}
  return run, {**facts, 'threads': devices.num_cores()}
