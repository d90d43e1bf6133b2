"""metrics.jsonl and the clock of a run."""

import json
import math
import os
import pathlib
import time
from typing import Any

from gpt.errors import UserError
from gpt.files import write_atomic

FILE = 'metrics.jsonl'


class MetricsLog:
  """W/metrics.jsonl: one JSON object per line, each with its `step`.

  A run that resumes at step s first drops the lines after s (all of them at
  0), so the file reads as if the run had never been interrupted. Non-finite
  numbers become null.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    resume_step: int = 0,
    tensorboard: bool = False,
    active: bool = True,
  ) -> None:
    """`active`: False on non-leader processes: writes nothing."""
    self._file = self._tensorboard = None
    # (loss, tokens) of an earlier process's steps since its last eval.
    self.recent_losses = []
    if not active:
      return
    path = pathlib.Path(workdir) / FILE
    if path.exists():
      self._keep(path, resume_step)
    self._file = path.open('a', encoding='utf-8')
    if tensorboard:
      self._tensorboard = _summary_writer(workdir, resume_step)

  def _keep(self, path: pathlib.Path, resume_step: int) -> None:
    kept = [x for x in read(path) if x['step'] <= resume_step and resume_step]
    for line in kept:
      if 'val_loss' in line:
        self.recent_losses = []
      elif line.get('loss') is not None:
        self.recent_losses.append((line['loss'], line.get('tokens', 1.0)))
    text = ''.join(json.dumps(line) + '\n' for line in kept)
    write_atomic(path, text.encode())

  def write(self, step: int, **values: float | str) -> None:
    """Appends a line."""
    if self._file is None:
      return
    line: dict[str, float | str | None] = {'step': step}
    for name, value in values.items():
      if isinstance(value, (str, int, bool)):
        line[name] = value
      else:
        line[name] = float(value) if math.isfinite(value) else None
    self._file.write(json.dumps(line) + '\n')
    self._file.flush()
    if self._tensorboard:
      for name, value in line.items():
        if name != 'step' and isinstance(value, (int, float)):
          self._tensorboard.add_scalar(name, value, step)

  def write_end(
    self, step: int, outcome: str, full: dict, elapsed_s: float
  ) -> None:
    """Appends the last line of a run that reached its end.

    Args:
      outcome: 'finished' or 'early stop'.
      full: {'final': values, 'best': values} of the full passes, if any.
    """
    values = {
      f'full_{which}_{name}': value
      for which, results in full.items()
      for name, value in results.items()
    }
    self.write(step, outcome=outcome, **values, elapsed_s=elapsed_s)

  def close(self) -> None:
    """Closes the files."""
    if self._file:
      self._file.close()
    if self._tensorboard:
      self._tensorboard.close()


def _summary_writer(workdir: str | os.PathLike, resume_step: int) -> Any:
  try:
    from tensorboardX import SummaryWriter
  except ImportError as e:
    raise UserError(
      "--config.tensorboard needs tensorboardX: pip install 'rgpt[tensorboard]'"
    ) from e
  return SummaryWriter(
    str(pathlib.Path(workdir) / 'tensorboard'), purge_step=resume_step + 1
  )


def read(path: str | os.PathLike) -> list[dict]:
  """The lines of a metrics.jsonl, up to the first that is not valid JSON."""
  lines = []
  for text in pathlib.Path(path).read_text(encoding='utf-8').splitlines():
    try:
      lines.append(json.loads(text))
    except json.JSONDecodeError:
      break
  return lines


def read_lines(workdir: str | os.PathLike) -> list[dict]:
  """The lines of a run; [] if nothing was trained."""
  path = pathlib.Path(workdir) / FILE
  return read(path) if path.exists() else []


def end_of(lines: list[dict]) -> dict:
  """The line that ends a run; {} if there is none at its last step."""
  last = last_step(lines)
  ends = [x for x in lines if 'outcome' in x and x['step'] == last]
  return ends[-1] if ends else {}


def last_step(lines: list[dict]) -> int:
  """The last step recorded; 0 if there is none."""
  return max((line['step'] for line in lines), default=0)


def lacks_end(workdir: str | os.PathLike, step: int) -> bool:
  """Whether a run reached `step` but was killed before its last line.

  An imported run has no lines at all and lacks nothing.
  """
  lines = read_lines(workdir)
  return bool(lines) and not any(
    line['step'] == step and 'outcome' in line for line in lines
  )


class Clock:
  """Seconds of a run, carried across resumes, and of training steps alone."""

  def __init__(self, elapsed: float = 0.0) -> None:
    self._start = time.perf_counter() - elapsed
    self._lap_seconds, self._lap_start = 0.0, None

  def elapsed(self) -> float:
    """Seconds since the run first started, interruptions not counted."""
    return time.perf_counter() - self._start

  def resume(self) -> None:
    """Starts counting training time (after an eval or a save)."""
    self._lap_start = time.perf_counter()

  def pause(self) -> None:
    """Stops counting training time; the last step has finished."""
    if self._lap_start is not None:
      self._lap_seconds += time.perf_counter() - self._lap_start
      self._lap_start = None

  def lap(self) -> float:
    """Seconds of training since the last lap; starts a new one."""
    seconds, self._lap_seconds = self._lap_seconds, 0.0
    return seconds


def duration(seconds: float) -> str:
  """3661 -> '1:01:01', 65 -> '1:05'."""
  minutes, secs = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours}:{minutes:02d}:{secs:02d}'
  return f'{minutes}:{secs:02d}'


def count(n: float) -> str:
  """12345 -> '12.3K', 4818432 -> '4.82M'."""
  for unit, size in (('G', 1e9), ('M', 1e6), ('K', 1e3)):
    if n >= size:
      return f'{n / size:.3g}{unit}'
  return f'{n:.3g}'
