"""llama.cpp as a contestant: through llama-cpp-python, or a llama-bench binary.

The environment variable LLAMA_CPP names the binary or its folder; without it
the package is used (extra: bench).
"""

import json
import os
import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np

from gpt.errors import UserError

BINARY = 'LLAMA_CPP'
PROGRAMS = ('llama-bench', 'llama-server')


def find_binary(program: str) -> str | None:
  """The path of one of PROGRAMS, by the environment variable; None without it.

  The variable names the program, another of llama.cpp's beside it, or their
  folder.
  """
  given = os.environ.get(BINARY)
  if not given:
    return None
  if os.path.isdir(given):
    return os.path.join(given, program)
  if os.path.basename(given) in PROGRAMS:
    return os.path.join(os.path.dirname(given), program)
  return given


def decoder(
  gguf: str, tokens: int, threads: int, window: int
) -> tuple[Callable[[], Any], dict[str, Any]]:
  """(run, facts) of a contestant, see harness.serve: one stream of tokens.

  Args:
    gguf: the model file.
    tokens: to decode in a round, greedily, after a prompt of one.
    window: columns of the cache.

  Raises:
    ImportError: neither the package nor the binary is there.
    UserError: the binary fails.
  """
  facts = {'device': 'cpu', 'threads': threads}
  if binary := find_binary('llama-bench'):
    return _run_binary(binary, gguf, tokens, threads), facts
  return _run_package(gguf, tokens, threads, window), facts


def _run_package(
  gguf: str, tokens: int, threads: int, window: int
) -> Callable[[], int]:
  import llama_cpp

  model = llama_cpp.Llama(
    gguf,
    n_ctx=window,
    n_threads=threads,
    n_threads_batch=threads,
    verbose=False,
  )

  def run() -> int:
    model.reset()
    token = 0
    for _ in range(tokens):
      model.eval([token])
      logits = model._ctx.get_logits()
      token = int(np.ctypeslib.as_array(logits, (model.n_vocab(),)).argmax())
    return tokens

  return run


def _run_binary(
  binary: str, gguf: str, tokens: int, threads: int
) -> Callable[[], tuple[int, float]]:
  command = [binary, '-m', gguf, '-t', str(threads), '-p', '0']
  command += ['-n', str(tokens), '-r', '1', '-o', 'json']

  def run() -> tuple[int, float]:
    try:
      done = subprocess.run(command, capture_output=True, text=True, check=True)
      (result,) = json.loads(done.stdout)
      return tokens, tokens / float(result['avg_ts'])
    except (OSError, subprocess.CalledProcessError, ValueError, KeyError) as e:
      detail = getattr(e, 'stderr', None) or str(e)
      raise UserError(
        f'{BINARY}={binary} does not work as llama-bench: {detail.strip()}'
      ) from e

  return run
