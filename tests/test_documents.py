"""Documents: held out whole, each once an epoch, padding that never counts."""

import itertools
import json
import math

import jax
import numpy as np
import pytest
from document_tools import (
  assert_same_params,
  batches_of,
  data_config,
  memory_source,
  names,
  open_memory,
  train_small,
  write_lines,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from workdirs import launch, make_parrot

from gpt import data, lines, sharding
from gpt.document_dataset import bucket_lengths
from gpt.documents import hold_out
from gpt.errors import UserError
from gpt.evaluation import Evaluator
from gpt.model import GPT, GPTConfig
from gpt.packing import pack
from gpt.prompt import read_prompt
from gpt.sources import find_sources
from gpt.text_reader import TextStats
from gpt.tokenizer import build_tokenizer
from gpt.train_step import batch_nats

relaxed = settings(deadline=None, max_examples=60)
NAMES = names(60)


@pytest.fixture(scope='module')
def tokenizer():
  return build_tokenizer('char', NAMES, 0)


@pytest.fixture(scope='module')
def documents(tokenizer, tmp_path_factory):
  text = '\n'.join(NAMES)
  return open_memory(text, 'lines', tokenizer, tmp_path_factory.mktemp('docs'))


def readable(tokenizer, ids) -> str:
  names = {id: name for name, id in tokenizer.special_tokens.items()}
  return ''.join(names.get(i) or tokenizer.decode([i]) for i in ids)


def rows_of(tokenizer, batch) -> list[str]:
  """The documents of a batch, told apart by what counts in the loss."""
  rows = []
  for ids, weights in zip(batch['tokens'], batch['weights']):
    if weights.any():
      rows.append(readable(tokenizer, ids[: int(weights.sum()) + 1].tolist()))
  return rows


# Reading


@pytest.mark.parametrize('text, wanted', [
  ('emma\nolivia\n', ['emma', 'olivia']),
  ('emma\nolivia', ['emma', 'olivia']),
  ('\n\n  emma \t\r\n \n\r\nolivia\r\n\n', ['emma', 'olivia']),
  ('\ufeffzo\u00eb\nx\u2028y\x0bz\n', ['zo\u00eb', 'x\u2028y\x0bz']),
  ('a' * 3_000_000 + '\nb', ['a' * 3_000_000, 'b']),
])
def test_each_line_is_a_document_and_blank_ones_are_none(text, wanted):
  found = lines.iter_documents(memory_source(text), TextStats())
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
  tokenizer, _ = data.prepare(
    data_config(path, 'lines'), tmp_path, log=lambda line: None
  )
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


# Batches


def test_batch_shapes_and_types(documents, tokenizer):
  ds = batches_of(documents, tokenizer)
  for step in range(30):
    batch = ds.batch_at(step)
    rows, length = batch['weights'].shape
    assert rows == 4 and length in ds.bucket_lengths
    assert batch['tokens'].shape == (4, length + 1)
    assert batch['tokens'].dtype == batch['rows'].dtype == np.int32
    assert batch['weights'].dtype == np.float32
    assert batch['rows'].tolist() == [0, 1, 2, 3]
    # No batch is longer than its longest document needs.
    longest = int(batch['weights'].sum(axis=1).max())
    assert length == min(b for b in ds.bucket_lengths if b >= longest)


@pytest.mark.parametrize('packing', [False, True])
@given(batch_size=st.integers(1, 70), seed=st.integers(0, 2**40),
       epoch=st.integers(0, 3))
@settings(deadline=None, max_examples=15)
def test_an_epoch_has_every_training_document(
  packing, batch_size, seed, epoch, documents, tokenizer
):
  ds = batches_of(
    documents, tokenizer, 16, batch_size, seed, packing=packing
  )
  steps = range(epoch * ds.steps_per_epoch, (epoch + 1) * ds.steps_per_epoch)
  found = {}
  for step in steps:
    batch = ds.batch_at(step)
    segments = batch.get('segments')
    if segments is None:
      rows = rows_of(tokenizer, batch)
    else:
      rows = [
        readable(tokenizer, ids[segs == s].tolist())
        for ids, segs in zip(batch['tokens'], segments)
        for s in range(1, segs.max() + 1)
      ]
    for row in rows:
      found[row] = found.get(row, 0) + 1
  wanted = {}
  for i in documents.chosen('train'):
    row = f'<|bos|>{NAMES[i]}<|eos|>'
    wanted[row] = wanted.get(row, 0) + 1
  assert found.keys() == wanted.keys()
  extra = sum(found.values()) - sum(wanted.values())
  assert all(found[row] >= wanted[row] for row in wanted)
  if not packing:  # The last batch is filled up.
    assert extra == len(steps) * batch_size - sum(wanted.values())


@pytest.mark.parametrize('packing', [False, True])
def test_batches_are_pure_functions_of_seed_and_step(
  packing, documents, tokenizer
):
  make = lambda seed: batches_of(  # noqa: E731
    documents, tokenizer, seed=seed, packing=packing
  )
  ds, steps = make(1), [40, 3, 0, 41, 3, 17]
  forward = {step: make(1).batch_at(step) for step in sorted(steps)}
  for step in steps:
    batch = ds.batch_at(step)
    for name, value in forward[step].items():
      np.testing.assert_array_equal(batch[name], value)
  first, other = make(1).batch_at(0), make(2).batch_at(0)
  assert rows_of(tokenizer, first) != rows_of(tokenizer, other)
  again = make(1).batch_at(ds.steps_per_epoch)  # The next epoch.
  assert rows_of(tokenizer, first) != rows_of(tokenizer, again)


@given(step=st.integers(0, 100), start=st.integers(0, 4),
       stop=st.integers(0, 4))
@relaxed
def test_rows_of_a_batch_equal_slices_of_it(
  step, start, stop, documents, tokenizer
):
  ds = batches_of(documents, tokenizer)
  whole, part = ds.batch_at(step), ds.batch_at(step, slice(start, stop))
  for name in whole:
    np.testing.assert_array_equal(part[name], whole[name][start:stop])


def test_fewer_documents_than_rows_repeat(tokenizer, tmp_path):
  docs = open_memory('ab\nc', 'lines', tokenizer, tmp_path)
  ds = batches_of(docs, tokenizer, batch_size=5)
  assert ds.steps_per_epoch == 1
  assert len(rows_of(tokenizer, ds.batch_at(0))) == 5


@given(
  st.lists(st.integers(1, 70), min_size=1, max_size=50), st.integers(0, 60)
)
@relaxed
def test_lengths_of_batches_are_few_and_waste_least(lengths, more):
  block_size = 70
  longest = min(max(lengths) + more, block_size)
  chosen = bucket_lengths(lengths, longest, block_size)
  assert chosen == sorted(set(chosen)) and len(chosen) <= 4
  assert longest <= chosen[-1] <= block_size

  def positions(sizes):
    return sum(min(s for s in sizes if s >= n) for n in lengths)

  units = [u for u in range(4, chosen[-1], 4)]
  best = min(
    positions([*other, chosen[-1]])
    for n in range(3)  # Of three others there are many; see below.
    for other in itertools.combinations(units, n)
  )
  assert positions(chosen) <= best


# Long ones


def test_long_documents_are_cut_or_skipped_and_it_is_said(
  tokenizer, tmp_path
):
  text = '\n'.join(['abc', 'abcdefg', 'gfedcba', 'ba', 'cb', 'abcdef'])
  docs = open_memory(text, 'lines', tokenizer, tmp_path)
  said = []
  ds = batches_of(docs, tokenizer, 7, log=said.append, splits=())
  assert said == [
    '2 of 6 documents are longer than block_size 7 and are cut there; '
    '--config.data.skip_long drops them'
  ]
  rows = [r for b in ds.eval_batches('all') for r in rows_of(tokenizer, b)]
  assert '<|bos|>abcdefg' in rows and '<|bos|>abcdef<|eos|>' in rows
  said.clear()
  ds = batches_of(
    docs, tokenizer, 7, skip_long=True, log=said.append, splits=()
  )
  val = int(docs.held_out[[0, 3, 4, 5]].sum())
  assert said == [
    'skip_long: 2 of 6 documents dropped (longer than block_size 7), 4 kept: '
    f'{4 - val} train, {val} val'
  ]
  rows = [r for b in ds.eval_batches('all') for r in rows_of(tokenizer, b)]
  assert len(rows) == 4 and all(r.endswith('<|eos|>') for r in rows)


def test_nothing_left_names_what_to_change(documents, tokenizer, tmp_path):
  with pytest.raises(UserError, match='skip_long leaves no documents.*block'):
    batches_of(documents, tokenizer, 1, skip_long=True)
  one = open_memory('abc\nabc', 'lines', tokenizer, tmp_path)
  with pytest.raises(UserError, match='no documents for split val.*2 in all'):
    batches_of(one, tokenizer)


# Packing


@given(st.lists(st.integers(1, 40), max_size=80), st.integers(40, 60))
@relaxed
def test_packing_places_each_once_and_no_two_windows_could_be_one(
  lengths, room
):
  windows = pack(lengths, room)
  assert sorted(itertools.chain(*windows)) == list(range(len(lengths)))
  full = [sum(lengths[i] for i in window) for window in windows]
  assert all(n <= room for n in full)
  smallest = sorted(full)[:2]
  assert len(smallest) < 2 or sum(smallest) > room


def test_packing_uses_more_of_a_window(documents, tokenizer):
  shares = []
  for packing in (False, True):
    said = []
    ds = batches_of(
      documents, tokenizer, 32, packing=packing, log=said.append
    )
    assert f'{ds.fill()["here"]:.1%} of the positions are used' in said[-1]
    batches = [ds.batch_at(step) for step in range(ds.steps_per_epoch)]
    counts = sum(b['weights'].sum() for b in batches)
    assert ds.fill()['here'] == pytest.approx(
      counts / sum(b['weights'].size for b in batches)
    )
    shares.append(ds.fill())
  alone, by_length, packed = (
    shares[0]['window'], shares[0]['here'], shares[1]['here']
  )
  assert alone < by_length < packed and packed > 0.85


@pytest.mark.parametrize('kernel', ['plain', 'blocked'])
@pytest.mark.parametrize('pos', ['learned', 'rope'])
def test_a_packed_document_costs_what_it_costs_alone(
  kernel, pos, documents, tokenizer
):
  """No attention across documents, positions from 0."""
  cfg = GPTConfig(
    vocab_size=tokenizer.vocab_size, n_embd=16, n_head=2, n_layer=2,
    block_size=32, attention=kernel, pos=pos, init_std=0.3,
  )
  model = GPT(cfg)
  key = jax.random.key(0)
  params = model.init(key, np.zeros((1, 4), np.int32))['params']
  packed = batches_of(documents, tokenizer, 32, packing=True).batch_at(0)
  places = [
    (r, np.flatnonzero(segments == s))
    for r, segments in enumerate(packed['segments'])
    for s in range(1, segments.max() + 1)
  ]
  alone = np.zeros((len(places), 33), np.int32)
  for row, (r, at) in zip(alone, places):
    row[: len(at)] = packed['tokens'][r, at]
  nats_of = jax.jit(lambda batch: batch_nats(model, params, batch))
  nats, wanted = nats_of(packed), nats_of({'tokens': alone})
  for i, (r, at) in enumerate(places):
    n = len(at) - 1
    np.testing.assert_allclose(nats[r, at[:n]], wanted[i, :n], atol=2e-5)
    assert packed['weights'][r, at[:n]].all()
  assert packed['weights'].sum() == sum(len(at) - 1 for _, at in places)


# Evaluation


@pytest.mark.parametrize('split', ['val', 'train', 'all'])
@pytest.mark.parametrize('rows', [1, 7])
def test_full_pass_has_every_document_once(split, rows, documents, tokenizer):
  ds = batches_of(documents, tokenizer)
  batches = list(ds.eval_batches(split, batch_size=rows))
  assert all(b['weights'].shape[0] == rows for b in batches)
  found = sorted(r for b in batches for r in rows_of(tokenizer, b))
  wanted = [f'<|bos|>{NAMES[i]}<|eos|>' for i in documents.chosen(split)]
  assert found == sorted(wanted)
  assert ds.targets(split) == sum(int(b['weights'].sum()) for b in batches)


def test_quick_eval_is_a_fixed_set_of_documents(documents, tokenizer):
  def rows(seed, windows):
    ds = batches_of(documents, tokenizer, seed=seed, packing=bool(seed % 2))
    return sorted(
      row for batch in ds.eval_batches('train', windows, 4)
      for row in rows_of(tokenizer, batch)
    )

  assert rows(0, 10) == rows(1, 10) and len(rows(0, 10)) == 10
  assert len(rows(0, 1000)) == len(documents.chosen('train'))


def test_a_uniform_model_costs_the_logarithm_of_its_vocabulary(
  documents, tokenizer
):
  cfg = GPTConfig(
    vocab_size=tokenizer.vocab_size, n_embd=8, n_head=2, n_layer=1,
    block_size=16,
  )
  model, ds = GPT(cfg), batches_of(documents, tokenizer)
  params = model.init(jax.random.key(0), np.zeros((1, 4), np.int32))['params']
  zeros = jax.tree.map(np.zeros_like, params)
  values = Evaluator(model, sharding.create_mesh(4), ds)(zeros, 'val', None)
  val = [NAMES[i] for i in documents.chosen('val')]
  targets = sum(len(name) + 1 for name in val)
  assert values['tokens'] == targets
  assert values['nats_per_token'] == pytest.approx(
    math.log(tokenizer.vocab_size), rel=1e-5
  )
  # EOS is predicted and has no bytes.
  assert values['bits_per_byte'] == pytest.approx(
    targets * math.log2(tokenizer.vocab_size) / sum(map(len, val)), rel=1e-5
  )
  assert not any(key.startswith('assistant') for key in values)


# Whole runs


@pytest.mark.parametrize(
  'packing', [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_killed_and_resumed_equals_uninterrupted(packing, tmp_path):
  changes = {
    'data.path': write_lines(tmp_path / 'names.txt', NAMES),
    'data.format': 'lines', 'data.packing': packing, 'data.skip_long': True,
    'model.block_size': 16, 'batch_size': 20,  # Three epochs and a bit.
  }
  result, said = train_small(tmp_path / 'whole', changes)
  assert result.outcome == 'finished'
  assert any(line.startswith('skip_long: 0 of 60') for line in said)
  train_small(tmp_path / 'parts', changes, crash_at='step 4/6')
  _, said = train_small(tmp_path / 'parts', changes)
  assert 'resuming from step 3' in said
  assert_same_params(tmp_path / 'parts', tmp_path / 'whole')


@pytest.mark.parametrize('changes, message', [
  ({'data.format': 'csv'}, "data.format 'csv' is not known; allowed: text"),
  ({'data.format': 'lines', 'data.document_aware': True},
   'data.document_aware=True means nothing with data.format=lines'),
  ({'data.format': 'lines', 'data.document_separator': 'blank_line'},
   'data.document_separator=blank_line means nothing'),
  ({'data.packing': True}, 'data.packing=True means nothing with .*text'),
  ({'data.skip_long': True}, 'data.skip_long=True means nothing'),
  ({'data.format': 'lines', 'data.loss_on': 'assistant'},
   'data.loss_on=assistant needs data.format=chat'),
  ({'data.loss_on': 'user'}, "data.loss_on 'user' is not known"),
])
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
    tmp_path / 'run', tokenizer, ids,
    data={'path': path, 'format': 'lines', **data},
  )
  digest = find_sources(path).sha256()
  (tmp_path / 'run' / 'data.json').write_text(
    json.dumps({'text_sha256': digest})
  )
  return tmp_path / 'run'


def test_generate_lists_documents_and_counts_the_new_ones(
  documents, tmp_path
):
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
  _, said = train_small(tmp_path / 'run', {
    'data.path': write_lines(tmp_path / 'names.txt', NAMES),
    'data.format': 'lines', 'model.block_size': 16, 'total_steps': 4,
  })
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
