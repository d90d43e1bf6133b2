"""Texts, and tokens made of them, for several test files."""

import socket
import types

import pytest

from gpt.data import prepare as data
from gpt.data import sources, text_reader
from gpt.data.sample_text import sample_text
from gpt.tokenizers import CharTokenizer

TEXT = sample_text()[:20_000]


@pytest.fixture(autouse=True)
def own_world(tmp_path, monkeypatch):
  """An empty working directory, no downloads kept, no network."""
  (tmp_path / 'cwd').mkdir()
  monkeypatch.chdir(tmp_path / 'cwd')
  monkeypatch.setenv('RGPT_CACHE', str(tmp_path / 'downloads'))
  monkeypatch.delenv('RGPT_DATA', raising=False)
  monkeypatch.setenv(
    'RGPT_SHAKESPEARE_URL', f'http://127.0.0.1:{closed_port()}'
  )


def closed_port() -> int:
  """A local port on which nobody listens."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def config(path='sample', **changes):
  """config.data with the keys of configs/default.py."""
  return types.SimpleNamespace(
    **{
      'path': path,
      'format': 'text',
      'tokenizer': 'char',
      'tokenizer_path': '',
      'vocab_size': 400,
      'document_separator': 'none',
      'document_aware': False,
      'val_fraction': 0.1,
      'cache_dir': '',
      **changes,
    }
  )


def write(path, text):
  data = text if isinstance(text, bytes) else text.encode()
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)
  return str(path)


def read_all(path, separator='none'):
  """(pieces, stats) of the files that `path` names."""
  stats = text_reader.TextStats()
  found = sources.find_sources(path)
  return list(text_reader.iter_pieces(found, separator, stats)), stats


def read_text(path):
  pieces, stats = read_all(path)
  return ''.join(pieces), stats


def memory_source(*texts):
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
  tokenizer = tokenizer or CharTokenizer(text)
  corpus = data.open_corpus(
    memory_source(text),
    tokenizer,
    tmp_path / 'cache',
    separator,
    aware,
    val_fraction,
  )
  return tokenizer, corpus
