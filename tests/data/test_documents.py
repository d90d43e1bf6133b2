"""Documents, one per line: splits, training, generation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.data import prepare, record
from gpt.data.documents import hold_out, iter_lines_as_documents
from gpt.data.sources import find_sources
from gpt.data.text_reader import TextStats
from gpt.decoding.prompt import read_prompt
from gpt.errors import UserError
from gpt.runs.load import load_model
from gpt.runs.novelty import count_new
from gpt.tokenizers import build_tokenizer
from tests.support import document_tools
from tests.support.data_tools import data_config, memory_source
from tests.support.document_tools import (
  NAMES,
  assert_same_params,
  open_memory,
  readable,
  train_small,
  write_lines,
)
from tests.support.workdirs import launch, make_parrot

relaxed = settings(deadline=None, max_examples=60)
tokenizer = document_tools.tokenizer
documents = document_tools.documents


# Reading


@pytest.mark.parametrize(
  'text, wanted',
  [
    ('emma\nolivia\n', ['emma', 'olivia']),
    ('emma\nolivia', ['emma', 'olivia']),
    ('\n\n  emma \t\r\n \n\r\nolivia\r\n\n', ['emma', 'olivia']),
    ('\ufeffzo\u00eb\nx\u2028y\x0bz\n', ['zo\u00eb', 'x\u2028y\x0bz']),
    ('a' * 3_000_000 + '\nb', ['a' * 3_000_000, 'b']),
  ],
)
def test_each_nonblank_line_is_a_document(text, wanted):
  found = iter_lines_as_documents(memory_source(text), TextStats())
  assert list(found) == wanted


def test_a_document_reads_as_bos_text_eos(tokenizer, documents):
  assert len(documents) == len(NAMES)
  for i, name in enumerate(NAMES):
    ids = documents.read(i)
    assert ids.dtype == np.int32 and len(ids) == documents.lengths[i]
    assert readable(tokenizer, ids.tolist()) == f'<|bos|>{name}<|eos|>'


def test_a_control_token_spelled_in_a_line_is_text(tmp_path):
  tokenizer = build_tokenizer('sentencepiece', ['<|eos|> <|bos|> </s>'], 300)
  docs = open_memory('<|eos|>\nx</s>y', 'lines', tokenizer, tmp_path)
  assert tokenizer.decode(docs.read(0)) == '<|eos|>'
  assert docs.read(0).tolist().count(tokenizer.eos_id) == 1
  assert len(docs) == 2


def test_line_ends_are_not_in_the_vocabulary(tmp_path):
  path = write_lines(tmp_path / 'names.txt', NAMES)
  tokenizer, _ = prepare.prepare(data_config(path, 'lines'), tmp_path)
  assert tokenizer.vocab_size == 2 + len(set(''.join(NAMES)))


def test_a_text_without_documents_is_rejected(tokenizer, tmp_path):
  with pytest.raises(UserError, match='no document in a test'):
    open_memory('\n \n', 'lines', tokenizer, tmp_path)


# Held out


@given(st.lists(st.integers(0, 30), min_size=1), st.floats(0, 1))
@relaxed
def test_identical_documents_share_a_split(keys, fraction):
  held = hold_out(keys, fraction)
  by_key = {}
  for key, out in zip(keys, held.tolist()):
    assert by_key.setdefault(key, out) == out
  n, n_val = len(by_key), sum(by_key.values())
  if n > 1 and 0 < fraction < 1:
    assert 1 <= n_val < n
  assert abs(n_val - fraction * n) <= 1
  assert (hold_out(keys, fraction) == held).all()


def test_the_split_does_not_depend_on_the_tokenizer(documents, tmp_path):
  other = build_tokenizer('sentencepiece', NAMES, 300)
  docs = open_memory('\n'.join(NAMES), 'lines', other, tmp_path)
  np.testing.assert_array_equal(docs.held_out, documents.held_out)
  train = {NAMES[i] for i in documents.chosen('train')}
  val = {NAMES[i] for i in documents.chosen('val')}
  assert not train & val
  assert len(val) == round(0.1 * len(set(NAMES)))
  assert len(documents.chosen('all')) == 60


@pytest.mark.parametrize('fraction', [-0.1, 1.1, math.nan])
def test_a_val_fraction_out_of_range_is_rejected(fraction):
  with pytest.raises(UserError, match='val_fraction'):
    hold_out([1, 2], fraction)


# Whole runs


@pytest.fixture(scope='module')
def changes(tmp_path_factory):
  """Config of a run over NAMES, more than two epochs long."""
  path = tmp_path_factory.mktemp('text') / 'names.txt'
  return {
    'data.path': write_lines(path, NAMES),
    'data.format': 'lines',
    'data.skip_long': True,
    'model.block_size': 16,
    'batch_size': 20,
  }


@pytest.fixture(scope='module')
def trained(changes, tmp_path_factory):
  """(workdir, log lines) of that run, uninterrupted."""
  workdir = tmp_path_factory.mktemp('trained') / 'run'
  result, lines = train_small(workdir, changes)
  assert result.outcome == 'finished'
  return workdir, lines


def test_dropped_documents_are_logged(trained):
  _, lines = trained
  assert any(line.startswith('skip_long: dropped 0 of 60') for line in lines)


# tests/test_chat_runs.py has the same test with packing.
def test_killed_and_resumed_equals_uninterrupted(trained, changes, tmp_path):
  train_small(tmp_path / 'parts', changes, crash_at='step 4/6')
  _, lines = train_small(tmp_path / 'parts', changes)
  assert 'resuming from step 3' in lines
  assert_same_params(tmp_path / 'parts', trained[0])


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'data.format': 'csv'}, "data.format 'csv' is not known; allowed: text"),
    (
      {'data.document_aware': True},
      'document_aware needs documents: --config.data.document_separator',
    ),
    (
      {'data.format': 'lines', 'data.document_aware': True},
      'data.document_aware=True means nothing with data.format=lines',
    ),
    (
      {'data.format': 'lines', 'data.document_separator': 'blank_line'},
      'data.document_separator=blank_line means nothing',
    ),
    ({'data.packing': True}, 'data.packing=True means nothing with .*text'),
    ({'data.skip_long': True}, 'data.skip_long=True means nothing'),
    (
      {'data.format': 'lines', 'data.loss_on': 'assistant'},
      'data.loss_on=assistant needs data.format=chat',
    ),
    ({'data.loss_on': 'user'}, "data.loss_on 'user' is not known"),
  ],
)
def test_incompatible_keys_are_rejected(changes, message, tmp_path):
  with pytest.raises(UserError, match=message):
    train_small(tmp_path / 'run', changes)
  assert not (tmp_path / 'run').exists()


# Generated documents


def name_model(workdir, document: str):
  """A run trained on NAMES whose model always generates `document`."""
  tokenizer = build_tokenizer('char', [*NAMES, 'xyz'], 0)
  ids = [*tokenizer.encode(document).tolist(), tokenizer.eos_id]
  path = write_lines(workdir.with_suffix('.txt'), NAMES)
  data = {'path': path, 'format': 'lines'}
  make_parrot(workdir, tokenizer, ids, data=data)
  record.write(workdir, 'files', path, find_sources(path).sha256)
  return workdir


def test_generate_lists_documents_and_counts_the_new_ones(documents, tmp_path):
  run = name_model(tmp_path / 'run', 'xyz')
  args = '--num_samples=20', '--temperature=0.5'
  out, err = launch('generate', f'--workdir={run}', *args)
  trained = documents.chosen('train')
  assert out == 'xyz\n' * 20
  assert (
    f'20 of 20 are not in the training set of {len(trained)} documents' in err
  )
  loaded = load_model(run)
  known = [NAMES[int(i)] for i in trained[:2]]
  texts = [*known, f' {known[0]} ', '', 'xyz']
  assert count_new(loaded, run, texts) == (1, len(trained))
  # Without the training text the count is unknown.
  text = run.with_suffix('.txt')
  text.write_text('another\ntext\n')
  with pytest.raises(UserError, match='not what this run was trained on'):
    count_new(loaded, run, texts)
  text.unlink()
  out, err = launch('generate', f'--workdir={run}')
  assert out == 'xyz\n'
  assert 'warning: cannot count how many of them are new' in err


def test_sample_i_uses_seed_plus_i(trained):
  args = 'generate', f'--workdir={trained[0]}', '--temperature=1.5'
  many = launch(*args, '--num_samples=3', '--seed=7')[0].splitlines()
  assert len(set(many)) == 3
  assert all(len(name) <= 16 for name in many)
  assert launch(*args, '--seed=9')[0].rstrip('\n') == many[2]
  out, _ = launch(*args, '--prompt=ab', '--num_samples=2', '--show_prompt')
  assert out.count('--- sample') == 2 and out.count('ab') >= 2


def test_a_prompt_of_documents_starts_with_bos(tokenizer):
  ids = tokenizer.encode('ab').tolist()
  prompt = read_prompt(tokenizer, 'lines', 'ab', 16, 8)
  assert prompt.ids == [tokenizer.bos_id, *ids]
  assert read_prompt(tokenizer, 'text', 'ab', 16, 8).ids == ids
