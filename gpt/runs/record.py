"""The record of a run: metrics, config and samples, without its weights.

For reports, figures and notebooks; works while the run is still training.
"""

import dataclasses
import os
import pathlib
from typing import Any

from gpt.data import record
from gpt.errors import UserError
from gpt.model import num_params
from gpt.runs import checkpoint_meta, metrics, samples
from gpt.runs.config_file import CONFIG, read_config, read_configs
from gpt.tokenizers import load_tokenizer


@dataclasses.dataclass
class RunRecord:
  """The record of a run so far.

  lines: of metrics.jsonl.
  config: nested dicts. data: of data.json, or {}.
  samples: [(step, text)], oldest first.
  saved: {'best': [steps], 'latest': [steps]}.
  parameters, vocab_size: None before there is a tokenizer.
  """

  workdir: pathlib.Path
  lines: list[dict]
  config: dict
  data: dict
  samples: list[tuple[int, str]]
  saved: dict
  parameters: int | None
  vocab_size: int | None

  def series(self, name: str) -> list[tuple[int, float | None]]:
    """(step, value) of every line that has `name`."""
    return [(x['step'], x[name]) for x in self.lines if name in x]

  def last(self, name: str) -> Any:
    """The newest value of `name`, or None."""
    values = [y for _, y in self.series(name) if y is not None]
    return values[-1] if values else None

  @property
  def end(self) -> dict:
    """The line of metrics.jsonl that ends the run; {} if it has not ended."""
    return metrics.end_of(self.lines)

  @property
  def step(self) -> int:
    return metrics.last_step(self.lines)


def read_run(workdir: str | os.PathLike) -> RunRecord:
  """Reads a workdir; no weights are loaded.

  Raises:
    UserError: not a run, or has no metrics yet.
  """
  workdir = pathlib.Path(workdir)
  config = read_config(workdir)
  if config is None:
    raise UserError(
      f'{workdir} is not a run: it has no {CONFIG}. Name the --workdir of '
      'launch.train'
    )
  path = workdir / metrics.FILE
  if not path.exists():
    raise UserError(
      f'{workdir} has no {metrics.FILE}: nothing has been trained there yet, '
      'and an import brings no curves. `python -m launch.info '
      f'--workdir={workdir}` describes the model'
    )
  parameters = vocab_size = None
  if (workdir / 'tokenizer').is_dir():
    vocab_size = load_tokenizer(workdir).vocab_size
    config, cfg = read_configs(workdir, vocab_size)
    parameters = num_params(cfg)
  return RunRecord(
    workdir=workdir,
    lines=metrics.read(path),
    config=config,
    data=record.read(workdir),
    samples=samples.read(workdir),
    saved=checkpoint_meta.steps_by_kind(workdir / 'checkpoints'),
    parameters=parameters,
    vocab_size=vocab_size,
  )
