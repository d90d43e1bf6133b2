"""The log on a console: streams, dead readers, and the caller's own set-up."""

import io
import logging
import os

import pytest

from gpt import logs


@pytest.fixture(autouse=True)
def untouched():
  """Loggers as they were, whatever a test sets up."""
  loggers = [logging.getLogger(name) for name in (*logs.ROOTS, None)]
  before = [(x.handlers[:], x.level, x.propagate) for x in loggers]
  yield
  for logger, (handlers, level, propagate) in zip(loggers, before):
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)


def log(text='a line', level=logging.INFO):
  logging.getLogger('gpt.runs').log(level, text)


def dead_pipe():
  """A text stream that nothing reads."""
  reader, writer = os.pipe()
  os.close(reader)
  return os.fdopen(writer, 'w')


def test_lines_go_to_the_given_stream_and_warnings_to_stderr(capsys):
  logs.to_console('stdout')
  log()
  log('careful', logging.WARNING)
  assert capsys.readouterr() == ('a line\n', 'warning: careful\n')
  logs.to_console('stderr')
  log()
  assert capsys.readouterr() == ('', 'a line\n')


def test_training_survives_a_dead_stdout_and_says_so_once(monkeypatch):
  logs.to_console('stdout', survive=True)
  err = io.StringIO()
  with dead_pipe() as pipe:
    monkeypatch.setattr('sys.stdout', pipe)
    monkeypatch.setattr('sys.stderr', err)
    log()
    log()
    assert err.getvalue() == f'warning: {logs.STDOUT_CLOSED}\n'


def test_training_survives_a_dead_terminal(monkeypatch):
  logs.to_console('stdout', survive=True)
  with dead_pipe() as pipe, dead_pipe() as other:
    monkeypatch.setattr('sys.stdout', pipe)
    monkeypatch.setattr('sys.stderr', other)
    log()
    log('careful', logging.WARNING)


def test_other_programs_end_when_nothing_reads_them(monkeypatch):
  logs.to_console('stdout')
  pipe = dead_pipe()
  monkeypatch.setattr('sys.stdout', pipe)
  with pytest.raises(BrokenPipeError):
    log()
  logs.discard(pipe)
  pipe.close()


def test_a_closed_stream_drops_lines(monkeypatch):
  logs.to_console('stdout')
  monkeypatch.setattr('sys.stdout', None)
  log()


def test_a_library_call_shows_its_log_and_leaves_no_trace(capsys):
  logger = logging.getLogger('gpt')
  logger.propagate = False
  for _ in range(2):
    with logs.shown_by_default():
      log()
    assert capsys.readouterr().out == 'a line\n'
    log()
    assert capsys.readouterr().out == ''
    assert (logger.handlers, logger.level) == ([], logging.NOTSET)
    assert not logger.propagate


def test_the_callers_root_handler_gets_the_log_alone(capsys):
  stream = io.StringIO()
  root = logging.getLogger()
  root.addHandler(logging.StreamHandler(stream))
  root.setLevel(logging.INFO)
  with logs.shown_by_default():
    log()
  assert stream.getvalue() == 'a line\n'
  assert capsys.readouterr().out == ''


def test_quiet_drops_what_is_below_a_level(capsys):
  logs.to_console('stdout')
  with logs.quiet(logging.ERROR), logs.quiet():
    log('dropped')
    log('dropped', logging.WARNING)
  log()
  assert capsys.readouterr() == ('a line\n', '')
