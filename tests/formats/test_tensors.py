"""Files of tensors: exact, reproducible, checked when they are read."""

import json

import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

from gpt.errors import UserError
from gpt.formats.tensors import read_tensors, round_to, write_tensors


@pytest.mark.parametrize('dtype', ['f32', 'f16', 'bf16'])
def test_tensors_are_read_as_they_were_rounded(tmp_path, dtype):
  matrix = np.arange(6, dtype=np.float32).reshape(2, 3) / 3
  tensors = {
    'a.b': matrix,
    'transposed': matrix.T,
    'empty': np.zeros((0, 4), np.float32),
    'scalar': np.array(-0.1, np.float32),
  }
  path = tmp_path / 'x.safetensors'
  size = write_tensors(path, tensors, dtype, {'k': 'v "é"'})
  assert size == path.stat().st_size
  with safetensors.safe_open(path, 'numpy') as file:
    assert file.metadata() == {'k': 'v "é"'}
  found, rounded = read_tensors(path), round_to(tensors, dtype)
  assert found.keys() == tensors.keys()
  for name, x in rounded.items():
    assert x.dtype.itemsize == {'f32': 4}.get(dtype, 2)
    assert found[name].dtype == np.float32
    np.testing.assert_array_equal(found[name], x.astype(np.float32))


def test_equal_tensors_give_equal_files(tmp_path):
  """The library alone writes several metadata entries in a random order."""
  x = {'x': np.ones(3, np.float32)}
  metadata = {letter: letter for letter in 'qwertyuiop'}
  for name in 'abc':
    write_tensors(tmp_path / name, x, 'f32', metadata)
  one, *others = ((tmp_path / name).read_bytes() for name in 'abc')
  assert all(other == one for other in others)
  header = json.loads(one[8 : 8 + int.from_bytes(one[:8], 'little')])
  assert list(header['__metadata__']) == list(metadata)


def test_other_float_types_are_converted(tmp_path):
  rng = np.random.default_rng(0)
  tensors = {
    f't{i}': rng.normal(size=(3, i)).astype(kind)
    for i, kind in enumerate(['float16', 'float32', 'float64'], start=1)
  }
  save_file(tensors, tmp_path / 'x.safetensors', {'from': 'elsewhere'})
  found = read_tensors(tmp_path / 'x.safetensors')
  for name, x in tensors.items():
    np.testing.assert_array_equal(found[name], x.astype(np.float32))


def test_files_of_version_0_1_are_read(tmp_path):
  """Its writer kept the order of the tensors and put metadata first."""
  z, a = np.array([1, 2], '<f4'), np.array([[3]], '<f4')
  header = {
    '__metadata__': {'format': 'pt'},
    'z': {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]},
    'a': {'dtype': 'F32', 'shape': [1, 1], 'data_offsets': [8, 12]},
  }
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  path = tmp_path / 'old.safetensors'
  path.write_bytes(
    len(text).to_bytes(8, 'little') + text + z.tobytes() + a.tobytes()
  )
  found = read_tensors(path)
  np.testing.assert_array_equal(found['z'], z)
  np.testing.assert_array_equal(found['a'], a)


def test_damaged_files_are_refused(tmp_path):
  path = tmp_path / 'x.safetensors'
  write_tensors(path, {'a': np.ones((4, 4), np.float32)}, 'f32')
  whole = path.read_bytes()
  for damaged in (
    b'',
    whole[:7],
    whole[:40],
    whole[:-1],
    b'\xff' * 64,
    whole.replace(b'[4,4]', b'[4,5]'),
  ):
    path.write_bytes(damaged)
    with pytest.raises(UserError, match='not a whole safetensors file'):
      read_tensors(path)
  save_file({'a': np.ones(2, np.int32)}, path)
  with pytest.raises(UserError, match='a is I32; allowed: F32'):
    read_tensors(path)
  with pytest.raises(UserError, match='cannot read .*none'):
    read_tensors(tmp_path / 'none')


def test_numbers_too_large_for_half_precision_are_refused(tmp_path):
  tensors = {'wte': np.array([[1e5]], np.float32)}
  with pytest.raises(UserError, match='wte holds 1e.05, too large for f16'):
    write_tensors(tmp_path / 'x', tensors, 'f16')
  assert not (tmp_path / 'x').exists()
  write_tensors(tmp_path / 'x', tensors, 'bf16')
  assert load_file(tmp_path / 'x')['wte'].shape == (1, 1)


def test_a_failed_write_leaves_the_older_file(tmp_path, monkeypatch):
  path = tmp_path / 'x'
  write_tensors(path, {'a': np.ones(2, np.float32)}, 'f32')
  before = path.read_bytes()

  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr('os.fsync', full)
  with pytest.raises(UserError, match='cannot write .*x: No space left'):
    write_tensors(path, {'a': np.zeros(2, np.float32)}, 'f32')
  assert path.read_bytes() == before
  assert list(tmp_path.iterdir()) == [path]
