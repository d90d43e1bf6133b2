"""How long the documents of a corpus are, and which block_size suits them."""

import numpy as np

from gpt import logs
from gpt.data.document_dataset import DocumentDataset
from gpt.data.documents import Documents


def percentiles(documents: Documents) -> tuple[int, int, int]:
  """(median, 90th percentile, longest) length in tokens, as microgpt counts.

  BOS and the closing token are counted.
  """
  lengths = np.sort(documents.lengths)
  n = len(lengths)
  return int(lengths[n // 2]), int(lengths[int(n * 0.9)]), int(lengths[-1])


def report(documents: Documents, tokenizer, batch_size: int) -> list[str]:
  """Lines of a report: lengths, a recommended block_size, a table of sizes."""
  median, p90, longest = percentiles(documents)
  noun = documents.noun
  lines = [
    f'{noun}: {len(documents):,}, median: {median:,} tokens, p90: {p90:,} '
    f'tokens, longest: {longest:,} tokens',
    f'recommended block_size: {p90:,} or higher',
    '',
    f'{"":12}{"fit in it (skip_long)":>24}   positions of a window in use',
    f'{"block_size":>12}{noun:>16}{"share":>8}{"alone":>10}{"by length":>11}'
    f'{"packed":>9}',
  ]
  size = 16
  while True:
    fit = int((documents.lengths <= size + 1).sum())
    with logs.quiet():
      datasets = [
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
      ]
    if datasets[0].targets('train'):
      by_length, packed = (d.fill() for d in datasets)
      lines.append(
        f'{size:12,}{fit:16,}{fit / len(documents):8.1%}'
        f'{by_length["window"]:10.1%}{by_length["here"]:11.1%}'
        f'{packed["here"]:9.1%}'
      )
    if fit == len(documents):
      return lines
    size *= 2
