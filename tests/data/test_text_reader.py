"""Reading text: repairs, blocks, and splitting into documents."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.data import prepare, sources, text_reader
from gpt.data.pieces import iter_pieces
from gpt.errors import UserError
from gpt.tokenizers import EOS, build_tokenizer
from tests.support import data_tools
from tests.support.data_tools import (
  TEXT,
  corpus_of,
  data_config,
  memory_source,
  read_text,
  write,
)

isolated = data_tools.isolated  # Used by every test.
relaxed = settings(deadline=None, max_examples=100)


def documents_of(separator, *texts):
  """Documents of in-memory texts, joined from their pieces."""
  docs = ['']
  for piece in iter_pieces(
    memory_source(*texts), separator, text_reader.TextStats()
  ):
    if piece is None:
      docs.append('')
    else:
      docs[-1] += piece
  return docs


# Reading


def test_repairs_are_made_and_counted(tmp_path):
  raw = (
    b'\xef\xbb\xbfone\r\ntwo\rthree\r\n\xff\xfe caf\xc3\xa9 '
    b'\xef\xbf\xbd \xe2\x82'
  )
  text, stats = read_text(write(tmp_path / 'a', raw))
  assert text == 'one\ntwo\rthree\n\ufffd\ufffd caf\u00e9 \ufffd \ufffd'
  assert dataclasses.astuple(stats)[:4] == (len(raw), 2, 1, 3)
  repairs = stats.repairs()
  assert '2 CRLF' in repairs and '3 invalid' in repairs
  assert '1 byte-order mark' in repairs
  assert text_reader.TextStats(bytes=5).repairs() == ''


def test_utf16_is_rejected_with_a_remedy(tmp_path):
  path = write(tmp_path / 'a.txt', 'hello'.encode('utf-16'))
  with pytest.raises(UserError, match='iconv'):
    read_text(path)


@relaxed
@given(
  raw=st.lists(
    st.sampled_from(
      [
        b'a',
        b'\r',
        b'\n',
        b'\r\n',
        b'\xc3\xa9',
        b'\xff',
        b'\xef\xbf\xbd',
        b'\xf0\x9f\x99\x82',
        b'\xe2',
        b'\x82',
        b'\xef\xbb\xbf',
        b'<|eos|>',
        b'<|',
        b' ',
      ]
    ),
    max_size=40,
  ).map(b''.join),
  size=st.integers(1, 7),
)
def test_reading_does_not_depend_on_the_block_size(raw, size):
  if raw[:2] in (b'\xff\xfe', b'\xfe\xff'):
    return
  expected = raw.decode('utf-8', 'replace').removeprefix('\ufeff')
  expected = expected.replace('\r\n', '\n')
  genuine = raw.count(b'\xef\xbf\xbd')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(text_reader, 'READ_BYTES', size)
    stats = text_reader.TextStats()
    source = sources.Source('x', data=raw)
    chunks = list(text_reader.iter_text(source, stats))
    blocks = list(text_reader.iter_blocks(chunks))
  assert ''.join(chunks) == ''.join(blocks) == expected
  assert stats.bytes == len(raw)
  assert stats.invalid_utf8 == expected.count('\ufffd') - genuine
  assert all(block.endswith('\n') for block in blocks[:-1])


# Documents


def test_a_literal_separates_documents():
  docs = documents_of('<|eos|>', 'one\n<|eos|>\ntwo<|eos|>three', 'four')
  assert docs == ['one\n', '\ntwo', 'three', 'four']
  assert documents_of('<|eos|>', 'one<|eos|>', 'two') == ['one', 'two']
  assert documents_of('<|end|>', 'a<|end|>b<|eos|>') == ['a', 'b<|eos|>']


def test_blank_lines_separate_documents():
  text = '\n \none\nmore\n\n\t\n\ntwo\n   three\n\n'
  assert documents_of('blank_line', text) == ['one\nmore\n', 'two\n   three\n']
  assert documents_of('blank_line', 'a\n\n', '\nb\n\nc') == ['a\n', 'b\n', 'c']


@pytest.mark.parametrize('separator', ['none', 'blank_line', '<|eos|>'])
def test_empty_files_do_not_affect_the_documents(separator):
  whole = documents_of(separator, 'one', 'two')
  for texts in (('one', '', 'two'), ('', 'one', '', '', 'two', '')):
    assert documents_of(separator, *texts) == whole


def test_without_a_separator_there_is_one_document():
  assert documents_of('none', 'a<|eos|>b\n\nc') == ['a<|eos|>b\n\nc']


@relaxed
@given(
  docs=st.lists(st.text(st.sampled_from('ab<|>eos\n '), max_size=12)),
  size=st.integers(1, 9),
  longest=st.integers(8, 20),
)
def test_documents_do_not_depend_on_block_sizes(docs, size, longest):
  text = EOS.join(docs)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(text_reader, 'READ_BYTES', size)
    patch.setattr(text_reader, 'MAX_LINE_CHARS', longest)
    assert documents_of(EOS, text) == text.split(EOS)


def test_long_lines_are_read_in_pieces():
  n = 2 * text_reader.MAX_LINE_CHARS + 5
  source = memory_source('x' * n + '\n')
  pieces = list(iter_pieces(source, 'none', text_reader.TextStats()))
  assert ''.join(pieces) == 'x' * n + '\n'
  limit = text_reader.MAX_LINE_CHARS + text_reader.READ_BYTES
  assert max(map(len, pieces)) <= limit


@pytest.mark.parametrize('separator', ['blank', '', 'eos', '<a b>'])
def test_an_unknown_separator_error_lists_the_choices(separator):
  with pytest.raises(UserError, match='none, blank_line'):
    documents_of(separator, 'text')


@pytest.mark.parametrize('kind', ['char', 'sentencepiece'])
def test_literal_eos_becomes_the_eos_id_only_as_separator(kind, tmp_path):
  text = TEXT + '<|eos|>' + TEXT + '<|eos|>' + TEXT
  tokenizer = build_tokenizer(kind, [text], 400)
  assert tokenizer.eos_id not in tokenizer.encode(text)
  _, plain = corpus_of(text, tmp_path, 'none', tokenizer=tokenizer)
  assert tokenizer.eos_id not in plain.tokens
  _, split = corpus_of(text, tmp_path, EOS, tokenizer=tokenizer)
  part = tokenizer.encode(TEXT).tolist()
  eos = [tokenizer.eos_id]
  assert split.tokens.tolist() == part + eos + part + eos + part
  n = len(part) + 1
  assert split.doc_starts.tolist() == [0, n, 2 * n]
  assert split.doc_starts.dtype == np.int64


def test_the_separator_is_not_in_the_vocabulary(tmp_path):
  path = write(tmp_path / 'a.txt', 'abc<|eos|>cab' * 50)
  tokenizer, corpus = prepare.prepare(
    data_config(path, document_separator=EOS), tmp_path / 'run'
  )
  assert tokenizer.chars == ['a', 'b', 'c']
  assert (corpus.tokens == tokenizer.eos_id).sum() == 50
  assert not corpus.info.unknown
