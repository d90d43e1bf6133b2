"""The built-in sample: short stories from an invented town.

It trains a model without a file or a network. The people of the town keep
their trade, home, animal and favourite food, sums are correct and riddles have
fixed answers, so a small model finds patterns at every scale, from spelling to
who owns the goat.
"""

import functools
import importlib.resources


@functools.cache
def sample_text() -> str:
  """The text of sample.txt: 300,031 ASCII characters.

  A line of three asterisks separates stories of a few hundred characters. The
  bytes must never change: runs record their SHA-256 and do not resume on
  different ones.
  """
  file = importlib.resources.files('gpt.data').joinpath('sample.txt')
  return file.read_bytes().decode('ascii')
