"""Streamed text: whole characters, held-back stop strings, any grouping."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.tokenizers import build_tokenizer
from serving.engine.text import Stop, TextStream

CHARS = build_tokenizer('char', ['abc\n'], 0)
EMOJI = 'a👩‍👩‍👧 é漢🏳️‍🌈b\n'
PIECES = build_tokenizer('sentencepiece', ['abc abd\n'] * 9, 300)


def naive(text, stops):
  """The text before the first stop string to be complete."""
  for end in range(len(text) + 1):
    found = [s for s in stops if text[:end].endswith(s)]
    if found:
      return text[: end - max(map(len, found))]
  return text


def stream(tokenizer, ids, stops):
  text, pieces = TextStream(tokenizer, list(map(Stop, stops))), []
  for id in ids:
    pieces.append(text.feed(id))
    if text.stopped:
      break
  return [*pieces, text.finish()], text


ABC = st.text('abc', max_size=30)
STOPS = st.lists(st.text('abc', min_size=1, max_size=5), max_size=4)


@given(ABC, STOPS)
def test_pieces_joined_are_the_text_before_the_first_stop(text, stops):
  pieces, out = stream(CHARS, CHARS.encode(text), stops)
  assert ''.join(pieces) == naive(text, stops)
  assert out.shown == len(naive(text, stops))


@given(ABC, STOPS)
def test_what_could_begin_a_stop_string_is_held_back(text, stops):
  out = TextStream(CHARS, list(map(Stop, stops)))
  shown = ''
  for i, id in enumerate(CHARS.encode(text)):
    shown += out.feed(id)
    if out.stopped:
      return
    seen = text[: i + 1]
    held = max(
      (n for s in stops for n in range(1, len(s)) if seen.endswith(s[:n])),
      default=0,
    )
    assert shown == seen[: len(seen) - held]


@given(st.text(max_size=20), st.lists(st.text(min_size=1, max_size=3)))
def test_any_characters(text, stops):
  text = text.encode('utf-8', 'replace').decode()
  ids = PIECES.encode(text)
  text = PIECES.decode(ids)
  pieces, _ = stream(PIECES, ids, stops)
  assert ''.join(pieces) == naive(text, stops)


def test_no_piece_has_half_a_character():
  ids = PIECES.encode(EMOJI)
  assert len(ids) > len(EMOJI)
  pieces, _ = stream(PIECES, ids, [])
  assert ''.join(pieces) == EMOJI
  assert all('\ufffd' not in piece for piece in pieces)


def test_an_unfinished_character_at_the_end_is_shown_as_such():
  ids = PIECES.encode('a🙂')[:-1]
  pieces, _ = stream(PIECES, ids, [])
  assert ''.join(pieces) == 'a\ufffd'


@pytest.mark.parametrize(
  'stops, wanted', [(['bca', 'ca'], 'a'), (['ca', 'bca'], 'a'), (['c'], 'ab')]
)
def test_of_stop_strings_that_end_together_the_longest_wins(stops, wanted):
  pieces, _ = stream(CHARS, CHARS.encode('abcab'), stops)
  assert ''.join(pieces) == wanted
