"""Tensors of models in one file or many: checked, then read one at a time."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from gpt.errors import UserError
from gpt.formats.architectures import FAMILIES, to_hf_tensors
from gpt.formats.tensor_files import TensorFiles, open_model, read_header
from gpt.formats.tensors import write_tensors
from gpt.model import GPTConfig
from tests.formats.test_architectures import MODELS, random_params
from tests.support.workdirs import ROOT


def save(path, **tensors):
  save_file({k: np.asarray(x, np.float32) for k, x in tensors.items()}, path)


def test_shards_are_read_as_one_model(tmp_path):
  save(tmp_path / 'a.safetensors', x=[1, 2], y=[[3]])
  save(tmp_path / 'b.safetensors', z=[4])
  places = {'x': 'a.safetensors', 'y': 'a.safetensors', 'z': 'b.safetensors'}
  index = tmp_path / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': places}))
  files = open_model(tmp_path)
  assert files.shapes == {'x': (2,), 'y': (1, 1), 'z': (1,)}
  assert [files.read(n).sum() for n in 'xyz'] == [3, 3, 4]
  save(tmp_path / 'b.safetensors', z=[4], x=[5])
  with pytest.raises(UserError, match='the tensor x is in b.* and in a'):
    open_model(tmp_path)
  save(tmp_path / 'b.safetensors', w=[4])
  with pytest.raises(UserError, match="b.safetensors lacks 'z', which"):
    open_model(tmp_path)
  (tmp_path / 'b.safetensors').unlink()
  with pytest.raises(UserError, match='cannot read .*b.safetensors: No such'):
    open_model(tmp_path)


@pytest.mark.parametrize(
  'name', ['../b.safetensors', '/etc/b.safetensors', 'b.bin', 7, 'a\\b', '']
)
def test_an_index_cannot_name_files_elsewhere(tmp_path, name):
  index = tmp_path / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': {'x': name}}))
  save(tmp_path.parent / 'b.safetensors', x=[1])
  with pytest.raises(UserError, match='only .safetensors files of the same'):
    open_model(tmp_path)


def test_a_directory_without_readable_weights_is_refused(tmp_path):
  with pytest.raises(UserError, match='has no weights: neither'):
    open_model(tmp_path)
  (tmp_path / 'pytorch_model.bin').write_bytes(b'')
  with pytest.raises(UserError, match='a pickle'):
    open_model(tmp_path)
  index = tmp_path / 'model.safetensors.index.json'
  index.write_text('{"weight_map": {}}')
  with pytest.raises(UserError, match='has no weight_map'):
    open_model(tmp_path)


def test_damaged_headers_are_refused_before_memory_is_taken(tmp_path):
  path = tmp_path / 'x.safetensors'
  save(path, a=np.ones((4, 4)), b=np.ones(3))
  whole = path.read_bytes()
  for damaged in (
    b'',
    whole[:7],
    whole[:40],
    whole[:-1],
    whole + b'\0' * 4,
    b'\xff' * 64,
    whole.replace(b'[4,4]', b'[4,5]'),
    whole.replace(b'[4,4]', b'[-4,-4]'),
    whole.replace(b'[0,64]', b'[0,60]'),
    whole.replace(b'[64,76]', b'[52,64]'),
    whole.replace(b'[64,76]', b'[]     '),
    whole.replace(b'[64,76]', b'[1,2,3]'),
    whole.replace(b'[64,76]', b'"64,76"'),
    whole.replace(b'F32', b'X32'),
    (8).to_bytes(8, 'little') + b'[[[[[[[[',
    (2).to_bytes(8, 'little') + b'[]',
  ):
    path.write_bytes(damaged)
    with pytest.raises(UserError, match='not a whole safetensors file'):
      read_header(path)
  save_file({'a': np.ones(2, np.int32)}, path)
  with pytest.raises(UserError, match='a is I32; allowed: F32'):
    TensorFiles(read_header(path)).read('a')


MEASURE = """
import json, sys
import numpy as np
from gpt.formats import architectures
from gpt.formats.tensor_files import open_model
from gpt.model import GPTConfig, abstract_params

def memory(name):
  with open('/proc/self/status') as file:
    return 1024 * int(file.read().split(f'{name}:')[1].split()[0])

source, dtype = sys.argv[1:]
with open(source + '/config.json') as file:
  family, options = architectures.from_hf_config(json.load(file), source)
cfg = GPTConfig(**options)
abstract_params(cfg)
before = memory('VmRSS')
params = architectures.from_hf_tensors(
  family, cfg, open_model(source), source, np.dtype(dtype)
)
print(memory('VmHWM') - before)  # ru_maxrss would start at the parent's.
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.parametrize('stored, shards', [('f32', 1), ('bf16', 3)])
def test_reading_takes_at_most_half_as_much_again_as_the_weights(
  tmp_path, stored, shards
):
  cfg = GPTConfig(
    vocab_size=32_000,
    n_embd=512,
    n_head=8,
    n_layer=12,
    block_size=256,
    **MODELS['llama'] | {'n_kv_head': 0},
  )
  params = random_params(cfg)
  family = FAMILIES['llama']
  tensors = dict(to_hf_tensors(family, cfg, params))
  (tmp_path / 'config.json').write_text(json.dumps(family.write_config(cfg)))
  names, places = list(tensors), {}
  for i in range(shards):
    file = f'{i}.safetensors' if shards > 1 else 'model.safetensors'
    part = {name: tensors[name] for name in names[i::shards]}
    write_tensors(tmp_path / file, part, stored)
    places |= dict.fromkeys(part, file)
  if shards > 1:
    index = tmp_path / 'model.safetensors.index.json'
    index.write_text(json.dumps({'weight_map': places}))
  size = sum(x.nbytes for x in tensors.values())
  assert size > 300e6
  done = subprocess.run(
    [sys.executable, '-c', MEASURE, tmp_path, 'float32'],
    cwd=ROOT,
    capture_output=True,
    check=True,
  )
  assert int(done.stdout) < 1.5 * size


def test_errors_hold_nothing_that_a_terminal_obeys(tmp_path):
  name = '\x1b[2J\u202ex\n'
  entry = {'dtype': 'X', 'shape': [1], 'data_offsets': [0, 4]}
  header = json.dumps({name: entry}).encode()
  path = tmp_path / 'a.safetensors'
  path.write_bytes(len(header).to_bytes(8, 'little') + header + bytes(4))
  with pytest.raises(UserError) as e:
    read_header(path)
  assert str(e.value).isprintable() and 'x1b[2J' in str(e.value)
  assert str(UserError('a\x1b[2J\x9b\u2066 b\nc')) == (
    'a\\x1b[2J\\x9b\\u2066 b\nc'
  )
