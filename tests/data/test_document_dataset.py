"""Batches of documents: epochs, padding, packing and evaluation."""

import itertools
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt import devices
from gpt.data.document_dataset import bucket_lengths
from gpt.data.packing import pack
from gpt.errors import UserError
from gpt.model import GPT, GPTConfig
from gpt.training.evaluation import Evaluator
from gpt.training.step import batch_nats
from tests.support import document_tools
from tests.support.document_tools import (
  NAMES,
  batches_of,
  open_memory,
  readable,
)
from tests.support.models import random_params

relaxed = settings(deadline=None, max_examples=60)
tokenizer = document_tools.tokenizer
documents = document_tools.documents


def rows_of(tokenizer, batch) -> list[str]:
  """The documents of a batch: the tokens of each row that carry weight."""
  rows = []
  for ids, weights in zip(batch['tokens'], batch['weights']):
    if weights.any():
      rows.append(readable(tokenizer, ids[: int(weights.sum()) + 1].tolist()))
  return rows


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
@given(
  batch_size=st.integers(1, 70),
  seed=st.integers(0, 2**40),
  epoch=st.integers(0, 3),
)
@settings(deadline=None, max_examples=15)
def test_an_epoch_contains_every_training_document(
  packing, batch_size, seed, epoch, documents, tokenizer
):
  ds = batches_of(documents, tokenizer, 16, batch_size, seed, packing=packing)
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
  if not packing:  # Repeats fill the last batch.
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


@given(
  step=st.integers(0, 100), start=st.integers(0, 4), stop=st.integers(0, 4)
)
@relaxed
def test_rows_of_a_batch_equal_slices_of_it(
  step, start, stop, documents, tokenizer
):
  ds = batches_of(documents, tokenizer)
  whole, part = ds.batch_at(step), ds.batch_at(step, slice(start, stop))
  for name in whole:
    np.testing.assert_array_equal(part[name], whole[name][start:stop])


def test_a_batch_repeats_documents_if_there_are_too_few(tokenizer, tmp_path):
  docs = open_memory('ab\nc', 'lines', tokenizer, tmp_path)
  ds = batches_of(docs, tokenizer, batch_size=5)
  assert ds.steps_per_epoch == 1
  assert len(rows_of(tokenizer, ds.batch_at(0))) == 5


@given(
  st.lists(st.integers(1, 70), min_size=1, max_size=50), st.integers(0, 60)
)
@relaxed
def test_bucket_lengths_are_few_and_waste_the_least(lengths, more):
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
    for n in range(3)  # Enumerating three others would take too long.
    for other in itertools.combinations(units, n)
  )
  assert positions(chosen) <= best


# Long documents


def test_long_documents_are_cut_or_skipped_and_counted(tokenizer, tmp_path):
  text = '\n'.join(['abc', 'abcdefg', 'gfedcba', 'ba', 'cb', 'abcdef'])
  docs = open_memory(text, 'lines', tokenizer, tmp_path)
  ds = batches_of(docs, tokenizer, 7, splits=())
  assert ds.notes() == [
    '2 of 6 documents are longer than block_size 7 and will be cut; '
    '--config.data.skip_long drops them instead'
  ]
  rows = [r for b in ds.eval_batches('all') for r in rows_of(tokenizer, b)]
  assert '<|bos|>abcdefg' in rows and '<|bos|>abcdef<|eos|>' in rows
  ds = batches_of(docs, tokenizer, 7, skip_long=True, splits=())
  val = int(docs.held_out[[0, 3, 4, 5]].sum())
  assert ds.notes() == [
    'skip_long: dropped 2 of 6 documents (longer than block_size 7); 4 left: '
    f'{4 - val} train, {val} val'
  ]
  rows = [r for b in ds.eval_batches('all') for r in rows_of(tokenizer, b)]
  assert len(rows) == 4 and all(r.endswith('<|eos|>') for r in rows)


def test_an_empty_split_is_rejected(documents, tokenizer, tmp_path):
  with pytest.raises(UserError, match='skip_long leaves no documents.*block'):
    batches_of(documents, tokenizer, 1, skip_long=True)
  one = open_memory('abc\nabc', 'lines', tokenizer, tmp_path)
  with pytest.raises(UserError, match='no documents for split val.*2 in all'):
    batches_of(one, tokenizer)


# Packing


@given(st.lists(st.integers(1, 40), max_size=80), st.integers(40, 60))
@relaxed
def test_packing_places_each_once_and_no_two_windows_could_merge(lengths, room):
  windows = pack(lengths, room)
  assert sorted(itertools.chain(*windows)) == list(range(len(lengths)))
  full = [sum(lengths[i] for i in window) for window in windows]
  assert all(n <= room for n in full)
  smallest = sorted(full)[:2]
  assert len(smallest) < 2 or sum(smallest) > room


def test_packing_uses_the_most_positions(documents, tokenizer):
  shares = []
  for packing in (False, True):
    ds = batches_of(documents, tokenizer, 32, packing=packing)
    note = ds.notes()[-1]
    assert f'{ds.fill()["here"]:.1%} of the positions are used' in note
    batches = [ds.batch_at(step) for step in range(ds.steps_per_epoch)]
    counts = sum(b['weights'].sum() for b in batches)
    assert ds.fill()['here'] == pytest.approx(
      counts / sum(b['weights'].size for b in batches)
    )
    shares.append(ds.fill())
  alone, by_length, packed = (
    shares[0]['window'],
    shares[0]['here'],
    shares[1]['here'],
  )
  assert alone < by_length < packed and packed > 0.85


@pytest.mark.parametrize(
  'kernel, pos', [('plain', 'learned'), ('blocked', 'rope')]
)
def test_a_packed_document_has_the_same_loss_as_alone(
  kernel, pos, documents, tokenizer
):
  """No attention across documents, positions from 0."""
  cfg = GPTConfig(
    vocab_size=tokenizer.vocab_size,
    n_embd=16,
    n_head=2,
    n_layer=2,
    block_size=32,
    attention=kernel,
    pos=pos,
    init_std=0.3,
  )
  model = GPT(cfg)
  params = random_params(cfg, std=0.3)
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
def test_a_full_pass_contains_every_document_once(
  split, rows, documents, tokenizer
):
  ds = batches_of(documents, tokenizer)
  batches = list(ds.eval_batches(split, batch_size=rows))
  assert all(b['weights'].shape[0] == rows for b in batches)
  found = sorted(r for b in batches for r in rows_of(tokenizer, b))
  wanted = [f'<|bos|>{NAMES[i]}<|eos|>' for i in documents.chosen(split)]
  assert found == sorted(wanted)
  assert ds.targets(split) == sum(int(b['weights'].sum()) for b in batches)


def test_a_quick_eval_is_a_fixed_set_of_documents(documents, tokenizer):
  def rows(seed, windows):
    ds = batches_of(documents, tokenizer, seed=seed, packing=bool(seed % 2))
    return sorted(
      row
      for batch in ds.eval_batches('train', windows, 4)
      for row in rows_of(tokenizer, batch)
    )

  assert rows(0, 10) == rows(1, 10) and len(rows(0, 10)) == 10
  assert len(rows(0, 1000)) == len(documents.chosen('train'))


def test_a_uniform_model_has_the_loss_log_v(documents, tokenizer):
  cfg = GPTConfig(
    vocab_size=tokenizer.vocab_size,
    n_embd=8,
    n_head=2,
    n_layer=1,
    block_size=16,
  )
  model, ds = GPT(cfg), batches_of(documents, tokenizer)
  zeros = random_params(cfg, std=0.0)
  values = Evaluator(model, devices.create_mesh(4), ds)(zeros, 'val', None)
  val = [NAMES[i] for i in documents.chosen('val')]
  targets = sum(len(name) + 1 for name in val)
  assert values['tokens'] == targets
  assert values['nats_per_token'] == pytest.approx(
    math.log(tokenizer.vocab_size), rel=1e-5
  )
  # EOS is a target without bytes.
  assert values['bits_per_byte'] == pytest.approx(
    targets * math.log2(tokenizer.vocab_size) / sum(map(len, val)), rel=1e-5
  )
  assert not any(key.startswith('assistant') for key in values)
