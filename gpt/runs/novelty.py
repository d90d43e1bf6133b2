"""Novelty: the share of generated documents that are not memorised."""

import os
from collections.abc import Iterable

from gpt import logs
from gpt.data.documents import Documents
from gpt.errors import UserError
from gpt.runs.evaluate import open_dataset
from gpt.runs.load import LoadedModel


def count_new(
  loaded: LoadedModel, workdir: str | os.PathLike, texts: Iterable[str]
) -> tuple[int, int]:
  """(texts that equal no training document, number of training documents).

  Documents are lines (data.format lines) without surrounding white space; an
  empty text is not new.

  Raises:
    UserError: the training text is missing, unknown, or has changed.
  """
  if not loaded.data.get('text_sha256'):
    raise UserError('the text this run was trained on is unknown')
  with logs.quiet(), open_dataset(loaded, workdir) as (dataset, _):
    corpus = dataset.corpus
    if not isinstance(corpus, Documents):
      raise UserError('only a run of lines or chats has documents to compare')
    if corpus.info.text_sha256 != loaded.data['text_sha256']:
      raise UserError(
        f'{corpus.description} is not what this run was trained on'
      )
    trained = corpus.chosen('train')
    known = {
      corpus.tokens[a : b - 1].tobytes()
      for a, b in zip(corpus.starts[trained], corpus.ends[trained])
    }
    tokens = corpus.tokens.dtype
  new = 0
  for text in map(str.strip, texts):
    ids = loaded.tokenizer.encode(text)
    new += bool(text) and ids.astype(tokens).tobytes() not in known
  return new, len(trained)
