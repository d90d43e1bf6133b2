"""The command `rgpt`: `rgpt train ...` is `python -m launch.train ...`.

    rgpt                    lists the commands
    rgpt train --help       lists the flags of one
    rgpt import-model ...   a dash does for an underscore

Nothing but the standard library is imported here, so the list appears at once;
the chosen module then runs as `python -m` would run it.
"""

import os
import pathlib
import runpy
import sys

from launch import program, signals
from launch.program import BROKEN_PIPE, USAGE_ERROR
from launch.suggest import closest

# In the order in which they are listed.
GROUPS = {
  'Train': ('train', 'plan', 'local', 'prepare_data', 'problems')
  + ('evaluate', 'report', 'info'),
  'Use': ('generate', 'chat', 'serve', 'tokenize'),
  'Exchange with other programs': ('export', 'import_model', 'import_rgpt')
  + ('publish',),
  'Measure': ('bench.train', 'bench.decode', 'bench.serve', 'bench.turns')
  + ('bench.hostile', 'bench.recipes', 'bench.profile', 'bench.budgets')
  + ('bench.law', 'bench.corpora', 'bench.gpu', 'bench.scaling')
  + ('bench.cluster',),
}
COMMANDS = tuple(name for names in GROUPS.values() for name in names)
USAGE = """\
usage: rgpt COMMAND [--flag=value ...]

Train, resume, sample, chat with and serve small GPTs.
"""
EXAMPLES = """\
  rgpt train --config=quickstart --workdir=runs/first
  rgpt generate --workdir=runs/first --prompt='ROMEO:'

rgpt COMMAND --help lists the flags of a command.\
"""


def main() -> int:
  """Runs the command of sys.argv; returns the exit code, or exits with it."""
  signals.take_over()
  program.started_as_rgpt()
  return run(sys.argv[1:])


def run(args: list[str]) -> int:
  """Answers for itself, or hands over to the module of a command."""
  first = args[0] if args else '--help'
  if first == 'help' and len(args) > 1:
    args = [args[1], '--help']
    first = args[0]
  if first in ('--help', '-help', '-h', 'help'):
    return show(listing())
  if first in ('--version', '-version', '-V', 'version'):
    return show(f'rgpt {version()}')
  name = first.replace('-', '_')
  if name not in COMMANDS:
    print(f'error: {unknown(first)}', file=sys.stderr)
    return USAGE_ERROR
  sys.argv[1:] = args[1:]
  runpy.run_module(f'launch.{name}', run_name='__main__', alter_sys=True)
  return 0


def listing() -> str:
  """Every command with the first line of its module's docstring."""
  lines = [USAGE]
  for title, names in GROUPS.items():
    lines.append(f'{title}:')
    lines += [f'  {name:15}{description(name)}' for name in names]
    lines.append('')
  return '\n'.join([*lines, EXAMPLES])


def description(name: str) -> str:
  """The first line of a command's docstring; its module is not imported."""
  path = pathlib.Path(__file__).parent.joinpath(*name.split('.'))
  with open(f'{path}.py', encoding='utf-8') as file:
    return file.readline().strip().removeprefix('"""')


def version() -> str:
  """The installed version; 'unknown' where the package is not installed."""
  import importlib.metadata

  try:
    return importlib.metadata.version('rgpt')
  except importlib.metadata.PackageNotFoundError:
    return 'unknown'


def unknown(word: str) -> str:
  """The error for a word that names no command."""
  if word.startswith('-'):
    from launch import migrating

    hint = migrating.hint(word.lstrip('-').partition('=')[0])
    return hint or f'{word} without a command. rgpt --help lists the commands'
  name = word.replace('-', '_')
  near = [c for c in COMMANDS if c.startswith(f'{name}.')]
  near = near or closest(name, COMMANDS, 1)
  hint = f'Did you mean {" or ".join(near)}?' if near else ''
  hint = hint or 'rgpt --help lists the commands'
  return f'unknown command {word!r}. {hint}'


def show(text: str) -> int:
  """Prints a result; a reader that has left (`| head`) is no error."""
  try:
    print(text, flush=True)
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE
  return 0


if __name__ == '__main__':
  sys.exit(main())
