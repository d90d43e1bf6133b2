"""RGPT files: layout against hand-packed bytes, bit-exact round trips, errors.

The golden files are packed here with `struct`, value by value, from the
layout in the format's description, without help from gpt.formats.randygpt.
"""

import os
import struct

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from gpt.errors import UserError
from gpt.formats import randygpt

# A model small enough to write out: V=3, T=2, D=2, L=1.
V, T, D, L = 3, 2, 2, 1
N = 12 * L * D * D + T * D + 2 * V * D
SIZES = [
  ('wte', V * D),
  ('wpe', T * D),
  ('lm_head', V * D),
  ('block_0/wq', D * D),
  ('block_0/wk', D * D),
  ('block_0/wv', D * D),
  ('block_0/wo', D * D),
  ('block_0/fc1', 4 * D * D),
  ('block_0/fc2', 4 * D * D),
]
# Weights count 0, 1, 2, ...; m is 1000 and v is 2000 more.
HEADER = struct.pack('<III', V, 41, 42) + struct.pack('<f', 1.5)


def floats(values):
  return b''.join(struct.pack('<f', x) for x in values)


def count_up(start=0):
  return floats(range(start, start + N))


def interleaved_moments():
  """m_wte v_wte m_wpe v_wpe ... as in RGPT0001."""
  out, first = b'', 0
  for _, size in SIZES:
    out += floats(range(1000 + first, 1000 + first + size))
    out += floats(range(2000 + first, 2000 + first + size))
    first += size
  return out


GOLDEN = {
  'RGPT0001': b'RGPT0001' + HEADER + count_up() + interleaved_moments(),
  'RGPT0002': b'RGPT0002' + HEADER + count_up() + interleaved_moments(),
  'RGPT0002 bare': b'RGPT0002' + HEADER + count_up(),
  'RGPT0003': (
    b'RGPT0003' + HEADER + count_up() + count_up(1000) + count_up(2000)
  ),
}


def write(tmp_path, data, name='checkpoint.bin'):
  path = tmp_path / name
  path.write_bytes(data)
  return path


def read(path, **kw):
  return randygpt.read_rgpt(path, D, L, T, **kw)


@pytest.mark.parametrize('kind', GOLDEN)
def test_reads_the_documented_layout(tmp_path, kind):
  ckpt = read(write(tmp_path, GOLDEN[kind]))
  assert ckpt.version == int(kind[7])
  assert (ckpt.vocab_size, ckpt.iter, ckpt.best_loss) == (V, 41, 1.5)
  assert list(ckpt.weights) == [name for name, _ in SIZES]
  groups = [(ckpt.weights, 0), (ckpt.m, 1000), (ckpt.v, 2000)]
  if kind.endswith('bare'):
    assert ckpt.m is None and ckpt.v is None
    # Fresh moments with an old step would break bias correction.
    assert ckpt.adam_step == 0
    groups = groups[:1]
  else:
    assert ckpt.adam_step == 42
  for tensors, start in groups:
    for name, size in SIZES:
      want = np.arange(start, start + size, dtype=np.float32)
      np.testing.assert_array_equal(tensors[name].ravel(), want, name)
      start += size


def test_block_matrices_are_out_by_in_in_the_file(tmp_path):
  ckpt = read(write(tmp_path, GOLDEN['RGPT0003']))
  assert ckpt.weights['block_0/fc1'].shape == (4 * D, D)
  assert ckpt.weights['block_0/fc2'].shape == (D, 4 * D)
  params, mu, _ = randygpt.to_params(ckpt)
  assert params['block_0']['fc1'].shape == (D, 4 * D)
  assert params['block_0']['fc2'].shape == (4 * D, D)
  # The first four weights of the file's wq are its rows (0, 1), (2, 3): the
  # second row yields the second output, so it is our second column.
  first = V * D + T * D + V * D
  wq = params['block_0']['wq']
  np.testing.assert_array_equal(wq[:, 1], [first + 2, first + 3])
  np.testing.assert_array_equal(mu['wpe'][1], [1000 + V * D + 2, 1009])


def test_writes_exactly_the_documented_bytes(tmp_path):
  source = write(tmp_path, GOLDEN['RGPT0003'])
  target = tmp_path / 'copy.bin'
  randygpt.write_rgpt(target, read(source))
  assert target.read_bytes() == GOLDEN['RGPT0003']


@pytest.mark.parametrize('kind', ['RGPT0001', 'RGPT0002'])
def test_older_versions_are_written_as_0003(tmp_path, kind):
  target = tmp_path / 'new.bin'
  randygpt.write_rgpt(target, read(write(tmp_path, GOLDEN[kind])))
  assert target.read_bytes() == GOLDEN['RGPT0003']


def test_weights_only_gets_a_fresh_optimizer(tmp_path):
  target = tmp_path / 'new.bin'
  randygpt.write_rgpt(target, read(write(tmp_path, GOLDEN['RGPT0002 bare'])))
  header = struct.pack('<III', V, 41, 0) + struct.pack('<f', 1.5)
  want = b'RGPT0003' + header + count_up() + bytes(8 * N)
  assert target.read_bytes() == want


@hypothesis.given(
  shape=st.tuples(*[st.integers(1, 3)] * 4),
  bits=st.lists(
    st.sampled_from(
      [
        0x7F800001,  # signalling NaN
        0xFFC12345,  # quiet NaN with a payload
        0x7F800000,  # inf
        0xFF800000,  # -inf
        0x80000000,  # -0.0
        0x00000001,  # smallest denormal
        0x807FFFFF,  # largest negative denormal
        0x3F800000,
      ]
    )
    | st.integers(0, 2**32 - 1),
    min_size=1,
    max_size=40,
  ),
  header=st.tuples(*[st.integers(0, 2**32 - 1)] * 3),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_import_then_export_is_byte_identical(
  tmp_path_factory, shape, bits, header
):
  v, t, d, l = shape
  n = 12 * l * d * d + t * d + 2 * v * d
  body = np.resize(np.array(bits, '<u4'), 3 * n).tobytes()
  data = b'RGPT0003' + struct.pack('<4I', v, *header) + body
  directory = tmp_path_factory.mktemp('rgpt')
  path = write(directory, data)
  params, mu, nu = randygpt.to_params(
    source := randygpt.read_rgpt(path, d, l, t)
  )
  ckpt = randygpt.from_params(
    params,
    mu,
    nu,
    iter=source.iter,
    adam_step=source.adam_step,
    best_loss=source.best_loss,
  )
  randygpt.write_rgpt(path, ckpt)
  assert path.read_bytes() == data


def test_bad_magic_names_the_file(tmp_path):
  for data in (b'', b'RGPT', b'RGPT0004' + HEADER, b'\x89PNG' * 9):
    path = write(tmp_path, data)
    with pytest.raises(UserError) as e:
      read(path)
    assert str(e.value) == f'Bad magic bytes in checkpoint {path}'


def test_vocab_mismatch_names_both_sizes(tmp_path):
  path = write(tmp_path, GOLDEN['RGPT0003'])
  with pytest.raises(UserError) as e:
    read(path, expected_vocab_size=67)
  assert str(e.value) == 'Checkpoint vocab_size 3 != model vocab_size 67'
  assert read(path, expected_vocab_size=3).vocab_size == 3


def test_a_truncated_header_is_an_error(tmp_path):
  path = write(tmp_path, GOLDEN['RGPT0003'][:20])
  with pytest.raises(
    UserError, match='truncated: it has 20 bytes.* header of 24'
  ):
    read(path)


@pytest.mark.parametrize('kind', GOLDEN)
@pytest.mark.parametrize('change', [-4, -1, 1, 4])
def test_wrong_size_names_both_sizes(tmp_path, kind, change):
  data = GOLDEN[kind]
  data = data[:change] if change < 0 else data + bytes(change)
  with pytest.raises(randygpt.RgptSizeError) as e:
    read(write(tmp_path, data))
  assert f'has {len(data)} bytes' in str(e.value)
  assert f'take {24 + 12 * N} bytes' in str(e.value)
  assert (f'(or {24 + 4 * N} ' in str(e.value)) == kind.startswith('RGPT0002')


def test_only_version_0002_may_lack_moments(tmp_path):
  for version in (b'1', b'3'):
    data = b'RGPT000' + version + GOLDEN['RGPT0002 bare'][8:]
    with pytest.raises(randygpt.RgptSizeError):
      read(write(tmp_path, data))


PRESETS = {
  'xs': (116, 3),
  's': (128, 8),
  'ds': (128, 12),
  'm': (192, 6),
  'l': (256, 6),
  'deep': (192, 16),
  'xl': (384, 8),
}


def sparse_file(path, magic, vocab_size, n_embd, n_layer, per_weight=12):
  """A file of a preset's size that takes no disk space."""
  n = randygpt.count_weights(vocab_size, n_embd, n_layer, 256)
  with open(path, 'wb') as f:
    f.write(magic + struct.pack('<IIIf', vocab_size, 0, 1, 2.0))
    f.truncate(24 + per_weight * n)
  return path


@pytest.mark.parametrize('vocab_size', [67, 2000])
@pytest.mark.parametrize('preset', PRESETS)
def test_wrong_preset_names_the_shape_that_fits(tmp_path, preset, vocab_size):
  shape = PRESETS[preset]
  path = sparse_file(tmp_path / 'c.bin', b'RGPT0003', vocab_size, *shape)
  assert randygpt.infer_shape(path) == [shape]
  other = PRESETS['xs' if preset != 'xs' else 'l']
  with pytest.raises(randygpt.RgptSizeError) as e:
    randygpt.read_rgpt(path, *other)
  assert shape in e.value.fits
  assert f'n_embd {shape[0]}, n_layer {shape[1]}' in str(e.value)


def test_weights_only_shape_is_inferred_too(tmp_path):
  path = sparse_file(tmp_path / 'c.bin', b'RGPT0002', 67, 256, 6, 4)
  assert (256, 6) in randygpt.infer_shape(path)


def test_implausibly_deep_shapes_are_not_suggested(tmp_path):
  """The size alone fits n_embd 4 with thousands of layers."""
  path = sparse_file(tmp_path / 'c.bin', b'RGPT0003', 67, 4, 2747)
  assert all(l <= d // 4 for d, l in randygpt.infer_shape(path))
  with pytest.raises(randygpt.RgptSizeError) as e:
    randygpt.read_rgpt(path, 256, 6)
  assert 'n_layer 2747' not in str(e.value)


def test_huge_vocab_in_a_damaged_header_allocates_nothing(tmp_path):
  data = b'RGPT0003' + b'\xff' * 4 + GOLDEN['RGPT0003'][12:]
  with pytest.raises(randygpt.RgptSizeError, match='4294967295'):
    read(write(tmp_path, data))


def test_missing_file_and_directory_are_user_errors(tmp_path):
  for path in (tmp_path / 'none.bin', tmp_path):
    with pytest.raises(UserError, match='cannot read '):
      read(path)


def test_parameter_counts_of_the_presets():
  counts = {
    name: randygpt.count_weights(67, *shape, 256) / 1e6
    for name, shape in PRESETS.items()
  }
  assert {name: float(f'{n:.4g}') for name, n in counts.items()} == {
    'xs': 0.5297,
    's': 1.623,
    'ds': 2.409,
    'm': 2.729,
    'l': 4.818,
    'deep': 7.153,
    'xl': 14.31,
  }


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path):
  path = write(tmp_path, GOLDEN['RGPT0003'])
  broken = read(path)
  broken.m['block_0/fc2'] = np.zeros((1, 1), np.float32)
  with pytest.raises(UserError, match='block_0/fc2 of m'):
    randygpt.write_rgpt(path, broken)
  broken = read(path)
  broken.iter = -1
  with pytest.raises(UserError, match='iter -1'):
    randygpt.write_rgpt(path, broken)
  assert path.read_bytes() == GOLDEN['RGPT0003']
  assert os.listdir(tmp_path) == ['checkpoint.bin']


def test_a_full_disk_is_a_clear_error(tmp_path, monkeypatch):
  path = write(tmp_path, GOLDEN['RGPT0003'])
  ckpt = read(path)

  def full(fd):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(UserError, match='No space left on device'):
    randygpt.write_rgpt(path, ckpt)
  assert path.read_bytes() == GOLDEN['RGPT0003']
  assert os.listdir(tmp_path) == ['checkpoint.bin']


def test_other_architectures_are_refused(tmp_path):
  params, *_ = randygpt.to_params(read(write(tmp_path, GOLDEN['RGPT0003'])))
  tied = {k: x for k, x in params.items() if k != 'lm_head'}
  with pytest.raises(UserError, match='lm_head'):
    randygpt.from_params(tied)
  gated = params | {'block_0': params['block_0'] | {'gate': np.zeros((2, 8))}}
  with pytest.raises(UserError, match='block_0/gate'):
    randygpt.from_params(gated)
  double = params | {'wpe': params['wpe'].astype(np.float64)}
  with pytest.raises(UserError, match='wpe of weights is float64'):
    randygpt.from_params(double)
  grouped = params | {'block_0': params['block_0'] | {'wk': np.zeros((2, 1))}}
  with pytest.raises(UserError, match=r'block_0/wk of weights is .*\[1, 2\]'):
    randygpt.from_params(grouped)
