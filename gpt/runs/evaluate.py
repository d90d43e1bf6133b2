"""Full evaluation of a run's model on its own text or another.

Uses training's Evaluator, so the numbers are comparable.
"""

import contextlib
import logging
import os
import pathlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from gpt import devices, unfinished
from gpt.data import prepare, text_choice
from gpt.data.prepare import Dataset
from gpt.data.sources import find_sources
from gpt.errors import UserError
from gpt.runs.load import LoadedModel
from gpt.training.evaluation import Evaluator

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def open_dataset(
  loaded: LoadedModel,
  workdir: str | os.PathLike,
  path: str = '',
  split: str = '',
) -> Iterator[tuple[Dataset, str]]:
  """The evaluation text, encoded by the model's own tokenizer.

  Args:
    loaded: LoadedModel of `workdir`.
    path: files or globs as in data.path, of the run's data.format; '': the
      run's own data. Tokens of other files go to a temporary directory, those
      of the run to its cache.
    split: 'val', 'train' or 'all'. '': 'val' for the run's own text, 'all' for
      any other, since none of it was trained on.

  Yields:
    (dataset of prepare.create_dataset, split).

  Raises:
    UserError: no text, or too little of it.
  """
  workdir = pathlib.Path(workdir)
  config = types.SimpleNamespace(
    seed=0,
    batch_size=1,
    model=types.SimpleNamespace(block_size=loaded.cfg.block_size),
    data=types.SimpleNamespace(**loaded.config['data']),
  )
  before = loaded.data
  sources = find_sources(
    path or config.data.path,
    '' if path else before.get('kind', ''),
    config.data.format,
    text_choice.text_field(config.data),
  )
  with unfinished.temporary_directory('rgpt-evaluate') as temporary:
    own_cache = config.data.cache_dir or workdir / 'cache'
    corpus = prepare.open_data(
      config.data,
      sources,
      loaded.tokenizer,
      temporary if path else own_cache,
    )
    own = corpus.info.text_sha256 == before.get('text_sha256')
    if before and not own and not path:
      logger.warning(
        'the text has changed since this run was trained: it was '
        f'{before.get("description")}, is {corpus.description}'
      )
    if not (before or path):
      logger.info(
        'note: the text this run was trained on is unknown; evaluating on '
        f'{corpus.description}'
      )
    split = split or ('val' if own or not path else 'all')
    dataset = prepare.create_dataset(
      config,
      corpus,
      loaded.tokenizer,
      splits=(),  # A short last window is no error.
    )
    if dataset.targets(split) < 1:
      what = getattr(corpus, 'noun', 'tokens')
      raise UserError(
        f'nothing to evaluate: split {split} of {corpus.description} has '
        f'{corpus.size(split)} {what}. Give more text with --data, or another '
        '--split'
      )
    yield dataset, split


def full_pass(
  loaded: LoadedModel,
  dataset: Dataset,
  split: str,
  progress: Callable[[int], object] | None = None,
) -> dict:
  """The Evaluator's values for every target of a split.

  Args:
    progress: called with the number of targets of each batch.
  """
  mesh = devices.create_mesh(jax.device_count())
  params = devices.put_replicated(loaded.params, mesh)
  watched = dataset if progress is None else _Watched(dataset, progress)
  return Evaluator(loaded.model, mesh, watched)(params, split, None)


class _Watched:
  """A dataset that reports how many targets were read."""

  def __init__(self, dataset: Any, progress: Callable[[int], object]) -> None:
    self._dataset, self._progress = dataset, progress

  def __getattr__(self, name: str) -> Any:
    return getattr(self._dataset, name)

  def with_loss(self, loss_on: str) -> '_Watched':
    return _Watched(self._dataset.with_loss(loss_on), self._progress)

  def eval_batches(self, *args: Any) -> Iterator[dict[str, np.ndarray]]:
    for batch in self._dataset.eval_batches(*args):
      self._progress(int(batch['weights'].sum()))
      yield batch
