"""The sample of a large text that a tokenizer is trained on."""

import pytest

from gpt.data import text_sample
from gpt.data.sources import find_sources


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  monkeypatch.setattr(text_sample, 'READ_BYTES', 1 << 10)
  monkeypatch.setattr(text_sample, 'SAMPLE_BYTES', 1 << 12)


@pytest.mark.parametrize('whole_lines', [False, True])
def test_a_text_of_one_line_is_not_empty(tmp_path, whole_lines):
  (tmp_path / 'a.txt').write_text('words ' * 4000)
  sources = find_sources(str(tmp_path / 'a.txt'))
  assert text_sample.sample(sources, whole_lines) == sources


def test_lines_are_sampled_whole(tmp_path):
  (tmp_path / 'a.txt').write_text('some words\n' * 4000)
  sources = find_sources(str(tmp_path / 'a.txt'))
  items = text_sample.sample(sources, False).items
  assert 1 < len(items) and sum(x.size for x in items) < sources.size / 2
  lines = b''.join(x.data or b'' for x in items).splitlines()
  assert set(lines) == {b'some words'}
