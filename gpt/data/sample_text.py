"""The built-in sample: short stories from a town that does not exist.

Training needs no file and no network with it. The people of the town keep
their trade, home, animal and favourite food, sums come out right and riddles
have their answers, so a small model finds something to learn at every scale,
from spelling to who owns the goat.
"""

import functools
import importlib.resources


@functools.cache
def sample_text() -> str:
  """The text of sample.txt: 300,031 characters of ASCII.

  Stories of a few hundred characters, with a line of three asterisks between
  two. The bytes never change: runs record their SHA-256 and refuse to resume
  on others.
  """
  file = importlib.resources.files('gpt.data').joinpath('sample.txt')
  return file.read_bytes().decode('ascii')
