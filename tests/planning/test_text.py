"""What a plan learns of a text from samples of it."""

import json

import pytest

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
  with pytest.raises(UserError, match='nix.txt does not exist'):
    measure({'data.path': 'nix.txt'})
  with pytest.raises(UserError, match='the text is empty'):
    measure(written(tmp_path / 'empty', ''))
  with pytest.raises(UserError, match='too short to plan for'):
    measure(written(tmp_path / 'short', 'a few words'))
  with pytest.raises(UserError, match='line 1'):
    measure({**written(tmp_path / 'x', 'no JSON'), 'data.format': 'chat'})
