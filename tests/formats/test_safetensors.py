"""Files of tensors: the library reads ours, and we read the library's."""

import numpy as np
import pytest

from gpt.errors import UserError
from gpt.formats import safetensors_file

library = pytest.importorskip('safetensors.numpy')


@pytest.mark.parametrize('dtype', ['f32', 'f16', 'bf16'])
def test_the_library_reads_our_files(tmp_path, dtype):
  tensors = {
    'a.b': np.arange(6, dtype=np.float32).reshape(2, 3) / 3,
    'empty': np.zeros((0, 4), np.float32),
    'scalar': np.array(-0.1, np.float32),
  }
  path = tmp_path / 'x.safetensors'
  size = safetensors_file.write(path, tensors, dtype, {'k': 'v "é"'})
  assert size == path.stat().st_size
  rounded = safetensors_file.round_to(tensors, dtype)
  theirs = library.load_file(path)
  for name, x in rounded.items():
    np.testing.assert_array_equal(theirs[name].astype(np.float32), x)
    assert theirs[name].dtype.itemsize == {'f32': 4}.get(dtype, 2)
  ours, metadata = safetensors_file.read(path)
  assert metadata == {'k': 'v "é"'}
  for name, x in rounded.items():
    np.testing.assert_array_equal(ours[name], x.astype(np.float32))


def test_we_read_the_librarys_files(tmp_path):
  rng = np.random.default_rng(0)
  tensors = {
    f't{i}': rng.normal(size=(3, i)).astype(kind)
    for i, kind in enumerate(['float16', 'float32', 'float64'], start=1)
  }
  library.save_file(tensors, tmp_path / 'x.safetensors', {'from': 'them'})
  ours, metadata = safetensors_file.read(tmp_path / 'x.safetensors')
  assert metadata == {'from': 'them'}
  for name, x in tensors.items():
    np.testing.assert_array_equal(ours[name], x.astype(np.float32))


def test_damaged_files_are_refused(tmp_path):
  path = tmp_path / 'x.safetensors'
  safetensors_file.write(path, {'a': np.ones((4, 4), np.float32)}, 'f32')
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
      safetensors_file.read(path)
  library.save_file({'a': np.ones(2, np.int32)}, path)
  with pytest.raises(UserError, match='a is I32'):
    safetensors_file.read(path)


def test_numbers_too_large_for_half_precision_are_refused(tmp_path):
  tensors = {'wte': np.array([[1e5]], np.float32)}
  with pytest.raises(UserError, match='wte holds 1e.05, too large for f16'):
    safetensors_file.write(tmp_path / 'x', tensors, 'f16')
  assert not (tmp_path / 'x').exists()
  safetensors_file.write(tmp_path / 'x', tensors, 'bf16')
