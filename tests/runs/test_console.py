"""Console lines on real terminals of several widths, in files and in pipes."""

import contextlib
import logging
import os
import pty
import re
import subprocess
import sys

import pytest

from configs import default
from gpt import logs
from gpt.runs import console, metrics
from gpt.runs.console import Bar
from gpt.terminal import Line
from gpt.training.plateau import Plateau
from tests.support.workdirs import ROOT

WIDTHS = (80, 100, 120)
# Prints on its terminal at every width, then with colours refused.
PROGRAM = """
import fcntl, os, struct, termios
from tests.runs import test_console

for columns in test_console.WIDTHS:
  size = struct.pack('HHHH', 24, columns, 0, 0)
  fcntl.ioctl(1, termios.TIOCSWINSZ, size)
  test_console.two_evals()
for name, value in (('NO_COLOR', '1'), ('TERM', 'dumb')):
  os.environ[name] = value
  test_console.two_evals()
  del os.environ[name]
"""
COLOR = re.compile(r'\x1b\[[\d;]*m')


def two_evals() -> None:
  """Prints the lines of two evals, the numbers as long as they get."""
  config = default.get_config()
  config.total_steps = 100_000
  config.opt.plateau_patience = 30
  clock = metrics.Clock(12 * 3600)
  clock.lap = lambda: 12.5
  shown = console.Console(config, clock, 98_000)
  quick = {'nats_per_token': 1.23456, 'ppl': 123.45, 'bits_per_byte': 2.1}
  with logged_to_stdout():
    for step in (98_999, 99_999):
      shown.tick()
      shown.add({'loss': 1.5, 'lr': 1.25e-3, 'tokens': 16384.0}, timed=True)
      shown.report(step, quick, Plateau(best_loss=1.23456, best_step=99_999))
  shown.close()


@contextlib.contextmanager
def logged_to_stdout():
  """Shows what Console logs as `launch.train` does, whatever else is set up."""
  handler, logger = logs.ConsoleHandler('stdout'), console.logger
  logger.addHandler(handler)
  logger.setLevel(logging.INFO)
  logger.propagate = False
  try:
    yield
  finally:
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


@pytest.fixture(scope='module')
def lines() -> list[str]:
  """The lines of evals that PROGRAM leaves on a terminal."""
  ours, theirs = pty.openpty()
  names = ('NO_COLOR', 'FORCE_COLOR', 'COLUMNS', 'LINES')
  clean = {k: v for k, v in os.environ.items() if k not in names}
  process = subprocess.Popen(
    [sys.executable, '-W', 'error', '-c', PROGRAM],
    cwd=ROOT,
    env=clean | {'TERM': 'xterm'},
    stdin=theirs,
    stdout=theirs,
    stderr=theirs,
  )
  os.close(theirs)
  written = b''
  try:
    while piece := os.read(ours, 65536):
      written += piece
  except OSError:  # Linux: the other end is closed.
    pass
  os.close(ours)
  text = written.decode()
  assert process.wait() == 0, text
  rows = re.split(r'[\r\n]+', text)
  found = [x for x in rows if COLOR.sub('', x).startswith('step ')]
  assert len(found) == 2 * (len(WIDTHS) + 2)
  return found


@pytest.mark.parametrize('columns', WIDTHS)
def test_a_line_fits_a_terminal(lines, columns):
  i = WIDTHS.index(columns)
  first, second = lines[2 * i : 2 * i + 2]
  for line in (first, second):
    plain = COLOR.sub('', line)
    assert len(plain) < columns
    assert re.match(r'step \d+/100000 \| loss 1\.5000 \| val 1\.2346', plain)
    assert re.search(r'\d left', plain)
    assert line.startswith('\x1b[1mstep ') and line.count('\x1b[0m') >= 3
    assert ('best 1.2346' in plain) == (columns >= 100)
  # The second eval is a new best: green.
  assert '\x1b[1;32mval' in second and '\x1b[1;32m' not in first


def test_no_color_and_a_dumb_terminal_get_no_colours(lines):
  refused = lines[2 * len(WIDTHS) :]
  assert len(refused) == 4 and not any('\x1b' in line for line in refused)


def test_a_pipe_gets_whole_lines_without_colours(capsys, monkeypatch):
  monkeypatch.delenv('FORCE_COLOR', raising=False)
  two_evals()
  out, err = capsys.readouterr()
  assert not err and '\x1b' not in out and out.count('\n') == 2
  for line in out.splitlines():
    for part in (
      r'^step \d+/100000 \| loss 1\.5000 \| val 1\.2346 ppl 123\.45 \| ',
      r' \| lr 1\.25e-03 \| best 1\.2346 @99999 \| ',
      r' 12500 ms/step 1\.31K tok/s \| 12:00:\d\d elapsed, [\d:]+ left \| ',
      r' \| patience 0/30$',
    ):
      assert re.search(part, line), (part, line)


def test_force_color_colours_a_pipe(capsys, monkeypatch):
  monkeypatch.delenv('NO_COLOR', raising=False)
  monkeypatch.setenv('FORCE_COLOR', '1')
  two_evals()
  coloured = capsys.readouterr().out
  monkeypatch.setenv('NO_COLOR', '1')
  two_evals()
  assert COLOR.sub('', coloured) == capsys.readouterr().out != coloured


def test_a_line_is_shortened_in_its_order():
  parts = {'a': ['aaaa', 'aa'], 'b': ['bbbb', 'b', ''], 'c': ['cc']}
  line = Line(parts, ['b', 'a', 'b'], {'a': 'bold', 'b': 'dim'})
  assert line == 'aaaa | bbbb | cc'
  assert line.fitted(16) == line
  assert line.fitted(15) == 'aaaa | b | cc'
  assert line.fitted(12) == 'aa | b | cc'
  assert line.fitted(10) == line.fitted(1) == 'aa | cc'
  assert line.fitted(10, color=True) == '\x1b[1maa\x1b[0m | cc'


class Clock:
  """A clock that is set by hand."""

  def __init__(self, monkeypatch):
    self.now = 100.0
    monkeypatch.setattr('gpt.runs.console.time.perf_counter', lambda: self.now)


def test_the_time_left_leaves_out_compilation_and_pauses(monkeypatch):
  """A run of 1,000 steps of 0.125 s that took a minute to compile."""
  clock = Clock(monkeypatch)
  with open(os.devnull, 'w') as nowhere:
    bar = Bar(total=1000, file=nowhere, mininterval=1e9)

    def left():
      return re.search(r'<([\d:?]+)', str(bar))[1]

    clock.now += 60  # Compilation.
    bar.step()
    assert left() == '?'
    clock.now += 5  # The first checkpoint.
    bar.step()
    assert left() == '?'
    for _ in range(98):
      clock.now += 0.125
      bar.step()
    assert bar.n == 100 and left() == '01:52'
    clock.now += 30  # A slow evaluation.
    bar.step()
    assert left() == '01:52'
    bar.close()
