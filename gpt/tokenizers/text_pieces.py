"""Cuts a long text where it does not change the tokens."""

import re
import unicodedata
from collections.abc import Iterator

# The `tokenizers` library takes 200 to 900 bytes for a character at once, and
# twice the time for each in a word of 2^17 of them.
PIECE = 1 << 12  # Characters, from which a text is cut at the next place,
MOST = 1 << 15  # and after which anywhere.
# Before the one space between two words, or after the one line end. Words never
# contain either, and no look-ahead of a rule that splits text into words goes
# further than the next character.
PLACE = re.compile(r'(?<=[^\s\u2581])(?= [^\s\u2581])|(?<=\S\n)(?=\S)')
MARKS = 32  # Characters around a cut that Unicode may join.


def cut(text: str) -> Iterator[str]:
  """Pieces of a text; most texts are one.

  Byte-level BPE gives the same ids for the pieces as for the whole text if it
  splits text as GPT-2, Llama 3, Qwen or SmolLM2 do. So does SentencePiece's,
  unless a token holds a space or line end behind a letter. Ids may differ only
  at a cut in MOST characters without such a place, which are no prose.
  """
  start = 0
  while len(text) - start > PIECE:
    place = PLACE.search(text, start + PIECE, start + MOST)
    if place:
      end = place.start()
    elif len(text) - start > MOST:
      end = _between_characters(text, start + MOST)
    else:
      break
    yield text[start:end]
    start = end
  yield text[start:]


def _between_characters(text: str, end: int) -> int:
  """The last place up to `end` where Unicode's form NFC joins nothing."""

  def nfc(piece: str) -> str:
    return unicodedata.normalize('NFC', piece)

  for at in range(end, end - MARKS, -1):
    left, right = text[at - MARKS : at], text[at : at + MARKS]
    if nfc(left) + nfc(right) == nfc(left + right):
      return at
  return end
