"""Files appear complete or not at all, and are read with suspicion."""

import json
import os
import tracemalloc

import pytest

from gpt import files
from gpt.errors import UserError, quoted
from gpt.fields import Fields, read_fields


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


# --- JSON


@pytest.mark.parametrize(
  'content, message',
  [
    (b'', 'is not JSON'),
    (b'{"a": 1', 'is not JSON'),
    (b'[1]', r'holds \[1\]; allowed: a JSON object'),
    (b'null', 'holds None; allowed: a JSON object'),
    (b'{"a": 1, "a": 2}', "the key 'a' occurs twice"),
    (b'{"b": {"a": 1, "a": 1}}', "the key 'a' occurs twice"),
    (b'{"a": NaN}', "the number 'NaN' is not finite"),
    (b'{"a": -Infinity}', "the number '-Infinity' is not finite"),
    (b'{"a": 1e999}', "the number '1e999' is not finite"),
    (b'{"a": ' + b'7' * 5000 + b'}', 'a number has 5000 digits, at most 40'),
    (b'{"a": "\xff"}', 'byte 7 is not UTF-8'),
    (b'{"a": "\\ud800"}', 'lone surrogate'),
    (b'{"a": ' + b'[' * 70 + b']' * 70 + b'}', 'nested deeper than 64 levels'),
    (b'{"a": ' * 99999 + b'1' + b'}' * 99999, 'nested deeper than 64 levels'),
    (b'{"a": ' + b'[' * 99999, 'nested deeper than 64 levels|is not JSON'),
  ],
)
def test_json_that_is_no_plain_object_is_one_clear_error(
  tmp_path, content, message
):
  path = tmp_path / 'a.json'
  path.write_bytes(content)
  with pytest.raises(UserError, match=message) as e:
    files.read_json(path)
  assert str(path) in str(e.value) and len(str(e.value)) < len(str(path)) + 300


def test_json_with_everything_allowed_is_read_exactly(tmp_path):
  value = {
    'text': 'a\0\U0001f642\u2028',
    'escaped': 'x',
    'numbers': [0, -1, 10**30, 0.1, 1e300, True, None],
    'deep': json.loads('[' * 60 + ']' * 60),
  }
  path = tmp_path / 'a.json'
  for ascii_only in (True, False):
    text = json.dumps(value, ensure_ascii=ascii_only)
    path.write_bytes(b'\xef\xbb\xbf' + text.encode())  # Some editors' mark.
    assert files.read_json(path) == value
  path.write_text('{"a": Infinity, "b": 1e999}')
  assert files.read_json(path, infinite=True) == dict.fromkeys(
    'ab', float('inf')
  )


def test_what_is_no_file_is_named(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  for path, message in [
    (tmp_path, 'Is a directory'),
    (tmp_path / 'pipe', 'it is a pipe or a device'),
    ('/dev/zero', 'it is a pipe or a device'),
    (tmp_path / 'absent', 'No such file'),
    (tmp_path / ('a' * 999), 'name too long'),
    (f'{tmp_path}/a\0b', 'null byte'),
  ]:
    with pytest.raises(UserError, match=message):
      files.read_json(path)


def test_a_file_above_the_limit_is_not_read(tmp_path):
  path = tmp_path / 'a.json'
  with path.open('wb') as file:
    file.truncate(1 << 40)  # Sparse.
  tracemalloc.start()
  with pytest.raises(UserError, match='1,099,511,627,776 bytes; allowed'):
    files.read_json(path, max_bytes=1000)
  assert tracemalloc.get_traced_memory()[1] < 1 << 20
  tracemalloc.stop()


@pytest.mark.parametrize(
  'piece', ['[],', '{},', '1,', '1.5,', '"ab",', '"KEY":1,', '["ab","cd"],']
)
def test_the_memory_of_json_is_bounded_by_its_size(piece):
  n = 8_000_000 // len(piece)
  if 'KEY' in piece:
    pieces = ''.join(piece.replace('KEY', f'{i:x}') for i in range(n))
    text = '{' + pieces.rstrip(',') + '}'
  else:
    text = f'[{piece * (n - 1)}{piece.rstrip(",")}]'
  tracemalloc.start()
  try:
    files.parse_json(text, 'x')
  except UserError as e:
    assert 'bytes of memory' in str(e)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < files.JSON_BYTES_ALLOWED + 10 * len(text)


# --- fields


FIELDS = {'n': 3, 'x': 0.5, 't': 'abc', 'b': True, 'l': [1, 2], 'm': {'n': 'z'}}


def test_fields_are_returned_as_they_are():
  fields = Fields({**FIELDS, 'none': None}, 'f.json')
  assert fields.integer('n', 3, 3) == 3
  assert fields.number('n', 0, 9) == 3.0 and fields.number('x', 0, 1) == 0.5
  assert fields.text('t') == 'abc' and fields.choice('t', ('abc',)) == 'abc'
  assert fields.flag('b') is True
  assert fields.items('l', of=int) == [1, 2]
  assert fields.mapping('m').text('n') == 'z'
  assert 'n' in fields and 'none' not in fields
  for name in ('none', 'absent'):
    assert fields.integer(name, 0, 1, 7) == 7
    assert fields.number(name, 0, 1, default=None) is None
    assert fields.items(name, ()) == ()
    assert fields.mapping(name, {}).values == {}


@pytest.mark.parametrize(
  'take, message',
  [
    (lambda f: f.integer('n', 4, 9), 'n is 3; allowed: a whole number from 4'),
    (lambda f: f.integer('b', 0, 9), 'b is True; allowed: a whole number'),
    (lambda f: f.integer('x', 0, 9), 'x is 0.5; allowed: a whole number'),
    (lambda f: f.integer('q', 0, 9), 'q is missing; needed: a whole number'),
    (lambda f: f.number('t', 0, 9), "t is 'abc'; allowed: a number from 0 to"),
    (lambda f: f.number('big', 0, 1e300), 'big is 1000.*; allowed: a number'),
    (lambda f: f.flag('n'), 'n is 3; allowed: true or false'),
    (lambda f: f.text('n'), 'n is 3; allowed: a string'),
    (lambda f: f.text('t', most=2), "t is 'abc'; allowed: .* 2 characters"),
    (lambda f: f.choice('l', ('a',)), r"l is \[1, 2\]; allowed: 'a'"),
    (lambda f: f.items('m'), 'm is .*; allowed: an array'),
    (lambda f: f.items('l', of=str), r'l\[0\] is 1; allowed: a string'),
    (lambda f: f.mapping('l'), r'l is \[1, 2\]; allowed: an object'),
    (lambda f: f.mapping('m').integer('n', 0, 1), "f.json: m: n is 'z'"),
  ],
)
def test_wrong_fields_name_file_field_value_and_what_is_allowed(take, message):
  with pytest.raises(UserError, match=message) as e:
    take(Fields({**FIELDS, 'big': 10**400}, 'f.json'))
  assert str(e.value).startswith('f.json: ')


def test_a_field_quotes_at_most_200_characters_that_are_safe_to_print():
  deep = json.loads('[' * 900 + ']' * 900)
  wide = {str(i): 'x' * 99 for i in range(99)}
  for value in (
    'x' * 999,
    '\x1b[31m\ud800\u202e' * 99,
    deep,
    wide,
    b'\xff' * 999,
  ):
    text = quoted(value)
    assert len(text) <= 200 and text.isascii() and text.isprintable()


def test_a_file_of_fields_must_hold_an_object(tmp_path):
  path = tmp_path / 'a.json'
  path.write_text('{"n": 1}')
  assert read_fields(path).integer('n', 0, 1) == 1


def test_a_pipe_is_read_if_somebody_writes_to_it(tmp_path):
  pipe = tmp_path / 'pipe'
  os.mkfifo(pipe)
  with pytest.raises(UserError, match='nobody writes to this pipe'):
    files.read_stream(pipe, 10)
  reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
  writer = os.open(pipe, os.O_WRONLY)
  os.write(writer, b'hello')
  os.close(writer)
  assert files.read_stream(pipe, 10) == b'hello'
  os.close(reader)
