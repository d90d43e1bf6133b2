"""The built-in sample has the same bytes in every version."""

import hashlib

from gpt.data.sample_text import sample_text


def test_the_sample_has_its_recorded_hash():
  # Old workdirs record this hash and would not resume on a different text.
  digest = hashlib.sha256(sample_text().encode()).hexdigest()
  assert digest == (
    'de2d653badf06475d552201612af6c7558545e8dcbbdf6a9ea9cdbe6b30da1f2'
  )


def test_the_sample_is_plain_ascii_without_control_tokens():
  text = sample_text()
  assert len(text) == 300_031 and text.isascii()
  assert '\r' not in text and text.endswith('\n')
  assert '<|' not in text  # No special token of a chat or document format.
  assert len(text.split('\n\n***\n\n')) > 500
