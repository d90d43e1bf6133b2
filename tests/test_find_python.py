"""`make` creates its environments with the right Python of a machine.

Stand-ins on the PATH answer for interpreters of several versions.
"""

import os
import shutil
import subprocess
import sys

import pytest

from tests.support.workdirs import ROOT

TOOLS = ('bash', 'env', 'grep', 'sort', 'cat')


@pytest.fixture
def machine(tmp_path):
  """A directory to be the whole PATH; holds only the shell's tools."""
  path = tmp_path / 'bin'
  path.mkdir()
  for tool in TOOLS:
    (path / tool).symlink_to(shutil.which(tool))
  return path


def add(path, body):
  """A command that runs some lines of shell."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f'#!/usr/bin/env bash\n{body}\n')
  path.chmod(0o755)


def add_python(path, minor):
  """An interpreter that finds itself usable and reports 3.MINOR."""
  add(path, f'echo {minor} "$0"')


def find(machine, *args, code=0):
  """(stdout, stderr) of .ci/find_python."""
  done = subprocess.run(
    [ROOT / '.ci' / 'find_python', *args],
    env={'PATH': str(machine)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == code, done.stderr
  return done.stdout.rstrip('\n'), done.stderr


def test_the_newest_usable_python_wins(machine):
  for name, minor in (('python3', 11), ('python3.12', 12), ('python3.9', '')):
    add_python(machine / name, minor)
  add(machine / 'python3.14', 'exit 1')  # A shim of an unselected version.
  assert find(machine, 'any')[0] == str(machine / 'python3.12')


def test_pyenv_is_asked_for_versions_that_are_not_selected(machine, tmp_path):
  add_python(machine / 'python3', 11)
  add(machine / 'python3.13', 'exit 1')
  add(
    machine / 'pyenv',
    'case $1 in\n'
    '  versions) printf "%s\\n" 3.9.1 3.13.0 3.13.11 3.11.2 mine 3.13t ;;\n'
    f'  prefix) echo "{tmp_path}/$2" ;;\n'
    'esac',
  )
  newest = tmp_path / '3.13.11' / 'bin' / 'python'
  add_python(newest, 13)
  add_python(tmp_path / '3.13.0' / 'bin' / 'python', 13)
  assert find(machine, 'any')[0] == str(newest)
  assert find(machine, 'any', 'python3.13')[0] == str(newest)
  # The Apple set prefers an older one.
  assert find(machine, '13', 'python3.11', 'python3')[0] == str(
    machine / 'python3'
  )


def test_a_real_interpreter_is_judged_by_its_version(machine):
  (machine / 'python3').symlink_to(sys.executable)
  minor = sys.version_info.minor
  assert os.path.samefile(find(machine, str(minor))[0], sys.executable)
  _, error = find(machine, '10', code=2)
  assert 'no Python 3.11 to 3.10' in error and 'python3-venv' in error
  _, error = find(machine, 'any', 'python3.99', code=2)
  assert 'tried: python3.99' in error
