"""hf://datasets/ addresses are downloaded once, from a hub on this machine."""

import json

import pytest

from gpt.data.pieces import iter_pieces
from gpt.data.sources import find_sources
from gpt.data.text_reader import TextStats
from gpt.errors import UserError
from tests.support import data_tools
from tests.support.fake_hub import FakeHub

isolated = data_tools.isolated  # Used by every test.
FILES = {
  'README.md': b'# A data set\n',
  'data/a.jsonl': json.dumps({'text': 'one'}).encode(),
  'data/b.jsonl': json.dumps({'text': 'two'}).encode(),
  'more/c.txt': b'three\n',
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
  with FakeHub() as server:
    server.use(monkeypatch, tmp_path / 'hf')
    server.add('ann/texts', FILES)
    yield server


def read(address):
  pieces = iter_pieces(find_sources(address), 'none', TextStats())
  return [piece for piece in pieces if piece]


@pytest.mark.parametrize(
  'files, expected',
  [
    ('', ['one', 'two', 'three\n']),
    ('/data', ['one', 'two']),
    ('/data/*.jsonl', ['one', 'two']),
    ('/more/c.txt', ['three\n']),
    ('@main/data/b.jsonl', ['two']),
  ],
)
def test_an_address_stands_for_its_files(files, expected, hub):
  address = f'hf://datasets/ann/texts{files}'
  assert read(address) == expected
  hub.asked.clear()
  assert read(address) == expected
  assert not [path for path in hub.paths('GET') if 'resolve' in path]


@pytest.mark.parametrize(
  'address, message',
  [
    ('hf://datasets/ann/none', 'has no data set ann/none, or it is private'),
    ('hf://datasets/ann/texts@v9', 'no revision v9'),
    ('hf://datasets/ann/texts/*.parquet', 'holds no such files'),
    ('hf://datasets/ann', 'names no data set'),
    ('hf://datasets/ann/texts/../x', 'names no data set'),
  ],
)
def test_what_the_hub_has_not_is_one_clear_line(address, message, hub):
  with pytest.raises(UserError, match=message) as e:
    read(address)
  assert '\n' not in str(e.value)


def test_a_hub_that_is_down_is_named(hub):
  hub.status = 503
  with pytest.raises(UserError, match='cannot be downloaded'):
    read('hf://datasets/ann/texts')
