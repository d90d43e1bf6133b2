"""`launch.chat` on a terminal streams, edits, remembers and heeds Ctrl-C."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys

import pytest

from gpt.tokenizers import build_tokenizer, chat_format
from tests.support import chat_tools
from tests.support.chat_tools import expected, make_chatter
from tests.support.workdirs import ROOT, STRICT, command

home = chat_tools.home  # Around every test.
PATIENCE_S = 200


@pytest.fixture(scope='module')
def chatter(tmp_path_factory):
  return make_chatter(tmp_path_factory.mktemp('chatter'))


# Makes the terminal it is started on its own, so that Ctrl-C reaches it.
ON_TERMINAL = """
import fcntl, runpy, sys, termios

fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.argv[0] = 'launch.chat'
runpy.run_module('launch.chat', run_name='__main__', alter_sys=True)
"""


class Terminal:
  """`launch.chat` on a terminal of its own."""

  def __init__(self, *args):
    ours, theirs = pty.openpty()
    self._fd, self.text, self._seen = ours, '', 0
    self.process = subprocess.Popen(
      [sys.executable, *STRICT, '-c', ON_TERMINAL, *args],
      cwd=ROOT,
      stdin=theirs,
      stdout=theirs,
      stderr=theirs,
      start_new_session=True,
    )
    os.close(theirs)

  def wait_for(self, pattern: str) -> str:
    """Reads until the text after the last match has another; returns it."""
    while not (found := re.search(pattern, self.text[self._seen :])):
      ready, _, _ = select.select([self._fd], [], [], PATIENCE_S)
      assert ready, f'no {pattern!r} in {self.text[self._seen :]!r}'
      self._read()
    self._seen += found.end()
    return found[0]

  def _read(self) -> None:
    try:
      piece = os.read(self._fd, 65536)
    except OSError:  # Linux: the other end is closed.
      piece = b''
    assert piece, f'the program has left: {self.text!r}'
    self.text += piece.decode().replace('\r\n', '\n')

  def type(self, text: str) -> None:
    os.write(self._fd, text.encode())

  def interrupt_until(self, pattern: str) -> None:
    """Presses Ctrl-C as a person does: again, if nothing happens.

    CPython loses one that arrives after the prompt is drawn and before
    readline waits for a key.
    """

    def found() -> bool:
      return bool(re.search(pattern, self.text[self._seen :]))

    while not found():
      self.type('\x03')
      while not found() and select.select([self._fd], [], [], 10)[0]:
        self._read()
    self.wait_for(pattern)

  def end(self) -> int:
    """Waits for the process to leave."""
    try:
      while os.read(self._fd, 65536):
        pass
    except OSError:
      pass
    os.close(self._fd)
    return self.process.wait(PATIENCE_S)


def test_a_terminal_streams_edits_and_remembers(chatter, home):
  first, session = expected(chatter, 'hello world', max_tokens=6)
  second = ''.join(session.say('hello world'))
  screen = Terminal(f'--workdir={chatter}', '--max_tokens=6')
  screen.wait_for('/help lists the commands')
  screen.wait_for('> ')
  # Backspace takes a letter away: the line is edited before it is sent.
  screen.type('hello worldX\x7f\n')
  screen.wait_for(re.escape(first[0]))
  screen.wait_for('> ')
  screen.type('\x10\n')  # Ctrl-P: the line before.
  screen.wait_for(re.escape(second))
  screen.wait_for('> ')
  screen.type('\x04')  # Ctrl-D
  assert screen.end() == 0
  history = (home / '.config/rgpt/chat_history').read_text()
  assert 'hello world' in history
  again = Terminal(f'--workdir={chatter}', '--max_tokens=6')
  again.wait_for('> ')
  again.type('\x10\n')  # From the last time.
  again.wait_for(re.escape(first[0]))
  again.wait_for('> ')
  again.type('/quit\n')
  assert again.end() == 0


def test_ctrl_c_stops_the_reply_and_not_the_program(tmp_path):
  run = make_chatter(
    tmp_path / 'run', end=-100.0, n_layer=2, n_embd=64, block_size=8192
  )
  screen = Terminal(f'--workdir={run}', '--max_tokens=8000')
  screen.wait_for('> ')
  screen.type('hello\n')
  screen.wait_for(r'hello\n.{8}')
  screen.type('\x03')
  screen.wait_for(r'\(stopped\)\n> ')
  screen.type('abc')  # At the prompt it throws the line away.
  screen.wait_for('abc')
  screen.interrupt_until(r'\(Ctrl-D or /quit leaves\)\n')
  screen.wait_for('> ')
  screen.type(f'/save {tmp_path}/talk\n')
  screen.wait_for('saved 2 messages')
  screen.wait_for('> ')
  screen.type('/quit\n')
  assert screen.end() == 0
  messages = json.loads((tmp_path / 'talk').read_text())
  assert 8 <= len(messages[1]['content']) < 7900


def test_control_characters_do_not_reach_a_terminal(tmp_path):
  tokenizer = build_tokenizer(
    'char', ['ab\x1b\x07\n'], 0, chat_format.CHAT_TOKENS
  )
  run = make_chatter(tmp_path / 'run', tokenizer, says='a\x1b\x07')
  screen = Terminal(f'--workdir={run}', '--max_tokens=30')
  screen.wait_for('> ')
  before = len(screen.text)
  screen.type('b\n')
  screen.wait_for(r'\n> ')
  reply = screen.text[before:].partition('\n')[2]
  assert 'a' in reply and '\x1b]' not in reply and '\x07' not in reply
  assert '\x1ba' not in reply
  screen.type('/quit\n')
  assert screen.end() == 0


def test_an_interrupt_before_the_first_word_leaves(chatter):
  process = subprocess.Popen(
    command('chat', f'--workdir={chatter}'),
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert 'best checkpoint' in process.stderr.readline()
  process.send_signal(signal.SIGINT)
  _, err = process.communicate()
  assert process.returncode == 130 and 'Traceback' not in err
