"""JSON Lines, Parquet and compressed files are read, and their faults named."""

import gzip
import json

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from gpt.data import prepare
from gpt.data.documents import iter_lines_as_documents
from gpt.data.pieces import iter_pieces
from gpt.data.records import iter_rows
from gpt.data.sources import find_sources
from gpt.data.text_reader import TextStats
from gpt.errors import UserError
from tests.support import data_tools
from tests.support.data_tools import TEXT, data_config, write

isolated = data_tools.isolated  # Used by every test.
RECORDS = [{'text': 'one\r\ntwo'}, {'text': ''}, {'text': 'three \u20ac'}]
LINES = '\n'.join(map(json.dumps, RECORDS)) + '\n'
CHAT = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]


def table(path, **columns):
  path.parent.mkdir(parents=True, exist_ok=True)
  parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
  return str(path)


def zstd(data):
  return zstandard.ZstdCompressor().compress(data)


def read(path, format='text', **config):
  found = find_sources(path, '', format, config.get('text_field', ''))
  stats = TextStats()
  if format == 'lines':
    return list(iter_lines_as_documents(found, stats))
  return list(iter_pieces(found, 'none', stats))


@pytest.mark.parametrize('pack', ['', 'gz', 'zst', 'two'])
def test_compressed_text_is_the_text(pack, tmp_path):
  data = TEXT.encode()
  half = len(data) // 2
  packed = {
    '': data,
    'gz': gzip.compress(data),
    'zst': zstd(data),
    'two': zstd(data[:half]) + zstd(data[half:]),
  }[pack]
  name = 'a.txt' + {'two': '.zst', '': ''}.get(pack, f'.{pack}')
  assert ''.join(read(write(tmp_path / name, packed))) == TEXT


def test_a_record_is_a_document_in_every_kind_of_file(tmp_path):
  expected = ['one\ntwo', None, 'three \u20ac', None]
  paths = [
    write(tmp_path / 'a.jsonl', LINES),
    write(tmp_path / 'a.ndjson.gz', gzip.compress(LINES.encode())),
    write(tmp_path / 'a.jsonl.zst', zstd(LINES.encode())),
    table(tmp_path / 'a.parquet', text=[r['text'] for r in RECORDS]),
  ]
  rows = (tmp_path / 'a.parquet').read_bytes()
  paths += [
    write(tmp_path / 'b.parquet.gz', gzip.compress(rows)),
    write(tmp_path / 'b.parquet.zst', zstd(rows)),
  ]
  for path in paths:
    assert read(path) == expected, path
    lines = read(path, 'lines')
    assert lines == ['one\ntwo', 'three \u20ac']
  assert read(paths) == expected * 6


def test_text_before_and_after_records_is_a_document_of_its_own(tmp_path):
  paths = [
    write(tmp_path / 'a.txt', 'first\n'),
    write(tmp_path / 'b.jsonl', LINES),
    write(tmp_path / 'c.txt', 'last'),
  ]
  assert read(paths) == [
    'first\n',
    None,
    'one\ntwo',
    None,
    'three \u20ac',
    None,
    'last',
  ]


def test_the_field_has_a_name_of_its_own(tmp_path):
  line = json.dumps({'text': 1, 'body': 'hello'}) + '\n'
  for path in (
    write(tmp_path / 'a.jsonl', line),
    write(tmp_path / 'b.json', line),
    table(tmp_path / 'c.parquet', body=['hello'], text=[1]),
  ):
    assert read(path, text_field='body') == ['hello', None]


def test_conversations_come_from_records_too(tmp_path):
  for path, field in (
    (write(tmp_path / 'a.jsonl', json.dumps(CHAT) + '\n'), ''),
    (write(tmp_path / 'a.jsonl.gz', gzip.compress(b'[]\n')), ''),
    (write(tmp_path / 'b.jsonl', json.dumps({'talk': CHAT})), 'talk'),
    (table(tmp_path / 'c.parquet', messages=[CHAT]), ''),
  ):
    config = data_config(path, 'chat', text_field=field, val_fraction=0.0)
    if path.endswith('gz'):
      with pytest.raises(UserError, match='no characters'):
        prepare.prepare(config, tmp_path / f'run {path[-8:]}')
      continue
    tokenizer, corpus = prepare.prepare(config, tmp_path / f'run {path[-8:]}')
    assert len(corpus) == 1
    assert 'b' in tokenizer.decode(corpus.read(0))


def test_a_run_trains_on_records(tmp_path):
  records = [{'text': f'{i} {TEXT[i : i + 50]}'} for i in range(200)]
  path = write(tmp_path / 'a.jsonl', '\n'.join(map(json.dumps, records)))
  config = data_config(path, text_field='text', document_aware=True)
  tokenizer, corpus = prepare.prepare(config, tmp_path / 'run')
  assert len(corpus.doc_starts) == 200
  first = corpus.tokens[: corpus.doc_starts[1]]
  assert tokenizer.decode(first[:-1]) == records[0]['text']
  assert first[-1] == tokenizer.eos_id


def test_a_directory_stands_for_its_text_files(tmp_path):
  base = tmp_path / 'texts'
  for name, data in (
    ('b.txt', 'b\n'),
    ('a/deep.md', 'a\n'),
    ('z.jsonl', '{"text": "z"}'),
    ('photo.png', b'\x89PNG'),
    ('.hidden.txt', 'hidden'),
    ('.git/c.txt', 'hidden'),
  ):
    write(base / name, data)
  assert read(base) == ['a\n', 'b\n', None, 'z', None]


@pytest.mark.parametrize(
  'name, data, message',
  [
    ('a.txt.gz', gzip.compress(TEXT.encode())[:-20], 'the file was cut'),
    ('a.txt.gz', gzip.compress(TEXT.encode())[:-8] + bytes(8), 'damaged gzip'),
    ('a.txt.zst', zstd(TEXT.encode())[:-20], 'the file was cut'),
    ('a.txt.zst', zstd(TEXT.encode()) + b'more', 'damaged zstd'),
    ('a.txt.gz', TEXT.encode(), 'is not gzip data, although its name'),
    ('a.jsonl', '{"text": "a"}\n[1]\n', r'line 2 holds \[1\], not an object'),
    ('a.jsonl', '{"text": "a"}\n\n{"body": "b"}', "line 3 has no field 'text'"),
    ('a.jsonl', '{"text": "a"}\n{"text": 7}', "line 2: .* 'text' holds 7"),
    ('a.jsonl', '{"text": null}', 'holds None, not text'),
    ('a.jsonl', '{"text": "a"}\n{"te', 'line 2 is not JSON'),
    ('a.parquet', b'PAR1' + bytes(50), 'damaged Parquet'),
    ('a.parquet', b'', 'damaged Parquet'),
    ('a.txt', b'PAR1' + bytes(50), 'name it .parquet'),
  ],
)
def test_a_damaged_file_is_one_clear_line(name, data, message, tmp_path):
  path = write(tmp_path / name, data)
  with pytest.raises(UserError, match=message) as e:
    read(path)
  assert name in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize(
  'columns, message',
  [
    ({'body': ['a']}, "no column 'text'; its columns: \\['body'\\]"),
    ({'text': [1]}, "row 1: the field 'text' holds 1, not text"),
    ({'text': ['a', 'b', 'c', None]}, 'row 4: .* holds None'),
  ],
)
def test_a_parquet_file_without_text_is_explained(columns, message, tmp_path):
  path = table(tmp_path / 'a.parquet', **columns)
  with pytest.raises(UserError, match=message):
    read(path)


def test_an_empty_directory_and_a_glob_without_files_are_named(tmp_path):
  (tmp_path / 'none').mkdir()
  with pytest.raises(UserError, match='directory without files.*holds none'):
    find_sources(str(tmp_path / 'none'))
  write(tmp_path / 'some' / 'a.xyz', 'x')
  with pytest.raises(UserError, match='1 others, such as .*a.xyz'):
    find_sources(str(tmp_path / 'some'))
  with pytest.raises(UserError, match='matches no file'):
    find_sources(str(tmp_path / '*.txt.gz'))


def test_a_text_field_of_plain_text_is_refused(tmp_path):
  path = write(tmp_path / 'a.txt', TEXT)
  with pytest.raises(UserError, match='is for JSON Lines and Parquet'):
    prepare.prepare(data_config(path, text_field='body'), tmp_path / 'run')


@pytest.mark.parametrize('module', ['pyarrow.parquet', 'zstandard'])
def test_a_missing_library_is_named_with_its_extra(
  module, tmp_path, monkeypatch
):
  monkeypatch.setitem(__import__('sys').modules, module, None)
  monkeypatch.setitem(__import__('sys').modules, 'compression.zstd', None)
  path = tmp_path / ('a.txt.zst' if module == 'zstandard' else 'a.parquet')
  write(path, zstd(b'x'))
  with pytest.raises(UserError, match=r"pip install 'rgpt\[corpora\]'"):
    read(path)


def test_the_hash_of_a_text_knows_the_field(tmp_path):
  path = write(tmp_path / 'a.jsonl', '{"text": "a", "body": "b"}')
  fields = [find_sources(path, '', 'text', f).sha256 for f in ('', 'body')]
  chat = find_sources(path, '', 'chat').sha256
  assert len({*fields, chat}) == 3


def test_a_repeated_text_of_a_parquet_file_takes_memory_once(tmp_path):
  path = str(tmp_path / 'a.parquet')
  texts = pyarrow.table({'text': ['long ' * 9, None, 'long ' * 9, '']})
  parquet.write_table(texts, path)
  (source,) = find_sources(path, '', 'text', '').items
  ((row, values),) = iter_rows(source)
  assert row == 1 and values == ['long ' * 9, None, 'long ' * 9, '']
  assert values[0] is values[2]
