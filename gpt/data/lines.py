"""One document per line (`data.format='lines'`): names, titles, one-liners.

It exists so that a list of short texts trains as documents, not as a stream:
each line is one, without the white space around it; blank lines are none.
"""

from gpt.data.text_reader import TextStats, iter_whole_lines
from gpt.data.token_cache import encode_pieces

NAME = 'format=lines'  # In the token cache's fingerprint.


def iter_documents(sources, stats: TextStats):
  """Yields the documents of all sources, in order.

  Raises:
    UserError: a file that cannot be read.
  """
  for source in sources.items:
    for _, line in iter_whole_lines(source, stats):
      if document := line.strip():
        yield document


def encode(sources, tokenizer, stats: TextStats, unknown: dict[str, int]):
  """What token_cache.load_or_encode wants: each document, then the EOS id."""
  pieces = (
    piece
    for document in iter_documents(sources, stats)
    for piece in (document, None)
  )
  return encode_pieces(pieces, tokenizer, unknown)
