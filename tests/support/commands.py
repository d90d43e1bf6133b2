"""Many command lines at the price of one start of Python.

A process imports what all of them need and forks once for each, so a command
costs some 20 ms instead of a second. Each still runs in a process of its own,
with its own streams, flags and exit code.
"""

import dataclasses
import json
import os
import subprocess
import sys

from tests.support.workdirs import ROOT

RUNNER = """
import importlib, json, os, runpy, sys, tempfile, traceback

job = json.load(sys.stdin)
for name in job['preload']:
  importlib.import_module(name)

def run(program, *args):
  sys.argv[:] = [program, *args]
  try:
    if program.endswith('.py'):
      runpy.run_path(program, run_name='__main__')
    else:
      runpy.run_module(program, run_name='__main__', alter_sys=True)
  except SystemExit as e:
    if e.code is None or isinstance(e.code, int):
      return e.code or 0
    print(e.code, file=sys.stderr)
    return 1
  except BaseException:
    traceback.print_exc()
    return 1
  return 0

done = []
for argv, stdin in zip(job['commands'], job['stdin']):
  with (
    tempfile.TemporaryFile() as given,
    tempfile.TemporaryFile() as out,
    tempfile.TemporaryFile() as err,
  ):
    given.write(stdin.encode('latin-1'))
    given.seek(0)
    child = os.fork()
    if not child:
      os.dup2(given.fileno(), 0)
      os.dup2(out.fileno(), 1)
      os.dup2(err.fileno(), 2)
      code = run(*argv)
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    texts = []
    for file in (out, err):
      file.seek(0)
      texts.append(file.read().decode())
    done.append([code, *texts])
json.dump(done, sys.stdout)
"""


@dataclasses.dataclass(frozen=True)
class Done:
  """The result of a command."""

  code: int
  out: str
  err: str


# For commands that load a model.
JAX = ('launch.cli', 'jax', 'gpt.runs.load')


def run_all(
  commands: list[list[str]],
  *,
  stdin: list[bytes] | None = None,
  cwd=ROOT,
  preload=('launch.cli',),
  **env,
) -> list[Done]:
  """Runs [module or script.py, *arguments] for each.

  Args:
    stdin: what each one reads; by default nothing.
    preload: modules that are imported once. Nothing that starts threads.
    env: variables of the environment of all of them.
  """
  done = subprocess.run(
    [sys.executable, '-c', RUNNER],
    cwd=cwd,
    env=os.environ | {'PYTHONPATH': str(ROOT), 'RGPT_HUGE_PAGES': '0'} | env,
    input=json.dumps(
      {
        'commands': [[str(word) for word in argv] for argv in commands],
        'stdin': [
          data.decode('latin-1') for data in stdin or [b''] * len(commands)
        ],
        'preload': preload,
      }
    ),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return [Done(*one) for one in json.loads(done.stdout)]


def assert_refused(done: Done, *texts: str) -> None:
  """One or two lines on stderr that hold the texts, and exit code 2."""
  assert done.code == 2, done
  assert 'Traceback' not in done.err
  assert done.err.startswith('error: ')
  assert len(done.err.strip().splitlines()) <= 2, done.err
  for text in texts:
    assert text in done.err


def is_running(pid: int) -> bool:
  """Whether a process runs; one that ended and was not waited for doesn't."""
  try:
    with open(f'/proc/{pid}/stat') as file:
      return file.read().rpartition(')')[2].split()[0] != 'Z'
  except OSError:
    return False
