"""A run's model over every token of a text, its own or another.

The numbers come from the Evaluator that training uses: they mean the same.
"""

import contextlib
import pathlib
import tempfile

import jax

from gpt import data, sharding
from gpt.dataset import TextDataset
from gpt.errors import UserError
from gpt.evaluation import Evaluator
from gpt.sources import find_sources


@contextlib.contextmanager
def open_dataset(loaded, workdir, path: str = '', split: str = '', log=print):
  """The text to judge a model by, encoded by the model's own tokenizer.

  Args:
    loaded: LoadedModel of `workdir`.
    path: text files or globs as in data.path; '': the run's own data. Their
      tokens are kept in a temporary directory; those of the run in its cache.
    split: 'val', 'train' or 'all'. '': 'val' for the run's own text, 'all' for
      any other (none of which was trained on).
    log: called with lines worth telling.

  Yields:
    (TextDataset, split).

  Raises:
    UserError: no text there, or too little of it.
  """
  workdir, config = pathlib.Path(workdir), loaded.config['data']
  if config['format'] != 'text':
    raise UserError(
      f'this run was trained on data.format={config["format"]}; only text can '
      'be evaluated so far'
    )
  before = loaded.data
  sources = find_sources(
    path or config['path'], prefer='' if path else before.get('kind', '')
  )
  with tempfile.TemporaryDirectory(prefix='rgpt-evaluate-') as temporary:
    own_cache = config['cache_dir'] or workdir / 'cache'
    corpus = data.open_corpus(
      sources, loaded.tokenizer, temporary if path else own_cache,
      config['document_separator'], config['document_aware'],
      config['val_fraction'], log,
    )
    own = corpus.info.text_sha256 == before.get('text_sha256')
    if before and not own and not path:
      log(
        'warning: the text has changed since this run was trained: it was '
        f'{before.get("description")}, is {corpus.description}'
      )
    split = split or ('val' if own or not path else 'all')
    dataset = TextDataset(
      corpus, loaded.cfg.block_size, 1, 0, loaded.tokenizer,
      config['document_aware'], splits=(),  # A short last window is no error.
    )
    first, end = corpus.bounds(split)
    if end - first < (1 if config['document_aware'] else 2):
      raise UserError(
        f'nothing to evaluate: split {split} of {corpus.description} has '
        f'{end - first} tokens. Give more text with --data, or another --split'
      )
    yield dataset, split


def full_pass(loaded, dataset, split: str, progress=None) -> dict:
  """'nats_per_token', 'ppl', 'bits_per_byte', 'tokens' of a whole split.

  Args:
    progress: called with the number of targets before each batch.
  """
  mesh = sharding.create_mesh(jax.device_count())
  params = sharding.put_replicated(loaded.params, mesh)
  watched = dataset if progress is None else _Watched(dataset, progress)
  return Evaluator(loaded.model, mesh, watched)(params, split, None)


class _Watched:
  """A dataset that tells how far it has been read."""

  def __init__(self, dataset, progress):
    self.bytes_V, self._dataset = dataset.bytes_V, dataset
    self._progress = progress

  def eval_batches(self, *args):
    for batch in self._dataset.eval_batches(*args):
      self._progress(int(batch['weights'].sum()))
      yield batch
