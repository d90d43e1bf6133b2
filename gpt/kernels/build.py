"""Compiles the kernels for this machine, once, into the cache directory.

The name of the library has a fingerprint of everything it depends on: sources,
compiler, flags, jaxlib and processor. A library that was built for a level of
the instruction set instead, e.g. x86-64-v3 in a container image, is used where
there is no compiler and the processor has that level.
"""

import hashlib
import logging
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time

from gpt import files
from gpt.errors import quoted

log = logging.getLogger('rgpt')

SOURCES = pathlib.Path(__file__).parent
COMPILERS = ('c++', 'g++', 'clang++')
# Never -ffast-math: it would cancel the rounding of exp.
FLAGS = (
  '-O2',
  '-std=c++17',
  '-fPIC',
  '-shared',
  '-pthread',
  '-fno-math-errno',
  '-fno-trapping-math',
  '-ffp-contract=fast',
)
COMPILE_SECONDS = 300
# Flags of /proc/cpuinfo that a level needs beyond those of x86-64-v2.
LEVELS = {
  'x86-64-v4': {'avx512f', 'avx512bw', 'avx512cd', 'avx512dq', 'avx512vl'},
  'x86-64-v3': {'avx2', 'bmi1', 'bmi2', 'f16c', 'fma', 'movbe'},
}


class NoKernels(Exception):
  """Why there is no library; one line for the user."""


def library(include: str, jaxlib: str) -> pathlib.Path:
  """The library for this machine; compiled first if it is not there yet.

  Args:
    include: directory of XLA's headers.
    jaxlib: its version.

  Raises:
    NoKernels: there is none, and it cannot be compiled.
  """
  directory = cache_directory()
  march = os.environ.get('RGPT_KERNELS_MARCH', 'native')
  compiler = find_compiler()
  if compiler:
    path = directory / name_of(jaxlib, march, compiler)
    if not path.exists():
      compile_once(path, compiler, march, include)
    return path
  present = cpu_flags()
  for level, needed in LEVELS.items():
    if needed <= present:
      found = sorted(directory.glob(f'{prefix(jaxlib, level)}-*.so'))
      if found:
        return found[0]
  raise NoKernels(
    f'no C++ compiler ({", ".join(COMPILERS)}; CXX names another)'
  )


def cache_directory() -> pathlib.Path:
  """$RGPT_KERNELS_DIR, else $RGPT_CACHE/kernels, else ~/.cache/rgpt/kernels.

  Raises:
    NoKernels: RGPT_CACHE is off.
  """
  if given := os.environ.get('RGPT_KERNELS_DIR'):
    return pathlib.Path(given)
  root = os.environ.get('RGPT_CACHE') or os.path.join(
    os.path.expanduser('~'), '.cache', 'rgpt'
  )
  if root == 'off':
    raise NoKernels('RGPT_CACHE is off, and there is nowhere to keep them')
  return pathlib.Path(root) / 'kernels'


def find_compiler() -> str | None:
  """$CXX or the first C++ compiler in PATH; None without one."""
  given = os.environ.get('CXX')
  for name in [given] if given else COMPILERS:
    if found := shutil.which(name):
      return found
  return None


def prefix(jaxlib: str, march: str) -> str:
  """The part of a library's name that does not depend on a compiler."""
  h = hashlib.sha256(' '.join(FLAGS).encode())
  for path in sorted(SOURCES.glob('*.h')) + sorted(SOURCES.glob('*.cc')):
    h.update(path.read_bytes())
  return f'{march}-jaxlib{jaxlib}-{h.hexdigest()[:12]}'


def name_of(jaxlib: str, march: str, compiler: str) -> str:
  """The file name of a library; -march=native depends on the processor."""
  version = subprocess.run(
    [compiler, '--version'], capture_output=True, text=True, check=False
  ).stdout
  key = [version]
  if march == 'native':
    key += [platform.machine(), platform.processor(), *sorted(cpu_flags())]
  h = hashlib.sha256('\n'.join(key).encode())
  return f'{prefix(jaxlib, march)}-{h.hexdigest()[:12]}.so'


def cpu_flags() -> set[str]:
  """Instruction sets of this processor; empty where Linux does not say."""
  try:
    text = pathlib.Path('/proc/cpuinfo').read_text(errors='replace')
  except OSError:
    return set()
  found = re.search(r'^(?:flags|Features)\s*: (.*)$', text, re.MULTILINE)
  return set(found.group(1).split()) if found else set()


def compile_once(
  path: pathlib.Path, compiler: str, march: str, include: str
) -> None:
  """Compiles to `path`; of several processes one compiles, the others wait.

  Raises:
    NoKernels: it cannot be compiled, or does not run here.
  """
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = open(path.with_suffix('.lock'), 'a')
    with lock, files.locked(lock):
      if path.exists():
        return
      log.info('compiling the decoding kernels for this machine, once ...')
      began = time.perf_counter()
      with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        built = pathlib.Path(scratch) / 'kernels.so'
        run(
          [
            compiler,
            *FLAGS,
            *march_flags(march),
            '-isystem',
            include,
            str(SOURCES / 'kernels.cc'),
            '-o',
            str(built),
          ],
          'does not compile',
        )
        # An instruction that this processor lacks would end this process.
        probe = 'import ctypes, sys; ctypes.CDLL(sys.argv[1]).rgpt_probe()'
        if march == 'native':
          run([sys.executable, '-c', probe, str(built)], 'does not run')
        os.replace(built, path)
      log.info('compiled in %.0f s', time.perf_counter() - began)
  except OSError as e:
    raise NoKernels(f'{path.parent} cannot be used: {e.strerror or e}') from e


def march_flags(march: str) -> list[str]:
  """Compiler flags; Apple's clang takes -mcpu instead."""
  arm = platform.machine() in ('arm64', 'aarch64')
  return [f'-mcpu={march}' if arm else f'-march={march}']


def run(command: list[str], problem: str) -> None:
  """Runs a command; NoKernels with its last words if it fails."""
  try:
    done = subprocess.run(
      command,
      capture_output=True,
      text=True,
      errors='replace',
      timeout=COMPILE_SECONDS,
      check=False,
    )
  except subprocess.TimeoutExpired as e:
    raise NoKernels(f'{command[0]} took over {COMPILE_SECONDS} s') from e
  if done.returncode:
    lines = [x for x in done.stderr.splitlines() if 'error' in x] or ['']
    detail = quoted(lines[0]) if lines[0] else f'exit {done.returncode}'
    raise NoKernels(f'kernels.cc {problem} with {command[0]}: {detail}')
