"""What a run reports: metrics.jsonl, one console line an eval, a clock."""

import json
import math
import os
import pathlib
import time


class MetricsLog:
  """W/metrics.jsonl: one JSON object a line, every line with its `step`.

  A run that resumes at step s first drops the lines after s: the file reads as
  if the run had never been interrupted. Non-finite numbers become null.
  """

  def __init__(self, workdir, resume_step: int = 0, tensorboard: bool = False):
    self._path = pathlib.Path(workdir) / 'metrics.jsonl'
    if self._path.exists():
      self._truncate(resume_step)
    self._file = self._path.open('a', encoding='utf-8')
    self._tensorboard = None
    if tensorboard:
      from tensorboardX import SummaryWriter

      self._tensorboard = SummaryWriter(
        str(pathlib.Path(workdir) / 'tensorboard'), purge_step=resume_step + 1
      )

  def _truncate(self, resume_step: int) -> None:
    kept = [
      json.dumps(line) + '\n'
      for line in read(self._path)
      if line['step'] <= resume_step
    ]
    temporary = self._path.with_suffix('.tmp')
    temporary.write_text(''.join(kept), encoding='utf-8')
    os.replace(temporary, self._path)

  def write(self, step: int, **values) -> None:
    """Adds a line; numbers become floats."""
    line = {'step': step}
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

  def close(self) -> None:
    self._file.close()
    if self._tensorboard:
      self._tensorboard.close()


def read(path) -> list[dict]:
  """The lines of a metrics.jsonl; a last line cut short by a kill is left out."""
  lines = []
  for text in pathlib.Path(path).read_text(encoding='utf-8').splitlines():
    try:
      lines.append(json.loads(text))
    except json.JSONDecodeError:
      break
  return lines


class Clock:
  """Seconds of a run, carried over resumes, and of training between evals."""

  def __init__(self, elapsed: float = 0.0):
    self._start = time.perf_counter() - elapsed
    self._lap_seconds, self._lap_start = 0.0, None

  def elapsed(self) -> float:
    """Seconds since the run first started, interruptions not counted."""
    return time.perf_counter() - self._start

  def resume(self) -> None:
    """Training goes on (after an eval, a save)."""
    self._lap_start = time.perf_counter()

  def pause(self) -> None:
    """Training has stopped, its last step finished."""
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
  return f'{hours}:{minutes:02d}:{secs:02d}' if hours else f'{minutes}:{secs:02d}'


def count(n: float) -> str:
  """12345 -> '12.3K', 4818432 -> '4.82M'."""
  for unit, size in (('G', 1e9), ('M', 1e6), ('K', 1e3)):
    if n >= size:
      return f'{n / size:.3g}{unit}'
  return f'{n:.3g}'
