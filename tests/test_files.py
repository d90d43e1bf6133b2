"""Files appear complete or not at all."""

import os

import pytest

from gpt import files


def names(path):
  return sorted(p.name for p in path.iterdir())


def test_a_failed_write_keeps_the_old_file(tmp_path):
  path = tmp_path / 'a.bin'
  files.write_atomic(path, b'old')
  with pytest.raises(KeyError), files.replacing(path) as file:
    file.write(b'new')
    raise KeyError
  assert path.read_bytes() == b'old' and names(tmp_path) == ['a.bin']
  with files.replacing(path) as file:
    file.write(b'new')
    assert path.read_bytes() == b'old'
  assert path.read_bytes() == b'new' and names(tmp_path) == ['a.bin']
  assert path.stat().st_mode & 0o777 == 0o644


def test_only_old_leftovers_are_removed(tmp_path):
  for name in ('.a.bin.tmp-1', '.b.bin.tmp-2', 'c.bin.tmp-3', '.lock'):
    (tmp_path / name).write_bytes(b'')
    if name != '.b.bin.tmp-2':
      os.utime(tmp_path / name, (0, 0))
  files.remove_leftovers(tmp_path)
  assert names(tmp_path) == ['.b.bin.tmp-2', '.lock', 'c.bin.tmp-3']
