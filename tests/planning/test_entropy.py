"""The n-gram statistic that places a text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.data.sample_text import sample_text
from gpt.errors import UserError
from gpt.planning.entropy import LARGE, measure, sample


def test_random_bytes_cannot_be_predicted():
  data = np.random.default_rng(0).integers(0, 256, 200_000, dtype=np.uint8)
  found = measure(data[:150_000], data[150_000:])
  assert found.bits > 7.9
  assert found.fewer == pytest.approx(found.bits, abs=0.1)


def test_a_repeated_line_is_known_after_a_few_bytes():
  data = np.frombuffer(b'the same line again\n' * 10_000, np.uint8)
  assert measure(data[:150_000], data[150_000:]).bits < 0.1


def test_counting_more_bytes_saves_some_bits():
  data = np.frombuffer(sample_text().encode(), np.uint8)
  split = int(0.9 * len(data))
  found = measure(data[:split], data[split:])
  assert 0.3 < found.bits < found.fewer < 4


def test_a_huge_text_is_only_sampled(tmp_path):
  path = tmp_path / 'huge.bin'
  with path.open('wb') as file:
    file.truncate(4 << 30)  # Zeros that occupy no disk.
  data = np.memmap(path, np.uint8, 'r')
  assert len(sample(data, LARGE)) == LARGE
  assert measure(data[:-1_000_000], data[-1_000_000:]).bits < 0.01


@given(st.binary(min_size=1, max_size=9), st.integers(64, 200))
def test_the_shortest_texts_have_a_measure(unit, length):
  data = np.frombuffer((unit * length)[:length], np.uint8)
  assert 0 <= measure(data, data).bits < 9


def test_a_text_of_a_few_bytes_is_refused():
  few = np.zeros(10, np.uint8)
  with pytest.raises(UserError, match='10 bytes to train on'):
    measure(few, few)
