"""Parsing, help, errors and exit codes, the same for every command.

A mistake on the command line is answered with one or two lines that name what
was given and the closest thing that exists, and exit code 2.
"""

import errno
import logging
import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags

from gpt import logs
from gpt.errors import UserError
from launch import config_flag, migrating, program, signals
from launch.program import BROKEN_PIPE, INTERRUPTED, USAGE_ERROR
from launch.suggest import closest, did_you_mean

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # --help lists them under the launcher.
HELP = ('-h', '-help', '--help')
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# The machine's or the file system's doing, not a bug of ours.
ENVIRONMENT = {
  *DISK_FULL,
  *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE),
  *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENODEV, errno.ENOTCONN),
  *(errno.ELOOP, errno.ENAMETOOLONG),
}


def run(
  main: Callable[[list[str]], int | None], allow_args: bool = False
) -> None:
  """Parses the flags, calls main(argv) and exits with what it returns.

  --help: 0. UserError: `error: ...` on stderr, exit code 2. Ctrl-C: 130. A
  reader that went away (`| head`): 141, in silence. A full disk, no memory, no
  access: 2. Anything else is a bug of ours and keeps its traceback. Unless
  `allow_args`, words that are not flags are errors.
  """

  def parse(argv: list[str]) -> list[str]:
    try:
      return parse_flags(argv, allow_args)
    except SystemExit:  # --helpfull was asked for; absl calls that a failure.
      _leave_with(0)

  def call(argv: list[str]) -> int | None:
    code = main(argv)
    sys.stdout.flush()  # Here a closed pipe can still be answered.
    return code

  signals.take_over()
  logs.to_console('stderr')
  # Not news, but absl shows it: "Unable to initialize backend 'tpu'".
  logging.getLogger('jax._src.xla_bridge').setLevel(logging.WARNING)
  if hasattr(sys.stdout, 'reconfigure'):
    # Never a crash over what a terminal's encoding lacks.
    sys.stdout.reconfigure(errors='replace')
  try:
    app.run(call, flags_parser=parse)
  except UserError as e:
    _flush_stdout()
    print(f'error: {program.as_called(str(e))}', file=sys.stderr)
    sys.exit(USAGE_ERROR)
  except KeyboardInterrupt:
    _flush_stdout()
    print('\ninterrupted', file=sys.stderr)
    _end_process(INTERRUPTED)
  except BrokenPipeError:
    _flush_stdout()
    _end_process(BROKEN_PIPE)
  except MemoryError:
    _fail('out of memory: close other programs, or raise ulimit -v')
  except OSError as e:
    if e.errno not in ENVIRONMENT:
      raise
    where = f' {e.filename}' if e.filename else ' the output'
    verb = 'write' if e.errno in DISK_FULL else 'use'
    where = where if e.filename or verb == 'write' else ' a file'
    _fail(f'cannot {verb}{where}: {e.strerror}')


def _fail(message: str) -> NoReturn:
  """Ends the process with one line about its environment."""
  _flush_stdout()
  print(f'error: {message}', file=sys.stderr)
  _end_process(USAGE_ERROR)


def _leave_with(code: int) -> NoReturn:
  """Exits in the ordinary way, unless the reader of stdout has left."""
  sys.stdout.flush()
  sys.exit(code)


def _end_process(code: int) -> NoReturn:
  """Ends the process at once.

  JAX may still be computing: an ordinary exit waits for that, or crashes when
  it takes away the memory under it.
  """
  sys.stderr.flush()
  os._exit(code)


def parse_flags(argv: list[str], allow_args: bool = False) -> list[str]:
  """Parses argv into FLAGS; returns the program name and the other words.

  Prints the help and exits where that is asked for.

  Raises:
    UserError: anything wrong with the flags.
  """
  try:
    args = FLAGS.read_flags_from_files(list(argv[1:]), force_gnu=False)
    end = args.index('--') if '--' in args else len(args)
    args[:end] = [_underscored(word) for word in args[:end]]
    if any(word in HELP for word in args[:end]):
      print(help_text(argv[0]))
      _leave_with(0)
    words = FLAGS([argv[0], *config_flag.canonical(argv[0], args)])
  except flags.UnrecognizedFlagError as e:
    raise UserError(_unknown_flag(e.flagname)) from e
  except flags.Error as e:
    raise UserError(_readable(str(e))) from e
  if len(words) > 1 and not allow_args:
    raise UserError(
      f'unexpected argument {words[1]!r}: flags are written --name=value '
      '(switches --name or --noname)'
    )
  return words


def help_text(path: str) -> str:
  """The page of --help: usage, the module's docstring, its flags.

  Args:
    path: sys.argv[0], under which absl keeps the flags of the main module.
  """
  main = sys.modules['__main__']
  spec = getattr(main, '__spec__', None)
  name = spec.name if spec else os.path.basename(path)
  if name.startswith('launch.'):
    name = program.command(name.removeprefix('launch.'))
  listed = FLAGS.main_module_help().replace(f'{path}:\n', '', 1).strip('\n')
  doc = program.as_called((main.__doc__ or '').strip())
  return f'usage: {name} [--flag=value ...]\n\n{doc}\n\nflags:\n{listed}'


def _underscored(word: str) -> str:
  """--max-tokens=5 -> --max_tokens=5, where that is a flag."""
  match = re.match(r'(--?)([a-zA-Z][\w.]*(?:-[\w.]+)+)(?==|$)', word)
  if not match:
    return word
  name = match[2].replace('-', '_')
  known = name in FLAGS or name.removeprefix('no') in FLAGS
  if not known and not config_flag.is_override(name):
    return word
  return match[1] + name + word[match.end() :]


def _unknown_flag(name: str) -> str:
  own = {'help'} | config_flag.overrides()
  for module, defined in FLAGS.flags_by_module_dict().items():
    if not module.startswith('absl.'):
      own |= {flag.name for flag in defined}
  if answer := migrating.hint(name, own):
    return answer
  near = [f'--{n}' for n in closest(name, sorted(own))]
  hint = did_you_mean(near) or '; --help lists the flags'
  return f'unknown flag --{name}{hint}'


def _readable(message: str) -> str:
  """absl's text for a bad value, in our words."""
  message = re.sub(
    r'flag --(\w+)=None: Flag --\w+ must have a value other than None\.',
    r'--\1 is required: --\1=...',
    message,
  )
  message = re.sub(r'^flag --', '--', message)
  message = re.sub(
    r'^Missing value for flag --(\S+)', r'--\1 needs a value: --\1=...', message
  )
  message = re.sub(
    r'^ERROR:: Unable to open flagfile: .*?\] (.*): (.*)',
    r'cannot read --flagfile=\2: \1',
    message,
  )
  message = re.sub(
    r'invalid literal for int\(\).*', 'expected an integer', message
  )
  message = re.sub(
    r'could not convert string to float.*', 'expected a number', message
  )
  return re.sub(
    r"\('Non-boolean argument to boolean flag'.*",
    'expected true or false',
    message,
  )


def _flush_stdout() -> None:
  """Keeps output above the error that follows; a closed pipe is no error."""
  try:
    sys.stdout.flush()
  except BrokenPipeError:
    # Else the interpreter complains when it flushes again at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
