"""Files that are not text are refused by name, with what to do."""

import bz2
import io
import lzma
import random
import zipfile

import pytest

from gpt.data import text_reader
from gpt.data.sources import find_sources
from gpt.errors import UserError
from tests.support import data_tools
from tests.support.data_tools import TEXT, read_text, write

isolated = data_tools.isolated  # Used by every test.


def zipped(data):
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w') as archive:
    archive.writestr('text.txt', data)
  return file.getvalue()


@pytest.mark.parametrize(
  'name, data, what',
  [
    ('a.zip', zipped(TEXT), 'zip archive.*unpack it'),
    ('a.bz2', bz2.compress(TEXT.encode()), 'bzip2.*bunzip2'),
    ('a.xz', lzma.compress(TEXT.encode()), 'xz data.*unxz'),
    ('a.png', b'\x89PNG\r\n\x1a\n' + bytes(99), 'PNG image'),
    ('a.txt', random.Random(0).randbytes(5000), 'not UTF-8 text'),
    ('a.tar', bytes(257) + b'ustar' + bytes(999), 'tar archive'),
    ('a.txt', ('\u043f\u0440\u0438' * 99).encode('cp1251'), 'iconv'),
  ],
)
def test_a_file_that_is_not_text_is_refused_by_name(name, data, what, tmp_path):
  path = write(tmp_path / name, data)
  with pytest.raises(UserError, match=f'(?s){name} is .*{what}') as e:
    read_text(path)
  assert 'leave it out of data.path' in str(e.value)


@pytest.mark.parametrize('head', [b'', b'[{"role": "user"}]\n' * 9])
@pytest.mark.parametrize('use', [read_text, find_sources])
def test_a_hole_is_refused_before_a_terabyte_of_it_is_read(head, use, tmp_path):
  path = write(tmp_path / 'a.txt', head)
  with open(path, 'r+b') as file:
    file.truncate(1 << 40)
  with pytest.raises(UserError, match=r'a.txt is not .*\d+% of its|are NUL'):
    use(path).sha256  # noqa: B018


@pytest.mark.parametrize(
  'data',
  [
    TEXT.encode()[:200] + b'\0\0' + TEXT.encode()[:200],
    'le chat d\u00e9j\u00e0 vu hier soir '.encode('latin-1') * 30,
    b'\xff\xff\xff',
    '\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3002'.encode() * 400,
    b'',
  ],
)
def test_text_with_a_few_bad_bytes_is_still_read(data, tmp_path):
  path = write(tmp_path / 'a.txt', data)
  text, _ = read_text(path)
  assert text == data.decode('utf-8', 'replace')


def test_a_character_cut_by_the_end_of_the_head_is_no_fault(tmp_path):
  text = 'a' + '\u20ac' * text_reader.READ_BYTES
  assert read_text(write(tmp_path / 'a.txt', text))[0] == text
