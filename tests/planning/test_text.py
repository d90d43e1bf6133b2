"""What a plan learns of a text from samples of it."""

import gzip
import json

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from gpt.data import text_sample
from gpt.data.sample_text import sample_text
from gpt.data.sources import find_sources
from gpt.errors import UserError
from gpt.planning.text import PIECES, measure, read_pieces
from gpt.tokenizers import build_tokenizer

CHARACTERS = {'data.tokenizer': 'char'}


def written(path, content) -> dict:
  path.write_text(content)
  return {'data.path': str(path)}


def conversations(n=400):
  return [
    [
      {'role': 'user', 'content': f'Question {i}: what is {i} and {i}?'},
      {'role': 'assistant', 'content': f'It is {2 * i}, I think.'},
    ]
    for i in range(n)
  ]


def test_a_text_is_described_by_numbers():
  text = sample_text()
  facts = measure({'data.path': 'sample'})
  assert facts.format == 'text' and facts.bytes == len(text.encode())
  assert facts.distinct_characters <= len(set(text))
  assert 0.3 < facts.entropy.bits < 4
  sizes = sorted(facts.bytes_per_token)
  assert sizes[0] == 0 and len(sizes) > 1
  densities = [facts.bytes_per_token[size] for size in sizes]
  assert densities == sorted(densities) and densities[0] == 1
  assert text.lstrip().startswith(facts.opening) and facts.opening


def test_conversations_are_recognized_and_only_their_content_counts(tmp_path):
  found = conversations()
  lines = ''.join(json.dumps(x) + '\n' for x in found)
  facts = measure(written(tmp_path / 'chat.jsonl', lines))
  said = sum(len(m['content']) + 1 for x in found for m in x)
  assert facts.format == 'chat' and facts.documents == len(found)
  assert facts.bytes == pytest.approx(said, rel=0.05)
  assert facts.bytes < len(lines) / 2
  assert facts.opening == found[0][0]['content']
  # As text, the same file is JSON.
  given = {**written(tmp_path / 'x', lines), 'data.format': 'text'}
  assert measure(given | CHARACTERS).bytes == len(lines)


def test_lines_are_documents_if_that_is_given(tmp_path):
  names = ''.join(f'name{i}\n' for i in range(5000))
  given = written(tmp_path / 'names.txt', names) | CHARACTERS
  facts = measure(given | {'data.format': 'lines'})
  assert facts.documents == 5000 and facts.long_document == len('name4999')
  assert measure(given).documents == 0


def paragraphs() -> list[str]:
  return [f'{x}\n' for x in sample_text().split('\n\n') if x.strip()]


@pytest.mark.parametrize('kind', ['txt.gz', 'jsonl', 'jsonl.gz', 'parquet'])
def test_records_and_compressed_files_are_measured_by_their_text(
  kind, tmp_path
):
  texts = paragraphs()
  joined = '\n'.join(texts) + '\n'
  known = measure(written(tmp_path / 'plain.txt', joined))
  path = tmp_path / f'a.{kind}'
  if kind == 'parquet':
    parquet.write_table(pyarrow.table({'body': texts}), path)
  else:
    lines = ''.join(json.dumps({'body': x, 'n': 1}) + '\n' for x in texts)
    data = (lines if 'jsonl' in kind else joined).encode()
    path.write_bytes(gzip.compress(data) if kind.endswith('gz') else data)
  field = {} if 'txt' in kind else {'data.text_field': 'body'}
  facts = measure({'data.path': str(path)} | field)
  assert facts.format == 'text'
  assert facts.bytes == pytest.approx(known.bytes, rel=0.02)
  assert facts.bytes == pytest.approx(path.stat().st_size * facts.share_read)
  assert facts.bytes_per_token.keys() == known.bytes_per_token.keys()
  assert facts.entropy.bits == pytest.approx(known.entropy.bits, rel=0.1)


def test_compressed_conversations_are_recognized(tmp_path):
  found = conversations()
  lines = ''.join(json.dumps(x) + '\n' for x in found)
  known = measure(written(tmp_path / 'chat.jsonl', lines))
  path = tmp_path / 'packed.jsonl.gz'
  path.write_bytes(gzip.compress(lines.encode()))
  facts = measure({'data.path': str(path)})
  assert facts.format == 'chat' and facts.bytes == known.bytes
  assert facts.long_document == known.long_document
  rows = tmp_path / 'chat.parquet'
  parquet.write_table(pyarrow.table({'messages': found}), rows)
  facts = measure({'data.path': str(rows), 'data.format': 'chat'})
  assert facts.bytes == pytest.approx(known.bytes, rel=0.01)


def test_a_large_compressed_text_is_sampled(tmp_path, monkeypatch):
  """Its length is told by the blocks that were read: 3 of 12, one of 5."""
  monkeypatch.setattr(text_sample, 'SAMPLE_BYTES', 1 << 20)
  rng = np.random.default_rng(0)
  words = [f'w{i:x} ' for i in range(5000)]
  text = '\n'.join(
    ''.join(words[i] for i in rng.integers(5000, size=12))
    for _ in range(200_000)
  )
  path = tmp_path / 'a.txt.gz'
  path.write_bytes(gzip.compress(text.encode(), 1))
  facts = measure({'data.path': str(path)} | CHARACTERS)
  assert facts.bytes == pytest.approx(len(text), rel=0.3)


def test_a_given_kind_of_tokenizer_has_a_vocabulary_for_any_text(tmp_path):
  """Also for a text that is too short for one to be worthwhile."""
  short = written(tmp_path / 'short.txt', sample_text()[:30_000])
  facts = measure({**short, 'data.tokenizer': 'sentencepiece'})
  assert list(facts.bytes_per_token) == [512]
  facts = measure({**short, **CHARACTERS, 'data.vocab_size': 600})
  assert list(facts.bytes_per_token) == [0]
  many = ''.join(chr(0x4E00 + i) for i in range(12_000)) * 9
  given = written(tmp_path / 'many.txt', many)
  with pytest.raises(UserError, match='12,000 different characters'):
    measure({**given, 'data.tokenizer': 'sentencepiece'})


def test_a_given_tokenizer_is_the_only_one(tmp_path):
  build_tokenizer('sentencepiece', [sample_text()], 400).save(tmp_path)
  given = {'data.path': 'sample', 'data.tokenizer_path': str(tmp_path)}
  facts = measure(given)
  assert list(facts.bytes_per_token) == [400]
  assert facts.tokenizer == 'sentencepiece'
  facts = measure({'data.path': 'sample', 'data.vocab_size': 350})
  assert list(facts.bytes_per_token) == [350]
  assert list(
    measure({'data.path': 'sample'} | CHARACTERS).bytes_per_token
  ) == [0]


def test_samples_are_spread_over_all_files(tmp_path):
  for i in range(4):
    (tmp_path / f'{i}.txt').write_bytes(bytes([65 + i]) * 1000)
  sources = find_sources(str(tmp_path / '*.txt'))
  pieces = read_pieces(sources, 0, 4000, 160)
  assert len(pieces) == PIECES and all(len(x) == 10 for x in pieces)
  assert {x[0] for x in pieces} == set(b'ABCD')
  assert read_pieces(sources, 990, 1010, 160) == [b'A' * 10 + b'B' * 10]


def test_what_cannot_be_planned_for_is_refused(tmp_path):
  (tmp_path / 'a.png').write_bytes(b'\x89PNG\r\n' + bytes(range(256)) * 99)
  with pytest.raises(UserError, match='a.png is a PNG image'):
    measure({'data.path': str(tmp_path / 'a.png')})
  (tmp_path / 'a.bin').write_bytes(bytes(4096))
  with pytest.raises(UserError, match='a.bin holds token ids'):
    measure({'data.path': str(tmp_path / 'a.bin')})
  with pytest.raises(UserError, match='nix.txt does not exist'):
    measure({'data.path': 'nix.txt'})
  with pytest.raises(UserError, match='the text is empty'):
    measure(written(tmp_path / 'empty', ''))
  with pytest.raises(UserError, match='too short to plan for'):
    measure(written(tmp_path / 'short', 'a few words'))
  with pytest.raises(UserError, match='line 1'):
    measure({**written(tmp_path / 'x', 'no JSON'), 'data.format': 'chat'})
