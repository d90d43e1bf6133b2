"""metrics.jsonl and the clock of a run."""

import functools
import json
import logging
import math
import numbers
import os
import pathlib
import re
import time
from typing import Any, TypeGuard

from gpt.errors import UserError
from gpt.runs import log_file

logger = logging.getLogger(__name__)
FILE = 'metrics.jsonl'
# Longer lines, and steps above the integers of a double, are damage.
MAX_LINE_BYTES, MAX_STEP = 1 << 20, 2**53
BLANK = b'\x00 \t\r'  # A crash may leave NULs where a write was.


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
    log_file.set_aside(path)
    if path.is_file():
      self._keep(path, resume_step)
    self._file = log_file.LogFile(path)
    if tensorboard:
      self._tensorboard = _summary_writer(workdir, resume_step)

  def _keep(self, path: pathlib.Path, resume_step: int) -> None:
    """Drops the lines after `resume_step`, sets damaged ones aside."""
    data = log_file.read(path)
    lines, damaged = parse(data)
    damaged += _is_cut(data.rpartition(b'\n')[2], resume_step)
    if damaged:
      copy = log_file.unused_name(path)
      log_file.replace(copy, data)
      logger.warning(
        f'{path}: left out {_damaged_lines(damaged)}; the file as it was is '
        f'{copy.name}'
      )
    kept = [x for x in lines if x['step'] <= resume_step and resume_step]
    for line in kept:
      if 'val_loss' in line:
        self.recent_losses = []
      elif is_number(line.get('loss')):
        tokens = line.get('tokens', 1.0)
        tokens = tokens if is_number(tokens) else 1.0
        self.recent_losses.append((line['loss'], tokens))
    text = ''.join(json.dumps(line) + '\n' for line in kept)
    log_file.replace(path, text.encode())

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
    self._file.append((json.dumps(line) + '\n').encode())
    board: Any = self._tensorboard
    try:
      for name, value in line.items() if board else ():
        if name != 'step' and isinstance(value, (int, float)):
          board.add_scalar(name, value, step)
    except OSError as e:
      self._tensorboard = _no_tensorboard(e)

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
    try:
      if self._tensorboard:
        self._tensorboard.close()
    except OSError as e:
      _no_tensorboard(e)


def _summary_writer(workdir: str | os.PathLike, resume_step: int) -> Any:
  try:
    from tensorboardX import SummaryWriter
  except ImportError as e:
    raise UserError(
      "--config.tensorboard needs tensorboardX: pip install 'rgpt[tensorboard]'"
    ) from e
  directory = pathlib.Path(workdir) / 'tensorboard'
  try:
    return SummaryWriter(str(directory), purge_step=resume_step + 1)
  except OSError as e:
    return _no_tensorboard(e)


def _no_tensorboard(error: OSError) -> None:
  logger.warning(
    f'TensorBoard files cannot be written ({error.strerror or error}): '
    f'training goes on without them, and {FILE} has their numbers'
  )


def read(path: str | os.PathLike, warn: bool = True) -> list[dict]:
  """The lines of a metrics.jsonl; damaged ones are left out with a warning.

  Every line has a `step`, an int of 0 or more; all values are strings, numbers,
  booleans or None.

  Raises:
    FileNotFoundError: there is none.
  """
  lines, damaged = parse(log_file.read(path))
  if damaged and warn:
    _warn_of_damage(str(path), damaged)
  return lines


@functools.cache
def _warn_of_damage(path: str, lines: int) -> None:
  """Once per file: several parts of a report read it."""
  logger.warning(f'{path}: left out {_damaged_lines(lines)}')


def _damaged_lines(n: int) -> str:
  return f'{n} damaged line{"s" if n > 1 else ""}'


def parse(data: bytes) -> tuple[list[dict], int]:
  """(lines, how many others there are that cannot be read).

  The last line may be incomplete, which is no damage: the run was killed.
  """
  *whole, last = data.split(b'\n')
  parsed = [_parse_line(text) for text in whole if text.strip()]
  lines = [line for line in parsed if line is not None]
  damaged = len(parsed) - len(lines)
  if (line := _parse_line(last)) is not None:
    lines.append(line)
  return lines, damaged


def _is_cut(last: bytes, step: int) -> bool:
  """Whether a last line cannot be read and may be of `step` or before."""
  if not last.strip(BLANK) or _parse_line(last) is not None:
    return False
  begun = re.match(rb'\x00*\{"step": (\d{1,15})', last)
  return not begun or int(begun[1]) <= step


def _parse_line(text: bytes) -> dict | None:
  """One line as a dict with a `step`; None if it is damaged."""
  text = text.strip(BLANK)
  if len(text) > MAX_LINE_BYTES:
    return None
  try:
    line = json.loads(text.decode('utf-8'))
  except (ValueError, RecursionError):
    return None
  step = line.get('step') if isinstance(line, dict) else None
  if type(step) is not int or not 0 <= step <= MAX_STEP:
    return None
  return {name: x for name, x in line.items() if _is_plain(x)}


def _is_plain(value: Any) -> bool:
  """Whether a value is one that this program writes."""
  if isinstance(value, int):
    return abs(value) <= MAX_STEP
  return value is None or isinstance(value, (str, float))


def is_number(value: Any) -> TypeGuard[float]:
  """Whether a value of a run's files can be drawn or added: finite."""
  number: Any = value
  return isinstance(value, numbers.Real) and abs(number) < 1e300


def read_lines(workdir: str | os.PathLike, warn: bool = True) -> list[dict]:
  """The lines of a run; [] if nothing was trained."""
  path = pathlib.Path(workdir) / FILE
  return read(path, warn) if path.exists() else []


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
  lines = read_lines(workdir, warn=False)  # MetricsLog will.
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

  def skip(self, seconds: float) -> None:
    """Leaves out seconds that have just passed: the process was stopped."""
    self._start += seconds

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


def number(value: object, spec: str) -> str:
  """A formatted number; '' for None, and what is no number as it is."""
  if value is None:
    return ''
  if is_number(value) and not isinstance(value, bool):
    return format(value, spec)
  return str(value)
