"""The n-gram statistic that places a text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.data.sample_text import sample_text
from gpt.errors import UserError
from gpt.planning import entropy
from gpt.planning.entropy import LARGE, measure, sample


def test_random_bytes_cannot_be_predicted():
  data = np.random.default_rng(0).integers(0, 256, 200_000, dtype=np.uint8)
  found = measure(data[:150_000], data[150_000:])
  assert found.bits > 7.9
  assert found.quarter == pytest.approx(found.bits, abs=0.1)


def test_a_repeated_line_is_known_after_a_few_bytes():
  data = np.frombuffer(b'the same line again\n' * 10_000, np.uint8)
  assert measure(data[:150_000], data[150_000:]).bits < 0.1


def test_counting_more_bytes_saves_some_bits():
  data = np.frombuffer(sample_text().encode(), np.uint8)
  split = int(0.9 * len(data))
  found = measure(data[:split], data[split:])
  assert 0.3 < found.bits < found.half < found.quarter < 4


def test_the_same_text_has_the_same_measure():
  data = np.frombuffer(sample_text().encode(), np.uint8)
  assert measure(data[:90_000], data[90_000:]) == measure(
    data[:90_000].copy(), data[90_000:].copy()
  )


def test_a_letter_of_two_bytes_is_one_letter():
  """Another alphabet does not make a text harder."""
  latin = sample_text()[:100_000].lower()
  letters = {ord('a') + i: chr(0x430 + i) for i in range(26)}
  bits = []
  for text in (latin, latin.translate(letters)):
    data = np.frombuffer(text.encode(), np.uint8)
    split = int(0.9 * len(data))
    found = measure(data[:split], data[split:])
    bits.append(found.bits * len(data) / len(text))
  assert bits[1] == pytest.approx(bits[0], rel=0.01)


def test_long_contexts_that_say_nothing_cost_nothing():
  """Letters by chance: all contexts are known, and none helps."""
  rng = np.random.default_rng(0)
  data = rng.choice([97, 98, 99, 100], 100_000).astype(np.uint8)
  assert measure(data[:90_000], data[90_000:]).bits < 2.04


def test_a_sorted_list_is_easier_than_its_words():
  rng = np.random.default_rng(0)
  words = [bytes(x) for x in rng.integers(97, 123, (10_000, 6), np.uint8)]
  bits = []
  for lines in (words, sorted(words)):
    data = np.frombuffer(b'\n'.join(lines), np.uint8)
    split = int(0.9 * len(data))
    bits.append(measure(data[:split], data[split:]).bits)
  assert bits[1] < 0.7 * bits[0]  # Two letters of six, and part of the third.


def test_more_of_a_short_text_would_save_bits_too():
  data = np.frombuffer(sample_text()[:60_000].encode(), np.uint8)
  found = measure(data[:50_000], data[50_000:])
  assert found.bits == found.half < 0.97 * found.quarter


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


def test_the_samples_of_a_text_have_one_alphabet(monkeypatch):
  """Else a rare symbol in the largest would make them incomparable."""
  symbols = ''.join(chr(0x2200 + i) for i in range(entropy.ALPHABET))
  text = (
    sample_text()
    .lower()
    .translate({ord('a') + i: chr(0x430 + i) for i in range(26)})
  )
  data = np.frombuffer(f'{text}{symbols}{text}'.encode(), np.uint8)
  seen = []
  whole = entropy._characters

  def watched(*texts):
    seen.append(whole(*texts))
    return seen[-1]

  monkeypatch.setattr(entropy, '_characters', watched)
  measure(data[:-50_000], data[-50_000:])
  (mapped,) = seen
  assert len(mapped) == 4
  assert all(x.max() >= 0xC0 for x in mapped)  # All in bytes of UTF-8.
