"""Real models of other programs, small, and how each is read."""

import json
import shutil

import numpy as np

from configs import default
from gpt.errors import UserError
from gpt.formats import (
  architectures,
  convert,
  foreign,
  huggingface,
  microgpt,
  randygpt,
  tensors,
)
from gpt.formats.gguf import read_gguf, write_gguf
from gpt.formats.gguf.vocabulary import tokenizer_keys
from gpt.model import GPTConfig
from gpt.runs import config_file, load
from gpt.tokenizers import build_tokenizer
from gpt.tokenizers.chat_format import CHAT_TOKENS
from tests.fuzz.files import (
  SIZES,
  TEXT,
  abstract_state,
  make_randy,
  randomized,
  tiny_config,
  tokenizer_values,
)

PADDING = {
  'strategy': 'BatchLongest',
  'direction': 'Right',
  'pad_to_multiple_of': 8,
  'pad_id': 0,
  'pad_type_id': 0,
  'pad_token': '<bos>',
}


def make_rgpt(path):
  cfg = GPTConfig(vocab_size=20, **SIZES)
  params = randomized(abstract_state(cfg).params)
  state = randygpt.from_params(
    params, params, params, iter=6, adam_step=7, best_loss=np.float32(2.5)
  )
  randygpt.write_rgpt(path / 'a.bin', state)


def read_rgpt(path):
  file = path / 'a.bin'
  randygpt.infer_shape(file, 16)
  return randygpt.to_params(randygpt.read_rgpt(file, 8, 2, 16))


def make_tensors(path):
  arrays = {f'x{i}': np.arange(6.0).reshape(2, 3) + i for i in range(4)}
  tensors.write_tensors(path / 'a.safetensors', arrays, 'f32', {'a': 'b'})


def read_tensors(path):
  return tensors.read_tensors(path / 'a.safetensors')


def _foreign(path, write, arch, **options):
  tokenizer = build_tokenizer('hf', [TEXT], 300, CHAT_TOKENS)
  cfg = GPTConfig(
    vocab_size=tokenizer.vocab_size, arch=arch, **SIZES, **options
  )
  write(path, cfg, randomized(abstract_state(cfg).params), tokenizer, 'f32')


def make_microgpt(path):
  def write(*args):
    microgpt.write_microgpt(*args, end_id=0)

  _foreign(path, write, 'microgpt')


def make_our_hf(path):
  def write(*args):
    saved = config_file.plain(tiny_config())
    huggingface.write_hf(*args, {'config': saved, 'step': 3}, 'A card.')

  _foreign(path, write, 'randy', pos='rope', final_norm=True)


def make_stock(model_type, **options):
  """A writer of a transformers directory without a trace of ours, sharded."""
  family = architectures.FAMILIES[model_type]

  def write(path, *args):
    saved = config_file.plain(tiny_config())
    record = {'config': saved, 'step': 3}
    huggingface.write_hf(path, *args, record, 'A card.', family)
    shutil.rmtree(path / 'rgpt_tokenizer')
    tokenizer = path / 'tokenizer.json'
    spec = json.loads(tokenizer.read_text()) | {'padding': PADDING}
    tokenizer.write_text(json.dumps(spec))
    config = json.loads((path / 'config.json').read_text())
    del config['rgpt']
    (path / 'config.json').write_text(json.dumps(config))
    whole = path / 'model.safetensors'
    found, places = tensors.read_tensors(whole), {}
    for i in (0, 1):
      names, file = sorted(found)[i::2], f'model-{i + 1}-of-2.safetensors'
      tensors.write_tensors(path / file, {n: found[n] for n in names}, 'f32')
      places |= dict.fromkeys(names, file)
    index = {'metadata': {}, 'weight_map': places}
    (path / f'{whole.name}.index.json').write_text(json.dumps(index))
    whole.unlink()

  return lambda path: _foreign(path, write, 'randy', **options)


def make_randygpt_hf(path):
  """As RandyGPT publishes a model: its vocab.json is named tokenizer.json."""
  make_randy(path)
  (path / 'vocab.json').rename(path / 'tokenizer.json')
  size = len(json.loads((path / 'tokenizer.json').read_text())['vocab'])
  cfg = GPTConfig(vocab_size=size, **SIZES)
  names = {
    'wte': 'wte.weight',
    'wpe': 'wpe.weight',
    'lm_head': 'lm_head.weight',
  }
  leaves = {'fc1': 'mlp.fc1', 'fc2': 'mlp.fc2'}
  leaves |= {x: f'attn.{x}' for x in ('wq', 'wk', 'wv', 'wo')}
  found = {}
  for name, x in randomized(abstract_state(cfg).params).items():
    if name in names:
      found[names[name]] = x
      continue
    layer = name.replace('block_', 'layers.')
    found |= {f'{layer}.{leaves[k]}.weight': v.T for k, v in x.items()}
  tensors.write_tensors(path / 'model.safetensors', found, 'f32')
  config = {'model_type': 'randygpt', 'vocab_size': size, **SIZES}
  config |= {'bos_token_id': 0, 'eos_token_id': 1}
  (path / 'config.json').write_text(json.dumps(config))


def make_gguf(path):
  def write(path, cfg, params, tokenizer, dtype):
    keys = tokenizer_keys(tokenizer)
    write_gguf(path / 'a.gguf', cfg, params, keys, 'q8_0', 'a')

  options = {'mlp': 'swiglu', 'pos': 'rope', 'norm_gain': True}
  _foreign(path, write, 'randy', final_norm=True, **options)


def read_gguf_file(path):
  model = read_gguf(path / 'a.gguf')
  return (
    model.options,
    model.params,
    tokenizer_values(model.tokenizer),
    model.chat_template,
  )


def read_stock(path):
  model = huggingface.read_hf(path)
  return model.options, model.params, tokenizer_values(model.tokenizer)


def read_foreign(path):
  model = foreign.read_foreign(path)
  return model.options, model.params, tokenizer_values(model.tokenizer)


def make_import(path):
  (path / 'in').mkdir()
  make_our_hf(path / 'in')


def read_import(path):
  """An import that fails leaves nothing."""
  out = path / 'out'
  try:
    convert.import_directory(path / 'in', 'auto', default.get_config(), out)
  except UserError:
    assert not out.exists() or not list(out.iterdir())
    raise
  return load.load_model(out).params
