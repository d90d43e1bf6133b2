"""Processes that encode blocks side by side, one for each core.

Their results come in the order of the blocks. Each process is a program of its
own (encoder_process.py): nothing of this one is copied into it, and it ends
when this one does, however that happens.
"""

import contextlib
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import gpt
from gpt.data.block_encoding import Encoded, Task
from gpt.data.pieces import Before
from gpt.data.sources import Source
from gpt.errors import UserError
from gpt.tokenizers import Tokenizer

ROOT = pathlib.Path(next(iter(gpt.__path__))).parent
# Blocks ahead of the one that is waited for, for each process.
AHEAD = 3
T = TypeVar('T')


def cores() -> int:
  """CPU cores this process may use."""
  try:
    return len(os.sched_getaffinity(0))
  except AttributeError:  # macOS, Windows
    return os.cpu_count() or 1


class EncoderPool:
  """Encodes blocks in processes; a context manager, which ends them."""

  def __init__(self, tokenizer: Tokenizer, **task: Any) -> None:
    """Starts the processes.

    Args:
      tokenizer: encodes the text.
      task: the other entries of Task.
    """
    self._exit = contextlib.ExitStack()
    directory = self._exit.enter_context(tempfile.TemporaryDirectory())
    tokenizer.save(directory)
    self._task = pickle.dumps(
      Task(directory, tokenizer.fingerprint, **task), pickle.HIGHEST_PROTOCOL
    )
    self._free: deque[subprocess.Popen] = deque()
    self.size = cores()
    for _ in range(self.size):
      self._free.append(self._started())
    self._threads = ThreadPoolExecutor(self.size)

  def _started(self) -> subprocess.Popen:
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    process = subprocess.Popen(
      [sys.executable, '-m', 'gpt.data.encoder_process'],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env={
        **os.environ,
        'PYTHONPATH': path.rstrip(os.pathsep),
        'TOKENIZERS_PARALLELISM': 'false',
        'RGPT_TOKENIZER_THREADS': '1',
      },
    )
    self._exit.callback(_end, process)
    assert process.stdin
    process.stdin.write(self._task)
    process.stdin.flush()
    return process

  def __enter__(self) -> 'EncoderPool':
    return self

  def __exit__(self, *_: object) -> None:
    self._exit.close()  # Ends what the threads wait for.
    self._threads.shutdown(cancel_futures=True)

  def map(
    self, blocks: Iterable[tuple[T, Source, Before]]
  ) -> Iterator[tuple[T, Encoded]]:
    """Yields (key, Encoded) of each (key, source, before), in order.

    Raises:
      UserError: a block cannot be read, or a process ended.
    """
    waiting: deque[tuple[T, Future]] = deque()
    for key, source, before in blocks:
      waiting.append((key, self._threads.submit(self._encode, source, before)))
      while len(waiting) > AHEAD * self.size or (
        waiting and waiting[0][1].done()
      ):
        first, future = waiting.popleft()
        yield first, future.result()
    for key, future in waiting:
      yield key, future.result()

  def _encode(self, source: Source, before: Before) -> Encoded:
    process = self._free.popleft()
    assert process.stdin and process.stdout
    try:
      pickle.dump((source, before), process.stdin, pickle.HIGHEST_PROTOCOL)
      process.stdin.flush()
      reply = pickle.load(process.stdout)
    except (EOFError, OSError, pickle.UnpicklingError) as e:
      raise UserError(
        'a process that encodes text ended (exit code '
        f'{process.poll()}): if it was killed for memory, let fewer run '
        '(taskset); the same command again goes on where this one stopped'
      ) from e
    finally:
      self._free.append(process)
    if isinstance(reply, UserError):
      raise reply
    if isinstance(reply, str):
      raise RuntimeError(f'encoding {source.name} failed:\n{reply}')
    return reply


def _end(process: subprocess.Popen) -> None:
  process.kill()
  process.wait()
  for pipe in (process.stdin, process.stdout):
    if pipe:
      with contextlib.suppress(OSError):
        pipe.close()
