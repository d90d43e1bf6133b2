"""Compiling the kernels: whatever goes wrong, decoding goes on in JAX.

Most tests use a small script in place of the compiler.
"""

import concurrent.futures
import ctypes
import functools
import logging
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from jax import ffi

from gpt import kernels
from gpt.errors import UserError
from gpt.kernels import __main__, library
from gpt.model import GPTConfig
from gpt.native import build
from tests.kernels.test_kernels import SIZES, random_params, texts

CC = shutil.which('cc') or shutil.which('c++')
needs_compiler = pytest.mark.skipif(not CC, reason='no C compiler')


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
  """An empty cache, and `library.load` as in a process that just began."""
  monkeypatch.setenv('RGPT_KERNELS_DIR', str(tmp_path / 'kernels'))
  monkeypatch.delenv('RGPT_KERNELS_MARCH', raising=False)
  monkeypatch.delenv('RGPT_KERNELS', raising=False)
  monkeypatch.setattr(
    library, 'load', functools.cache(library.load.__wrapped__)
  )


@pytest.fixture
def compiler(tmp_path, monkeypatch):
  """compiler(body): CXX is a script; `body` runs with the result in $out.

  Its calls are counted in the file tmp_path / 'calls'.
  """

  def make(body: str) -> pathlib.Path:
    script = tmp_path / 'standin'
    script.write_text(
      '#!/bin/sh\n'
      'case "$*" in *--version) echo 1.0; exit;; esac\n'
      f'echo call >> {shlex.quote(str(tmp_path / "calls"))}\n'
      'while [ $# -gt 1 ]; do [ "$1" = -o ] && out=$2; shift; done\n'
      f'{body}\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv('CXX', str(script))
    return script

  return make


def made_of(tmp_path, source: str) -> str:
  """A body of `compiler` that gives a library made of C."""
  path = tmp_path / 'made.c'
  path.write_text(source)
  return f'{CC} -shared -fPIC -x c {shlex.quote(str(path))} -o "$out"'


def calls(tmp_path) -> int:
  return len((tmp_path / 'calls').read_text().splitlines())


def get() -> pathlib.Path:
  return build.library('include', '1.0')


def left_over(tmp_path) -> list[str]:
  """Files in the cache, but for locks."""
  return sorted(
    x.name for x in (tmp_path / 'kernels').iterdir() if x.suffix != '.lock'
  )


def assert_falls_back(caplog, reason: str) -> None:
  """Decoding works, with one line in the log that gives the reason."""
  cfg = GPTConfig(**SIZES, n_embd=8, n_head=1)
  with caplog.at_level(logging.INFO, 'gpt.native'):
    for _ in range(2):
      assert kernels.plan_for(cfg) is None
    (found,) = texts(cfg, random_params(cfg), [[1]], 4, seed=[0])
  assert len(found) == 4
  lines = [x for x in caplog.messages if not x.startswith('compil')]
  assert len(lines) == 1 and '\n' not in lines[0]
  assert lines[0].startswith('decoding without compiled kernels: ')
  assert reason in lines[0]
  with pytest.raises(UserError, match='need the compiled kernels: '):
    kernels.plan_for(cfg, 'bfloat16')


def test_without_a_compiler_it_says_so_once(monkeypatch, caplog, tmp_path):
  monkeypatch.delenv('CXX', raising=False)
  monkeypatch.setenv('PATH', str(tmp_path))
  assert_falls_back(caplog, 'no C++ compiler (c++, g++, clang++; CXX names an')


def test_a_wrong_cxx_is_named(monkeypatch, caplog):
  monkeypatch.setenv('CXX', 'no-such-compiler -O9')
  assert_falls_back(caplog, "CXX names 'no-such-compiler', which is not a prog")


def test_a_program_of_another_machine_is_no_compiler(compiler, caplog):
  compiler('').write_bytes(b'\x7fELF of some other machine')
  assert_falls_back(caplog, 'standin cannot be run: Exec format error')


def test_the_first_error_of_a_compiler_is_shown(compiler, caplog, tmp_path):
  compiler('echo "x.h:1: error: no float" >&2; echo "error: 2" >&2; exit 1')
  assert_falls_back(
    caplog, "standin cannot compile kernels.cc: 'x.h:1: error: no float'"
  )
  assert left_over(tmp_path) == []


def test_a_compiler_that_is_killed_is_no_crash(compiler, caplog):
  compiler('kill -9 $$')
  assert_falls_back(caplog, 'standin cannot compile kernels.cc: signal 9')


def test_a_compiler_that_makes_nothing_is_no_crash(compiler, caplog):
  compiler('')
  assert_falls_back(caplog, 'cannot run the kernels')


@needs_compiler
@pytest.mark.parametrize('fault', ['SIGILL', 'SIGABRT', 'SIGSEGV'])
def test_a_library_that_crashes_is_tried_elsewhere(
  fault, compiler, caplog, tmp_path
):
  source = f'#include <signal.h>\nvoid rgpt_probe() {{ raise({fault}); }}'
  compiler(made_of(tmp_path, source))
  assert_falls_back(caplog, 'cannot run the kernels: signal ')
  assert left_over(tmp_path) == []


@needs_compiler
def test_a_library_without_the_kernels_is_refused(compiler, caplog, tmp_path):
  compiler(made_of(tmp_path, 'void rgpt_probe() {}'))
  assert_falls_back(caplog, 'rgpt_fill')


def test_without_a_cache_there_is_one_line(monkeypatch, caplog):
  monkeypatch.delenv('RGPT_KERNELS_DIR')
  monkeypatch.setenv('RGPT_CACHE', 'off')
  assert_falls_back(caplog, 'RGPT_CACHE is off')


def test_a_cache_that_cannot_be_written_is_named(monkeypatch, caplog, tmp_path):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('RGPT_KERNELS_DIR', str(tmp_path / 'file'))
  assert_falls_back(caplog, f'{tmp_path}/file cannot be used: ')


def test_kernels_that_are_switched_off_need_no_line(monkeypatch, caplog):
  monkeypatch.setenv('RGPT_KERNELS', 'off')
  with caplog.at_level(logging.INFO, 'gpt.native'):
    assert kernels.plan_for(GPTConfig(8)) is None
  assert caplog.messages == []


@needs_compiler
def test_processes_that_start_together_compile_once(compiler, tmp_path):
  compiler('sleep 0.5; ' + made_of(tmp_path, 'void rgpt_probe() {}'))
  program = 'from gpt.native import build; print(build.library("i", "1.0"))'

  def one(_):
    done = subprocess.run(
      [sys.executable, '-c', program], capture_output=True, text=True
    )
    assert done.stderr == ''
    return done.stdout

  with concurrent.futures.ThreadPoolExecutor() as executor:
    first, second = executor.map(one, range(2))
  assert first == second
  assert calls(tmp_path) == 1
  ctypes.CDLL(first.strip())


@needs_compiler
def test_a_library_appears_whole_or_not_at_all(compiler, tmp_path):
  body = made_of(tmp_path, 'void rgpt_probe() {}')
  compiler(f'{body}; ls {tmp_path}/kernels > {tmp_path}/seen')
  path = get()
  assert (tmp_path / 'seen').read_text() == f'{path.stem}.lock\n'
  assert left_over(tmp_path) == [f'{path.stem}.sha256', path.name]


@needs_compiler
def test_a_library_that_was_cut_is_compiled_again(compiler, tmp_path):
  compiler(made_of(tmp_path, 'void rgpt_probe() {}'))
  path = get()
  whole = path.read_bytes()
  assert get() == path and calls(tmp_path) == 1
  path.write_bytes(whole[: len(whole) // 2])
  assert get() == path and calls(tmp_path) == 2
  assert path.read_bytes() == whole
  path.with_suffix('.sha256').unlink()
  assert get() == path and calls(tmp_path) == 3


@needs_compiler
def test_another_compiler_or_other_options_make_another_library(
  compiler, monkeypatch, tmp_path
):
  script = compiler(made_of(tmp_path, 'void rgpt_probe() {}'))
  path = get()
  monkeypatch.setenv('CXX', f'{script} -O3')
  assert get() != path
  assert build.library('include', '1.1') not in (path, get())


@needs_compiler
def test_a_prebuilt_library_needs_no_compiler(compiler, monkeypatch, tmp_path):
  compiler(made_of(tmp_path, 'void rgpt_probe() {}'))
  monkeypatch.setattr(build, 'march_flags', lambda march: [])
  flags = build.LEVELS['x86-64-v3']
  monkeypatch.setattr(build, 'cpu_flags', lambda: flags)
  levels = {}
  for level in ('x86-64-v3', 'x86-64-v4'):  # The latter is only compiled here.
    levels[level], _ = build.compiled(tmp_path / 'kernels', level, 'i', '1.0')
  monkeypatch.setenv('CXX', 'no-such-compiler')
  assert get() == levels['x86-64-v3']
  with monkeypatch.context() as m:
    m.setattr(build, 'cpu_flags', lambda: flags | build.LEVELS['x86-64-v4'])
    assert get() == levels['x86-64-v4']
  monkeypatch.setattr(build, 'cpu_flags', set)
  with pytest.raises(build.NoKernels, match='no-such-compiler'):
    get()
  monkeypatch.setenv('RGPT_KERNELS_MARCH', 'x86-64-v4')
  with pytest.raises(
    build.NoKernels, match='this processor is below x86-64-v4'
  ):
    get()


@needs_compiler
def test_the_command_prints_a_line_for_each_library_and_never_fails(
  compiler, capsys, monkeypatch, tmp_path
):
  compiler(made_of(tmp_path, 'void rgpt_probe() {}'))
  __main__.main()
  __main__.main()
  monkeypatch.setenv('CXX', 'no-such-compiler')
  __main__.main()
  assert re.fullmatch(
    r'Decoding kernels: compiled in \d s\n'
    r'Training kernels: compiled in \d s\n'
    r'Decoding kernels: present\n'
    r'Training kernels: present\n'
    r"Decoding kernels: none, decoding uses JAX: CXX names 'no-such-.*\n"
    r"Training kernels: none, training uses JAX: CXX names 'no-such-.*\n",
    capsys.readouterr().out,
  )


@needs_compiler
@pytest.mark.skipif(platform.machine() != 'x86_64', reason='flags of x86-64')
@pytest.mark.parametrize(
  'level',
  [
    pytest.param('x86-64-v2', marks=pytest.mark.slow),
    'x86-64-v3',
    pytest.param('x86-64-v4', marks=pytest.mark.slow),
  ],
)
@pytest.mark.parametrize('source', build.PURPOSES, ids=lambda x: x.stem)
def test_every_level_has_all_functions(source, level):
  command = [*build.find_compiler(), '-fsyntax-only', '-std=c++17', '-Wall']
  command += [f'-march={level}', '-isystem', ffi.include_dir(), str(source)]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert 'error' not in done.stderr and not done.returncode, done.stderr[:2000]
