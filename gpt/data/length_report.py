"""Report of document lengths, with a recommended block_size."""

import numpy as np

from gpt.data.document_dataset import DocumentDataset
from gpt.data.documents import Documents
from gpt.tokenizers import Tokenizer


def percentiles(documents: Documents) -> tuple[int, int, int]:
  """(median, 90th percentile, longest) length in tokens, as in microgpt.

  Lengths include BOS and the closing token.
  """
  lengths = np.sort(documents.lengths)
  n = len(lengths)
  return int(lengths[n // 2]), int(lengths[int(n * 0.9)]), int(lengths[-1])


def report(
  documents: Documents, tokenizer: Tokenizer, batch_size: int
) -> list[str]:
  """The report's lines: lengths, a recommended block_size, a table of sizes.

  The table shows, for each power of two, how many documents fit and which
  share of the positions they use: one per window, grouped by length, packed.

  Args:
    documents: the corpus, of at least one document.
    tokenizer: the one that encoded it.
    batch_size: rows per batch; it affects padding when grouped by length.
  """
  median, p90, longest = percentiles(documents)
  noun = documents.noun
  lines = [
    f'{noun}: {len(documents):,}, median: {median:,} tokens, p90: {p90:,} '
    f'tokens, longest: {longest:,} tokens',
    f'recommended block_size: {p90:,} or higher',
    '',
    f'{"":12}{"that fit (skip_long)":>24}   share of positions used',
    f'{"block_size":>12}{noun:>16}{"share":>8}{"alone":>10}{"by length":>11}'
    f'{"packed":>9}',
  ]
  size = 16
  while True:
    fit = int((documents.lengths <= size + 1).sum())
    by_length, packed = (
      DocumentDataset(
        documents,
        size,
        batch_size,
        0,
        tokenizer,
        skip_long=True,
        packing=packing,
        splits=(),
      )
      for packing in (False, True)
    )
    if by_length.targets('train'):
      fill = by_length.fill()
      lines.append(
        f'{size:12,}{fit:16,}{fit / len(documents):8.1%}'
        f'{fill["window"]:10.1%}{fill["here"]:11.1%}'
        f'{packed.fill()["here"]:9.1%}'
      )
    if fit == len(documents):
      return lines
    size *= 2
