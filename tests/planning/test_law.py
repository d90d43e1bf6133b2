"""The law behind a plan: sane everywhere, and what its table of runs says."""

import math

from hypothesis import given
from hypothesis import strategies as st

from gpt.planning.entropy import Entropy
from gpt.planning.law import bits_per_byte

ENGLISH = Entropy(2.2, 2.35, 2.5)
sizes = st.floats(1e4, 1e8)
texts = st.floats(2e4, 1e9)
seen = st.floats(1e4, 1e10)


def loss(parameters, tokens_seen, text_tokens, vocab=1000):
  return bits_per_byte(
    parameters, tokens_seen, text_tokens, 1.0, vocab, ENGLISH
  )


@given(sizes, seen, texts)
def test_more_training_never_predicts_a_higher_loss(size, tokens, text):
  assert loss(size, 2 * tokens, text) <= loss(size, tokens, text) + 1e-12


@given(sizes, seen, texts)
def test_more_text_never_predicts_a_higher_loss(size, tokens, text):
  assert loss(size, tokens, 2 * text) <= loss(size, tokens, text) + 1e-12


@given(sizes, st.floats(1e8, 1e10))
def test_more_parameters_help_where_there_is_text_for_them(size, tokens):
  assert loss(2 * size, tokens, 1e10) < loss(size, tokens, 1e10)


@given(sizes, seen, texts)
def test_a_large_vocabulary_is_learned_later(size, tokens, text):
  assert loss(size, tokens, text, vocab=4000) >= loss(size, tokens, text)


@given(sizes, seen, texts)
def test_every_prediction_is_a_positive_number(size, tokens, text):
  assert 0 < loss(size, tokens, text) < math.inf


bits = st.floats(0, 8)


@given(bits, bits, bits, sizes, seen, texts)
def test_every_text_has_a_prediction(whole, half, quarter, size, tokens, text):
  """Also one of a single line, again and again, which has no bits at all."""
  entropy = Entropy(whole, half, quarter)
  found = bits_per_byte(size, tokens, text, 1.0, 1000, entropy)
  assert 0 <= found < math.inf


def test_reading_a_text_again_helps_less_each_time():
  losses = [loss(1e6, passes * 1e6, 1e6) for passes in (1, 2, 4, 8, 16, 32)]
  gains = [a - b for a, b in zip(losses, losses[1:])]
  assert gains == sorted(gains, reverse=True)
  assert gains[-1] < 0.2 * gains[0]
