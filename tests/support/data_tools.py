"""Texts and corpora for the tests of several files."""

import socket
import types

import pytest

from gpt.data import pieces, prepare, sources, text_reader
from gpt.data.sample_text import sample_text
from gpt.tokenizers import CharTokenizer

TEXT = sample_text()[:20_000]


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
  """Empty working directory and download cache; tinyshakespeare unreachable."""
  (tmp_path / 'cwd').mkdir()
  monkeypatch.chdir(tmp_path / 'cwd')
  monkeypatch.setenv('RGPT_CACHE', str(tmp_path / 'downloads'))
  monkeypatch.delenv('RGPT_DATA', raising=False)
  monkeypatch.setenv(
    'RGPT_SHAKESPEARE_URL', f'http://127.0.0.1:{closed_port()}'
  )


def closed_port() -> int:
  """A local port without a listener."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def data_config(path='sample', format='text', **changes):
  """config.data with the keys of configs/default.py."""
  return types.SimpleNamespace(
    **{
      'path': str(path),
      'format': format,
      'tokenizer': 'char',
      'tokenizer_path': '',
      'chat_template': '',
      'vocab_size': 400,
      'document_separator': 'none',
      'document_aware': False,
      'skip_long': False,
      'loss_on': 'all',
      'packing': False,
      'val_fraction': 0.1,
      'cache_dir': '',
      **changes,
    }
  )


def write(path, text) -> str:
  """Writes str or bytes to `path`, which it returns."""
  data = text if isinstance(text, bytes) else text.encode()
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)
  return str(path)


def read_all(path, separator='none'):
  """(pieces, TextStats) of the files that `path` names."""
  stats = text_reader.TextStats()
  found = sources.find_sources(path)
  return list(pieces.iter_pieces(found, separator, stats)), stats


def read_text(path):
  """(text, TextStats) of the files that `path` names."""
  pieces, stats = read_all(path)
  return ''.join(pieces), stats


def memory_source(*texts) -> sources.Sources:
  """Sources of in-memory texts (str or bytes)."""
  items = tuple(
    sources.Source(f'text {i}', data=t if isinstance(t, bytes) else t.encode())
    for i, t in enumerate(texts)
  )
  return sources.Sources('files', items, 'a test')


def corpus_of(
  text,
  tmp_path,
  separator='none',
  aware=False,
  val_fraction=0.1,
  tokenizer=None,
):
  """(tokenizer, Corpus) of an in-memory text."""
  tokenizer = tokenizer or CharTokenizer(text)
  corpus = prepare.open_corpus(
    memory_source(text),
    tokenizer,
    tmp_path / 'cache',
    separator,
    aware,
    val_fraction,
  )
  return tokenizer, corpus
