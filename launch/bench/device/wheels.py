"""Packages from a folder, before anything that may be missing is imported.

Standard library only.
"""

import importlib.metadata
import pathlib
import re
import subprocess
import sys
from collections.abc import Sequence

FLAG = '--wheels'


def folder_of(args: Sequence[str]) -> str:
  """The value of --wheels among arguments; '' without it."""
  for word, following in zip(args, [*args[1:], '']):
    if word == FLAG:
      return following
    if word.startswith(f'{FLAG}='):
      return word.partition('=')[2]
  return ''


def missing(folder: str) -> list[str]:
  """Distributions whose wheels lie in a folder and that are not installed."""
  names = {
    re.sub(r'[-_.]+', '-', path.name.split('-')[0]).lower()
    for path in pathlib.Path(folder).glob('*.whl')
  }
  return sorted(name for name in names if not _is_installed(name))


def _is_installed(name: str) -> bool:
  try:
    importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return False
  return True


def install_missing(args: Sequence[str]) -> None:
  """Installs what a folder has and this Python lacks, without a network.

  Exits with 2 if that fails.
  """
  folder = folder_of(args)
  if not folder:
    return
  if not pathlib.Path(folder).is_dir():
    _fail(f'{FLAG}={folder} is not a directory of wheels')
  names = missing(folder)
  if not names:
    return
  print(f'installing from {folder}: {", ".join(names)}', file=sys.stderr)
  command = [sys.executable, '-m', 'pip', 'install', '-q', '--no-index']
  command += ['--disable-pip-version-check', f'--find-links={folder}', *names]
  if subprocess.run(command, stdout=sys.stderr.fileno()).returncode:
    _fail(f'{FLAG}={folder}: pip could not install {", ".join(names)}')


def _fail(message: str) -> None:
  print(f'error: {message}', file=sys.stderr)
  sys.exit(2)
