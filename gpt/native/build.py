"""Compiles the kernels for this machine, once, into the cache directory.

The name of the library has a fingerprint of what it depends on: sources,
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
import shlex
import shutil
import subprocess
import sys
import tempfile
import time

from gpt import files
from gpt.errors import quoted

log = logging.getLogger(__name__)

HERE = pathlib.Path(__file__).parent
SHARED = HERE.parent / 'kernels'
DECODING = SHARED / 'kernels.cc'
TRAINING = HERE / 'training.cc'
# What each is called in messages and in names of files.
PURPOSES = {DECODING: 'decoding', TRAINING: 'training'}
COMPILERS = ('c++', 'g++', 'clang++')
# Never -ffast-math: it would cancel the rounding of exp.
FLAGS = (
  '-O3',
  '-std=c++17',
  '-fPIC',
  '-shared',
  '-pthread',
  '-fno-math-errno',
  '-fno-trapping-math',
  '-ffp-contract=fast',
  # GCC tuned for AMD's processors splits multiply-adds in some tiles only, and
  # a row's result would depend on its tile. clang ignores the parameter.
  '--param=avoid-fma-max-bits=0',
)
COMPILE_SECONDS = 300
# Flags of /proc/cpuinfo that a level needs beyond those of x86-64-v2.
LEVELS = {
  'x86-64-v4': {'avx512f', 'avx512bw', 'avx512cd', 'avx512dq', 'avx512vl'},
  'x86-64-v3': {'avx2', 'bmi1', 'bmi2', 'f16c', 'fma', 'movbe'},
}


class NoKernels(Exception):
  """Why there is no library; one line for the user."""


def library(
  include: str, jaxlib: str, source: pathlib.Path = DECODING
) -> pathlib.Path:
  """The library for this machine; compiled first if it is not there yet.

  Args:
    include: directory of XLA's headers.
    jaxlib: its version.
    source: DECODING or TRAINING.

  Raises:
    NoKernels: there is none, and it cannot be compiled.
  """
  directory, march = cache_directory(), chosen_march()
  try:
    if not LEVELS.get(march, set()) <= cpu_flags():
      raise NoKernels(f'this processor is below {march}, RGPT_KERNELS_MARCH')
    return compiled(directory, march, include, jaxlib, source)[0]
  except NoKernels:
    if found := prebuilt(directory, jaxlib, source):
      return found
    raise


def chosen_march() -> str:
  """$RGPT_KERNELS_MARCH; 'native' without it."""
  return os.environ.get('RGPT_KERNELS_MARCH') or 'native'


def prebuilt(
  directory: pathlib.Path, jaxlib: str, source: pathlib.Path = DECODING
) -> pathlib.Path | None:
  """A library for the highest level that this processor has, if any."""
  present = cpu_flags()
  for level, needed in LEVELS.items():
    if needed <= present:
      name = prefix(jaxlib, level, source)
      for path in sorted(directory.glob(f'{name}-*.so')):
        if is_whole(path):
          return path
  return None


def compiled(
  directory: pathlib.Path,
  march: str,
  include: str,
  jaxlib: str,
  source: pathlib.Path = DECODING,
) -> tuple[pathlib.Path, float]:
  """(a library for `march`, the seconds of compiling it: 0 if it was there).

  Raises:
    NoKernels: see `library`.
  """
  compiler = find_compiler()
  path = directory / name_of(jaxlib, march, compiler, source)
  seconds = 0.0
  if not is_whole(path):
    seconds = compile_once(path, compiler, march, include, source)
  return path, seconds


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


def find_compiler() -> list[str]:
  """The command $CXX, or the first C++ compiler in PATH.

  Raises:
    NoKernels: there is none.
  """
  given = shlex.split(os.environ.get('CXX', ''))
  for program, *options in [given] if given else [[x] for x in COMPILERS]:
    if found := shutil.which(program):
      return [found, *options]
  if given:
    raise NoKernels(f'CXX names {quoted(given[0])}, which is not a program')
  raise NoKernels(
    f'no C++ compiler ({", ".join(COMPILERS)}; CXX names another)'
  )


def prefix(jaxlib: str, march: str, source: pathlib.Path = DECODING) -> str:
  """The part of a library's name that does not depend on a compiler."""
  h = hashlib.sha256(' '.join(FLAGS).encode())
  headers = {*SHARED.glob('*.h'), *source.parent.glob('*.h')}
  for path in (source, *sorted(headers)):
    h.update(path.read_bytes())
  return f'{PURPOSES[source]}-{march}-jaxlib{jaxlib}-{h.hexdigest()[:12]}'


def name_of(
  jaxlib: str,
  march: str,
  compiler: list[str],
  source: pathlib.Path = DECODING,
) -> str:
  """The file name of a library; -march=native depends on the processor."""
  done = run([*compiler, '--version'], 'cannot be run')
  key = [*compiler[1:], done]
  if march == 'native':
    key += [platform.machine(), platform.processor(), *sorted(cpu_flags())]
  h = hashlib.sha256('\n'.join(key).encode())
  return f'{prefix(jaxlib, march, source)}-{h.hexdigest()[:12]}.so'


def cpu_flags() -> set[str]:
  """Instruction sets of this processor; empty where Linux does not say."""
  try:
    text = pathlib.Path('/proc/cpuinfo').read_text(errors='replace')
  except OSError:
    return set()
  found = re.search(r'^(?:flags|Features)\s*: (.*)$', text, re.MULTILINE)
  return set(found.group(1).split()) if found else set()


def is_whole(path: pathlib.Path) -> bool:
  """Whether a library is there, as it was compiled.

  Loading a file that a full disk or a crash has cut would end this process.
  """
  try:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return path.with_suffix('.sha256').read_text() == digest
  except (OSError, UnicodeDecodeError):
    return False


def compile_once(
  path: pathlib.Path,
  compiler: list[str],
  march: str,
  include: str,
  source: pathlib.Path,
) -> float:
  """Compiles to `path`; of several processes one compiles, the others wait.

  Returns:
    The seconds it took; 0 if another process did it.

  Raises:
    NoKernels: it cannot be compiled, or does not run here.
  """
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.remove_leftovers(path.parent)
    with open(path.with_suffix('.lock'), 'a') as lock, files.locked(lock):
      if is_whole(path):
        return 0.0
      purpose = PURPOSES[source]
      log.info('compiling the %s kernels for this machine, once ...', purpose)
      began = time.perf_counter()
      with tempfile.TemporaryDirectory(
        prefix='.kernels.tmp-', dir=path.parent
      ) as scratch:
        built = pathlib.Path(scratch) / 'kernels.so'
        command = [*compiler, *FLAGS, *march_flags(march)]
        command += ['-isystem', include, str(source)]
        run([*command, '-o', str(built)], f'cannot compile {source.name}')
        if LEVELS.get(march, set()) <= cpu_flags():
          probe(built)
        binary = built.read_bytes()
      digest = hashlib.sha256(binary).hexdigest()
      files.write_atomic(path.with_suffix('.sha256'), digest.encode())
      files.write_atomic(path, binary)
      seconds = time.perf_counter() - began
      log.info('compiled in %.0f s', seconds)
      return seconds
  except OSError as e:
    raise NoKernels(f'{path.parent} cannot be used: {e.strerror or e}') from e


def march_flags(march: str) -> list[str]:
  """Compiler flags; Apple's clang takes -mcpu instead."""
  arm = platform.machine() in ('arm64', 'aarch64')
  return [f'-mcpu={march}' if arm else f'-march={march}']


def probe(path: pathlib.Path) -> None:
  """NoKernels if a library does not run here; tried in a process of its own.

  An instruction that the processor lacks ends the process that meets it.
  """
  call = 'import ctypes, sys; ctypes.CDLL(sys.argv[1]).rgpt_probe()'
  run([sys.executable, '-c', call, str(path)], 'cannot run the kernels')


def run(command: list[str], problem: str) -> str:
  """The output of a command; NoKernels with its first error if it fails."""
  name = pathlib.Path(command[0]).name
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
    raise NoKernels(f'{name} took over {COMPILE_SECONDS} s') from e
  except OSError as e:
    raise NoKernels(f'{name} {problem}: {e.strerror or e}') from e
  code = done.returncode
  if code:
    lines = [x for x in done.stderr.splitlines() if 'error' in x.lower()]
    how = f'signal {-code}' if code < 0 else f'exit status {code}'
    raise NoKernels(f'{name} {problem}: {quoted(lines[0]) if lines else how}')
  return done.stdout
