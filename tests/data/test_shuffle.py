"""data.order=shuffled: every window once in an epoch, without any state."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.data.shuffle import permuted
from gpt.data.text_dataset import TextDataset
from tests.support import data_tools
from tests.support.data_tools import TEXT, corpus_of

isolated = data_tools.isolated  # Used by every test.


@given(st.integers(1, 3000), st.integers(0, 2**63), st.integers(0, 99))
def test_each_number_occurs_once(n, seed, epoch):
  found = permuted(np.arange(n), n, seed, epoch)
  assert np.array_equal(np.sort(found), np.arange(n))


def test_numbers_beyond_32_bits_are_permuted_one_by_one():
  n = 10**13 + 7
  indices = np.array([0, 1, n // 2, n - 1])
  found = permuted(indices, n, 1, 0)
  assert len(set(found.tolist())) == 4 and found.max() < n
  for i, x in zip(indices, found):
    assert permuted(np.array([i]), n, 1, 0)[0] == x


def dataset(tmp_path, seed=1):
  tokenizer, corpus = corpus_of(TEXT, tmp_path)
  return TextDataset(corpus, 32, 8, seed, tokenizer, order='shuffled')


def starts(data, step):
  return [window.start for window in data._shuffled(step)]


def test_an_epoch_has_every_window_once(tmp_path):
  data = dataset(tmp_path)
  steps = (data.corpus.n_train - 32) // 32 // 8
  for epoch in range(2):
    found = sorted(
      x for i in range(steps) for x in starts(data, epoch * steps + i)
    )
    assert len(set(found)) == steps * 8
    assert all(b - a >= 32 for a, b in zip(found, found[1:]))
    assert found[-1] + 32 < data.corpus.n_train


def test_a_batch_depends_on_seed_and_step_alone(tmp_path):
  first, again = dataset(tmp_path), dataset(tmp_path)
  for step in (0, 5, 700):
    batch = first.batch_at(step)
    part = again.batch_at(step, slice(2, 5))
    assert np.array_equal(batch['tokens'][2:5], part['tokens'])
  assert starts(dataset(tmp_path, seed=2), 0) != starts(first, 0)
  assert starts(first, 1) != starts(first, 0)


@pytest.mark.parametrize('step', [0, 1])
def test_a_tiny_text_still_gives_batches(step, tmp_path):
  tokenizer, corpus = corpus_of(TEXT[:400], tmp_path)
  data = TextDataset(corpus, 32, 64, 1, tokenizer, order='shuffled')
  assert data.batch_at(step)['tokens'].shape == (64, 33)
