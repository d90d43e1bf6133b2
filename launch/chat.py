"""Talk with a chat model in the terminal; replies stream as they are made.

    python -m launch.chat --workdir=runs/chat_small
    echo 'What is a noun?' | python -m launch.chat --workdir=W --once

Without --workdir the model in ~/.config/rgpt/default-chat-model is used. Ctrl-C
stops a reply, Ctrl-D leaves, /help lists the commands. What the model says goes
to stdout, everything about it to stderr.
"""

import json
import os
import pathlib
import signal
import sys

from absl import flags

from gpt.errors import UserError
from launch import cli, sampling_flags

DEFAULT_MODEL = '~/.config/rgpt/default-chat-model'
HISTORY = '~/.config/rgpt/chat_history'
HISTORY_LINES = 1000

WORKDIR = flags.DEFINE_string(
  'workdir', DEFAULT_MODEL, 'Directory of a run that was trained to chat.'
)
WHICH = flags.DEFINE_enum(
  'which',
  'best',
  ['best', 'latest'],
  'The checkpoint of the lowest validation loss, or the newest.',
)
SYSTEM = flags.DEFINE_string(
  'system', '', 'A text that stands before the conversation.'
)
MAX_TOKENS = flags.DEFINE_integer('max_tokens', 256, 'Most tokens of a reply.')
SEED = flags.DEFINE_integer(
  'seed', 42, 'The same seed gives the same conversation.'
)
flags.adopt_module_key_flags(sampling_flags)
ONCE = flags.DEFINE_bool(
  'once', False, 'All of stdin is one message; print the reply and end.'
)

HELP = """\
/temperature X  sample at X from now on; 0 takes the likeliest
/system TEXT    a text before the conversation; without TEXT: none
/clear          forget the conversation
/save FILE      write the conversation as a line of chat data
/help           this list
/quit           leave (also Ctrl-D)
Ctrl-C stops a reply. A message that begins with / is written //.\
"""


def main(_):
  session = open_session()
  sys.stdin.reconfigure(errors='replace')  # Never a crash over an encoding.
  if ONCE.value:
    text = sys.stdin.read().strip()
    if not text:
      raise UserError('--once reads the message from stdin, which is empty')
    answer(session, text)
    return
  Repl(session).run()


def open_session():
  """The model of the flags and a new conversation with it."""
  directory = pathlib.Path(os.path.expanduser(WORKDIR.value))
  train = (
    'python -m launch.train --config=configs/chat_small.py '
    '--config.data.path=FILE.jsonl --workdir='
  )
  if not directory.exists() and WORKDIR.value == DEFAULT_MODEL:
    raise UserError(
      f'there is no model in {DEFAULT_MODEL} yet. Name one with --workdir='
      f'DIRECTORY, or train one there:\n  {train}{directory}'
    )

  # JAX, after the flags are right.
  from gpt import devices
  from gpt.decoding.chat_session import ChatSession
  from gpt.runs.load import load_model
  from gpt.tokenizers import chat_format

  devices.setup_devices(1)
  loaded = load_model(directory, WHICH.value)
  if not chat_format.is_chat_tokenizer(loaded.tokenizer):
    raise UserError(
      f'{directory} was not trained to chat (its tokenizer has no '
      f'{chat_format.USER}). It can continue a text:\n'
      f'  python -m launch.generate --workdir={directory}\n'
      f'A chat model is trained with\n  {train}DIRECTORY'
    )
  session = ChatSession(
    loaded,
    seed=SEED.value,
    max_tokens=MAX_TOKENS.value,
    system=SYSTEM.value,
    **sampling_flags.options(),
  )
  say(f'{loaded.name}, {loaded.which} checkpoint, step {loaded.step}')
  return session


def answer(session, text: str, should_stop=lambda: False) -> None:
  """Streams the reply to a message, then says what was unusual about it."""
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


def notices(session) -> list[str]:
  """What a person should know about the last reply."""
  reply, window = session.reply, session.block_size
  lines = []
  if reply.dropped:
    lines.append(
      f'the context of {window} tokens is full: the model did not see '
      f'{reply.dropped} tokens, the oldest of the conversation'
    )
  lines += {
    'max_tokens': [f'cut after {reply.tokens} tokens (--max_tokens)'],
    'context': [f'the reply has filled the context of {window} tokens'],
    'stopped': ['stopped'],
  }.get(reply.ended, [])
  return [f'({line})' for line in lines]


def printable(text: str) -> str:
  """Without control characters: they are orders to a terminal."""
  return ''.join(
    c for c in text if c in '\n\t' or not (ord(c) < 32 or 127 <= ord(c) < 160)
  )


def say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


class Repl:
  """Reads messages and commands until /quit or the end of the input."""

  def __init__(self, session):
    self._session = session
    self._saved: set[pathlib.Path] = set()
    self._replying = self._stop = False
    self._interactive = sys.stdin.isatty()

  def run(self) -> None:
    signal.signal(signal.SIGINT, self._ctrl_c)
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
          self._answer(line.removeprefix('/') if line[0] == '/' else line)
    finally:
      save_history()

  def _ctrl_c(self, number, frame):
    """While a reply is made, a flag: libraries lose exceptions."""
    self._stop = True
    if not self._replying:
      raise KeyboardInterrupt

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

  def _answer(self, text: str) -> None:
    self._replying, self._stop = True, False
    try:
      answer(self._session, text, lambda: self._stop)
    except UserError as e:
      say(f'({e})')
    finally:
      self._replying = False

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
      say(f'(no command {name}; /help lists them, a message begins with //)')
    return False

  def _clear(self) -> None:
    self._session.clear()
    say('(the conversation is forgotten)')

  def _temperature(self, text: str) -> None:
    try:
      self._session.set_sampling(temperature=float(text))
      say(f'(temperature {float(text):g})')
    except (ValueError, UserError):
      say(f'(/temperature {text}: a number is wanted, such as 0.5)')

  def _system(self, text: str) -> None:
    self._session.system = text
    say('(system text set)' if text else '(no system text)')

  def _save(self, name: str) -> None:
    """Writes a file of this session's; another's is not overwritten."""
    path = pathlib.Path(os.path.expanduser(name)).absolute()
    if not name:
      say('(/save FILE: a name is wanted, such as talk.jsonl)')
    elif not self._session.messages:
      say('(nothing has been said yet)')
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
        say(f'({name} exists and is left alone: choose another name)')
      except OSError as e:
        say(f'(cannot write {name}: {e.strerror})')


def use_readline():
  """Line editing and history for input(); returns what saves the history."""
  try:
    import readline
  except ImportError:  # Windows: the terminal edits lines.
    return lambda: None
  path = pathlib.Path(os.path.expanduser(HISTORY))
  try:
    readline.read_history_file(path)
  except OSError:
    pass  # There is none yet.
  readline.set_history_length(HISTORY_LINES)

  def save() -> None:
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      readline.write_history_file(path)
    except OSError as e:
      say(f'(the history cannot be saved: {e.strerror})')

  return save


if __name__ == '__main__':
  cli.run(main)
