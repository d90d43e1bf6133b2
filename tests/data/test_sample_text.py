"""The built-in sample: every version ships the same bytes."""

import hashlib

from gpt.data.sample_text import sample_text


def test_the_sample_keeps_its_bytes():
  # Old workdirs hold this hash: with another text they would not resume. It
  # also pins what is true in the text (right sums, answered riddles).
  digest = hashlib.sha256(sample_text().encode()).hexdigest()
  assert digest == (
    'de2d653badf06475d552201612af6c7558545e8dcbbdf6a9ea9cdbe6b30da1f2'
  )


def test_the_sample_tokenizes_without_surprises():
  text = sample_text()
  assert len(text) == 300_031 and text.isascii()
  assert '\r' not in text and text.endswith('\n')
  assert '<|' not in text  # No special token of a chat or document format.
  assert len(text.split('\n\n***\n\n')) > 500
