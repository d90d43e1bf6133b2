"""Small files that ask for gigabytes are refused before any is taken."""

import json
import resource

import numpy as np
import pytest

from gpt.data.documents import iter_lines_as_documents
from gpt.data.sources import find_sources
from gpt.data.text_reader import TextStats
from gpt.errors import UserError
from gpt.formats import microgpt, tensors
from gpt.runs.load import load_model
from gpt.tokenizers import load_tokenizer
from tests.fuzz import files, models
from tests.fuzz.readers import KINDS, same


@pytest.fixture(autouse=True)
def little_memory():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  yield
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert (after - before) * 1024 < 200 << 20


def edit(path, change):
  value = json.loads(path.read_text())
  change(value)
  path.write_text(json.dumps(value))


@pytest.mark.parametrize('id', [2**31 - 1, 2**32 - 1, 2**63, 10**7, -1])
@pytest.mark.parametrize('place', ['vocab', 'added_tokens'])
def test_an_id_far_above_the_number_of_tokens(tmp_path, id, place):
  pytest.importorskip('tokenizers')
  files.make_hf_json(tmp_path)

  def change(spec):
    if place == 'vocab':
      spec['model']['vocab']['a'] = id
    else:
      spec['added_tokens'][0]['id'] = id

  edit(tmp_path / 'tokenizer.json', change)
  with pytest.raises(UserError, match=f'is {id}; allowed: a whole number'):
    load_tokenizer(tmp_path)


def test_padding_that_a_tokenizer_asks_for_is_never_made(tmp_path):
  pytest.importorskip('tokenizers')
  KINDS['llama'].make(tmp_path)
  before = KINDS['llama'].read(tmp_path)

  def change(spec):
    spec['padding']['pad_to_multiple_of'] = 10**9

  edit(tmp_path / 'tokenizer.json', change)
  assert same(KINDS['llama'].read(tmp_path), before)


@pytest.mark.parametrize('n_layer', [10**6, 2**31, 4000, 10**30])
def test_more_layers_than_there_are_weights(tmp_path, n_layer):
  pytest.importorskip('tokenizers')
  (tmp_path / 'foreign').mkdir()
  models.make_microgpt(tmp_path / 'foreign')
  edit(tmp_path / 'foreign' / 'meta.json', lambda x: x.update(n_layer=n_layer))
  with pytest.raises(UserError, match=f'n_layer .*{n_layer}'):
    microgpt.read_microgpt(tmp_path / 'foreign')
  (tmp_path / 'run').mkdir()
  files.make_run(tmp_path / 'run')
  # As older versions wrote it, without the model's options.
  for path in tmp_path.glob('run/checkpoints/*/7/meta/metadata'):
    edit(path, lambda x: (x.pop('model'), x.pop('meta_checksum')))
  config = tmp_path / 'run' / 'config.json'
  edit(config, lambda x: x.pop('sealed_checkpoints'))
  edit(config, lambda x: x['model'].update(n_layer=n_layer))
  with pytest.raises(UserError, match=f'n_layer is {n_layer}'):
    load_model(tmp_path / 'run')


def test_many_views_of_the_same_bytes(tmp_path):
  n = 1 << 16
  entry = {'dtype': 'F32', 'shape': [n], 'data_offsets': [0, 4 * n]}
  header = json.dumps({f'x{i}': entry for i in range(20_000)}).encode()
  path = tmp_path / 'a.safetensors'
  data = np.zeros(n, np.float32).tobytes()
  path.write_bytes(len(header).to_bytes(8, 'little') + header + data)
  with pytest.raises(UserError, match='not a whole safetensors file'):
    tensors.read_tensors(path)


@pytest.mark.parametrize('offsets', [[4, 28], [0, 20], [0, 2**63], [24, 0]])
def test_views_with_gaps_or_of_another_size(tmp_path, offsets):
  entry = {'dtype': 'F32', 'shape': [6], 'data_offsets': offsets}
  header = json.dumps({'x': entry}).encode()
  path = tmp_path / 'a.safetensors'
  path.write_bytes(len(header).to_bytes(8, 'little') + header + bytes(28))
  with pytest.raises(UserError, match='not a whole safetensors file'):
    tensors.read_tensors(path)


def test_a_line_without_end(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_bytes(b'short\n' + b'x' * (5 << 20))
  with pytest.raises(UserError, match='a.txt: line 2 has more than 4,194,304'):
    list(iter_lines_as_documents(find_sources(str(path)), TextStats()))
