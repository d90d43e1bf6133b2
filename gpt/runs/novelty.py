"""How many generated documents a model has made up, not memorised."""

from gpt import logs
from gpt.errors import UserError
from gpt.runs.evaluate import open_dataset


def count_new(loaded, workdir, texts) -> tuple[int, int]:
  """(texts that are no training document, number of training documents).

  A document is what one line is (data.format lines), without white space
  around it; an empty text is not new.

  Raises:
    UserError: what the run was trained on is not there, or is another by now.
  """
  if not loaded.data.get('text_sha256'):
    raise UserError('it is not known what this run was trained on')
  with logs.quiet(), open_dataset(loaded, workdir) as (dataset, _):
    corpus = dataset.corpus
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
