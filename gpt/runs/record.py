"""What a workdir tells about its run: for reports, figures and notebooks.

Only what training has written down is read, no weights: it can be done while
the run is still going.
"""

import dataclasses
import pathlib
import re

from gpt.data import record
from gpt.errors import UserError
from gpt.finish import SAMPLES
from gpt.model import GPTConfig, num_params
from gpt.runs import checkpoint, metrics
from gpt.runs import workdir as run
from gpt.tokenizers import load_tokenizer


@dataclasses.dataclass
class RunRecord:
  """What a workdir tells about its run, as far as it has come.

  lines: of metrics.jsonl.
  config: nested dicts. data: of data.json, or {}.
  samples: [(step, text)], oldest first.
  saved: {'best': [steps], 'latest': [steps]}.
  parameters, vocab_size: None where there is no tokenizer yet.
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

  def last(self, name: str):
    """The newest value of `name`, or None."""
    values = [y for _, y in self.series(name) if y is not None]
    return values[-1] if values else None

  @property
  def end(self) -> dict:
    """The line of metrics.jsonl that ends the run; {} where it goes on."""
    return metrics.end_of(self.lines)

  @property
  def step(self) -> int:
    return metrics.last_step(self.lines)


def read_run(workdir) -> RunRecord:
  """Reads a workdir; no weights are loaded.

  Raises:
    UserError: it is no run, or has no metrics yet.
  """
  workdir = pathlib.Path(workdir)
  config = run.read_config(workdir)
  if config is None:
    raise UserError(
      f'{workdir} is no run: it has no {run.CONFIG}. Name the --workdir of '
      'launch.train'
    )
  path = workdir / metrics.FILE
  if not path.exists():
    raise UserError(
      f'{workdir} has no {metrics.FILE}: nothing has been trained there yet'
    )
  parameters = vocab_size = None
  if (workdir / 'tokenizer').is_dir():
    vocab_size = load_tokenizer(workdir).vocab_size
    cfg = GPTConfig.from_config(config['model'], vocab_size)
    parameters = num_params(cfg)
  return RunRecord(
    workdir=workdir,
    lines=metrics.read(path),
    config=config,
    data=record.read(workdir),
    samples=read_samples(workdir / SAMPLES),
    saved=checkpoint.steps_by_kind(workdir / 'checkpoints'),
    parameters=parameters,
    vocab_size=vocab_size,
  )


def read_samples(path) -> list[tuple[int, str]]:
  """[(step, text)] of a samples.txt; [] where there is none."""
  path = pathlib.Path(path)
  if not path.exists():
    return []
  with path.open(encoding='utf-8', newline='') as file:
    parts = re.split(r'^--- step (\d+)\n', file.read(), flags=re.MULTILINE)
  return [
    (int(step), text.removesuffix('\n'))
    for step, text in zip(parts[1::2], parts[2::2])
  ]
