"""Documents: one a line, held out whole, trained on and generated."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.data import prepare as data
from gpt.data.documents import hold_out, iter_lines_as_documents
from gpt.data.sources import find_sources
from gpt.data.text_reader import TextStats
from gpt.decoding.prompt import read_prompt
from gpt.errors import UserError
from gpt.tokenizers import build_tokenizer
from tests.support import document_tools
from tests.support.document_tools import (
  NAMES,
  assert_same_params,
  data_config,
  memory_source,
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
def test_each_line_is_a_document_and_blank_ones_are_none(text, wanted):
  found = iter_lines_as_documents(memory_source(text), TextStats())
  assert list(found) == wanted


def test_a_document_is_bos_text_eos(tokenizer, documents):
  assert len(documents) == len(NAMES)
  for i, name in enumerate(NAMES):
    ids = documents.read(i)
    assert ids.dtype == np.int32 and len(ids) == documents.lengths[i]
    assert readable(tokenizer, ids.tolist()) == f'<|bos|>{name}<|eos|>'


def test_a_line_that_spells_a_control_token_is_text(tmp_path):
  tokenizer = build_tokenizer('sentencepiece', ['<|eos|> <|bos|> </s>'], 300)
  docs = open_memory('<|eos|>\nx</s>y', 'lines', tokenizer, tmp_path)
  assert tokenizer.decode(docs.read(0)) == '<|eos|>'
  assert docs.read(0).tolist().count(tokenizer.eos_id) == 1
  assert len(docs) == 2


def test_the_vocabulary_has_no_line_ends(tmp_path):
  path = write_lines(tmp_path / 'names.txt', NAMES)
  tokenizer, _ = data.prepare(data_config(path, 'lines'), tmp_path)
  assert tokenizer.vocab_size == 2 + len(set(''.join(NAMES)))


def test_no_documents_is_an_error(tokenizer, tmp_path):
  with pytest.raises(UserError, match='no document in a test'):
    open_memory('\n \n', 'lines', tokenizer, tmp_path)


# Held out


@given(st.lists(st.integers(0, 30), min_size=1), st.floats(0, 1))
@relaxed
def test_equal_documents_are_held_out_together(keys, fraction):
  held = hold_out(keys, fraction)
  by_key = {}
  for key, out in zip(keys, held.tolist()):
    assert by_key.setdefault(key, out) == out
  n, n_val = len(by_key), sum(by_key.values())
  if n > 1 and 0 < fraction < 1:
    assert 1 <= n_val < n
  assert abs(n_val - fraction * n) <= 1
  assert (hold_out(keys, fraction) == held).all()


def test_the_same_documents_are_held_out_for_every_seed_and_tokenizer(
  documents, tmp_path
):
  other = build_tokenizer('sentencepiece', NAMES, 300)
  docs = open_memory('\n'.join(NAMES), 'lines', other, tmp_path)
  np.testing.assert_array_equal(docs.held_out, documents.held_out)
  train = {NAMES[i] for i in documents.chosen('train')}
  val = {NAMES[i] for i in documents.chosen('val')}
  assert not train & val
  assert len(val) == round(0.1 * len(set(NAMES)))
  assert len(documents.chosen('all')) == 60


@pytest.mark.parametrize('fraction', [-0.1, 1.1, math.nan])
def test_impossible_val_fraction_is_an_error(fraction):
  with pytest.raises(UserError, match='val_fraction'):
    hold_out([1, 2], fraction)


# Whole runs


@pytest.mark.parametrize(
  'packing', [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_killed_and_resumed_equals_uninterrupted(packing, tmp_path):
  changes = {
    'data.path': write_lines(tmp_path / 'names.txt', NAMES),
    'data.format': 'lines',
    'data.packing': packing,
    'data.skip_long': True,
    'model.block_size': 16,
    'batch_size': 20,  # Three epochs and a bit.
  }
  result, said = train_small(tmp_path / 'whole', changes)
  assert result.outcome == 'finished'
  assert any(line.startswith('skip_long: 0 of 60') for line in said)
  train_small(tmp_path / 'parts', changes, crash_at='step 4/6')
  _, said = train_small(tmp_path / 'parts', changes)
  assert 'resuming from step 3' in said
  assert_same_params(tmp_path / 'parts', tmp_path / 'whole')


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
def test_keys_that_do_not_go_together_are_refused(changes, message, tmp_path):
  with pytest.raises(UserError, match=message):
    train_small(tmp_path / 'run', changes)
  assert not (tmp_path / 'run').exists()


# Generated documents


def name_model(tmp_path, saying: str, **data):
  """A run that says one document and was trained on NAMES."""
  tokenizer = build_tokenizer('char', [*NAMES, 'xyz'], 0)
  ids = [*tokenizer.encode(saying).tolist(), tokenizer.eos_id]
  path = write_lines(tmp_path / 'names.txt', NAMES)
  make_parrot(
    tmp_path / 'run',
    tokenizer,
    ids,
    data={'path': path, 'format': 'lines', **data},
  )
  digest = find_sources(path).sha256
  (tmp_path / 'run' / 'data.json').write_text(
    json.dumps({'text_sha256': digest})
  )
  return tmp_path / 'run'


def test_generate_lists_documents_and_counts_the_new_ones(documents, tmp_path):
  run = name_model(tmp_path, 'xyz')
  out, err = launch(
    'generate', f'--workdir={run}', '--num_samples=20', '--temperature=0.5'
  )
  n = len(documents.chosen('train'))
  assert out == 'xyz\n' * 20
  assert f'20 of 20 are not in the training set of {n} documents' in err
  known = NAMES[int(documents.chosen('train')[0])]
  (tmp_path / 'known').mkdir()
  run = name_model(tmp_path / 'known', known)
  out, err = launch('generate', f'--workdir={run}', '--num_samples=2')
  assert out == f'{known}\n' * 2
  assert '0 of 2 are not in the training set' in err
  file = tmp_path / 'known' / 'names.txt'
  for change in (lambda: file.write_text('another\ntext\n'), file.unlink):
    change()
    out, err = launch('generate', f'--workdir={run}')
    assert out == f'{known}\n'
    assert 'warning: how many of them are new is unknown' in err


def test_sample_i_uses_seed_plus_i_and_a_prompt_stands_after_bos(tmp_path):
  _, said = train_small(
    tmp_path / 'run',
    {
      'data.path': write_lines(tmp_path / 'names.txt', NAMES),
      'data.format': 'lines',
      'model.block_size': 16,
      'total_steps': 4,
    },
  )
  args = 'generate', f'--workdir={tmp_path / "run"}', '--temperature=1.5'
  many = launch(*args, '--num_samples=3', '--seed=7')[0].splitlines()
  each = [launch(*args, f'--seed={7 + i}')[0].rstrip('\n') for i in range(3)]
  assert many == each and len(set(many)) == 3
  assert all(len(name) <= 16 for name in many)
  tokenizer = build_tokenizer('char', NAMES, 0)
  start = read_prompt(tokenizer, 'lines', 'ab', 16, 8)
  assert start.ids == [tokenizer.bos_id, *tokenizer.encode('ab').tolist()]
  assert read_prompt(tokenizer, 'text', 'ab', 16, 8).ids == start.ids[1:]
  out, _ = launch(*args, '--prompt=ab', '--num_samples=2', '--show_prompt')
  assert out.count('--- sample') == 2 and out.count('ab') >= 2
