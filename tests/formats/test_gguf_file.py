"""Damaged GGUF files, and features that rgpt lacks: one clear line each."""

import struct
import tracemalloc

import numpy as np
import pytest

from gpt.errors import UserError
from gpt.formats.gguf import file as gguf_file
from gpt.formats.gguf import read_gguf, write_gguf
from gpt.formats.gguf.vocabulary import tokenizer_keys
from tests.support.gguf_models import model, small_bpe


@pytest.fixture(scope='module')
def bpe():
  return small_bpe()


@pytest.fixture(scope='module')
def whole(tmp_path_factory, bpe):
  """The bytes of a small file."""
  path = tmp_path_factory.mktemp('gguf') / 'm.gguf'
  cfg, params = model('llama', bpe.vocab_size)
  write_gguf(path, cfg, params, tokenizer_keys(bpe), 'f32', 'test')
  return path.read_bytes()


def refused(tmp_path, data) -> str:
  path = tmp_path / 'bad.gguf'
  path.write_bytes(data)
  with pytest.raises(UserError) as error:
    read_gguf(path)
  assert str(path) in str(error.value)
  return str(error.value)


def test_a_file_cut_anywhere_is_refused(tmp_path, whole):
  for size in [0, 3, 4, 8, 20, 100, 3000, len(whole) // 2, len(whole) - 1]:
    refused(tmp_path, whole[:size])


def test_other_files_and_versions_are_refused(tmp_path, whole):
  assert 'not a GGUF file' in refused(tmp_path, b'GGML' + whole[4:])
  version = lambda n, order='<': b'GGUF' + struct.pack(f'{order}I', n)  # noqa: E731
  assert 'version 1' in refused(tmp_path, version(1) + whole[8:])
  assert 'version 9' in refused(tmp_path, version(9) + whole[8:])
  assert 'big-endian' in refused(tmp_path, version(3, '>') + whole[8:])


@pytest.mark.parametrize('value', [2**31, 2**40, 2**63, 2**64 - 1])
@pytest.mark.parametrize('at', [8, 16, 24])
def test_absurd_counts_cost_nothing(tmp_path, whole, at, value):
  """The number of tensors, of entries, and the length of the first key."""
  data = whole[:at] + struct.pack('<Q', value) + whole[at + 8 :]
  tracemalloc.start()
  refused(tmp_path, data)
  assert tracemalloc.get_traced_memory()[1] < 2_000_000
  tracemalloc.stop()


def with_metadata(whole, tmp_path, changes, drop=(), rename=None):
  """The file with other metadata or names of tensors; the data unchanged."""
  path = tmp_path / 'from.gguf'
  path.write_bytes(whole)
  found = gguf_file.GgufFile(path)
  metadata = {
    k: v.tolist() if isinstance(v, np.ndarray) else v
    for k, v in (found.metadata | changes).items()
    if k not in drop
  }
  infos = sorted(found.tensors.values(), key=lambda info: info.offset)
  header = gguf_file.header_bytes(
    metadata,
    [
      ((rename or {}).get(i.name, i.name), i.shape, i.type, i.size)
      for i in infos
    ],
  )
  return header + whole[infos[0].offset :]


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'general.architecture': 'qwen2'}, 'biases of q, k and v alone'),
    ({'general.architecture': 'gemma3'}, 'sliding windows'),
    ({'general.architecture': 'made-up'}, "'made-up'"),
    ({'general.architecture': 7}, 'architecture 7'),
    ({'llama.expert_count': 8}, 'mixture of experts'),
    ({'llama.attention.sliding_window': 4096}, 'sliding windows'),
    ({'llama.attention.scale': 0.1}, 'llama.attention.scale'),
    ({'llama.attention.value_length': 4}, 'value_length'),
    ({'llama.rope.dimension_count': 4}, 'dimension_count'),
    ({'llama.rope.scaling.type': 'yarn'}, "'yarn'"),
    ({'llama.attention.head_count': [4, 2]}, 'differs between layers'),
    ({'llama.embedding_length': 'wide'}, 'embedding_length'),
    ({'llama.embedding_length': 64}, 'shape'),
    ({'llama.block_count': 3}, 'blk.2.'),
    ({'llama.block_count': 1}, 'blk.1.'),
    ({'llama.block_count': 2**31 - 1}, 'layers are declared'),
    ({'llama.attention.head_count': 0}, 'head_count is 0'),
    ({'split.count': 3}, 'one part of 3'),
    ({'general.alignment': 48}, 'general.alignment'),
  ],
)
def test_features_that_we_lack_are_refused_by_name(
  tmp_path, whole, changes, message
):
  data = with_metadata(whole, tmp_path, changes)
  assert message in refused(tmp_path, data)


def test_missing_and_unknown_tensors_are_refused_by_name(tmp_path, whole):
  rename = {'blk.0.ffn_up.weight': 'blk.0.ffn_gate_inp.weight'}
  data = with_metadata(whole, tmp_path, {}, rename=rename)
  assert 'blk.0.ffn_up.weight is missing' in refused(tmp_path, data)
  data = with_metadata(
    whole, tmp_path, {}, rename={'output.weight': 'blk.0.attn_q.bias'}
  )
  assert 'biases of q, k and v alone' in refused(tmp_path, data)
  rename = {'blk.0.ffn_up.weight': 'blk.0.ffn_gate.weight'}
  data = with_metadata(whole, tmp_path, {}, rename=rename)
  assert 'twice' in refused(tmp_path, data)


def test_a_file_without_the_usual_metadata_is_refused(tmp_path, whole):
  for key in (
    'llama.block_count',
    'llama.attention.layer_norm_rms_epsilon',
    'tokenizer.ggml.tokens',
    'tokenizer.ggml.pre',
  ):
    data = with_metadata(whole, tmp_path, {}, drop=(key,))
    assert key in refused(tmp_path, data)


def test_tensors_must_not_share_their_bytes(tmp_path, whole):
  """Else a small file could fill the memory."""
  name = b'blk.1.ffn_up.weight'
  at = whole.index(name) + len(name) + 4 + 2 * 8 + 4
  data = whole[:at] + struct.pack('<Q', 0) + whole[at + 8 :]
  assert 'overlap' in refused(tmp_path, data)


def test_bytes_that_belong_to_no_tensor_are_noticed(tmp_path, whole):
  """Inserted ones move the weights."""
  middle = len(whole) - 1000
  data = whole[:middle] + bytes(64) + whole[middle:]
  assert f'end at byte {len(whole):,} of' in refused(tmp_path, data)
  path = tmp_path / 'padded.gguf'
  path.write_bytes(whole + bytes(31))  # Some writers round the end up.
  read_gguf(path)
