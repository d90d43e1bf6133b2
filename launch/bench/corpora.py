"""Measure encoding of a large text beside `tokenizers` alone.

    python -m launch.bench.corpora --megabytes=1000 --directory=runs/corpus
    python -m launch.bench.corpora --path='data/*.txt' --directory=runs/corpus

Generates a text (words of a made-up language by Zipf's law, deleted at the
end), trains a byte-level BPE on it, and encodes it into shards with all cores.
Before and after that the library's encode_batch_fast encodes a part of the text
in as many processes, on one thread each. All are counted in tokens per second
of processor time. The last line is JSON.
"""

import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import resource
import statistics
import threading
import time

import numpy as np
from absl import flags

from launch import cli
from launch.bench import machine

MEGABYTES = flags.DEFINE_integer('megabytes', 200, 'Size of the text.')
PATH = flags.DEFINE_string('path', '', 'Text to encode instead (data.path).')
DIRECTORY = flags.DEFINE_string('directory', None, 'For text and shards.')
VOCAB_SIZE = flags.DEFINE_integer('vocab_size', 32_000, 'Of the tokenizer.')
PEER_MB = flags.DEFINE_integer('peer_mb', 24, 'Text for the peer.')
flags.mark_flag_as_required('directory')

WORDS, EXPONENT = 200_000, 1.05
BATCH, DOCUMENT = 64, 4000  # Documents of the peer: number, characters.


def write_text(path: pathlib.Path, size: int) -> None:
  """Writes about `size` bytes of sentences."""
  rng = np.random.default_rng(0)
  sounds = [list('bdfgklmnprstvwh'), list('aeiou'), list('nrslt') + [''] * 5]
  made: set[str] = set()
  while len(made) < WORDS:
    n = int(rng.integers(1, 5))
    drawn = [rng.integers(len(kind), size=n) for kind in sounds]
    syllables = zip(*drawn)
    made.add(
      ''.join(kind[i] for at in syllables for kind, i in zip(sounds, at))
    )
  ranked = sorted(sorted(made), key=lambda w: len(w) + 6 * rng.random())
  words = np.array(ranked, object)
  weights = np.cumsum(1 / np.arange(1, WORDS + 1) ** EXPONENT)
  ends = np.array([' ', ', ', '. ', '.\n', '.\n\n', ' 1984 '], object)
  odds = np.cumsum([0.86, 0.05, 0.06, 0.015, 0.01])
  written = 0
  with open(path, 'w') as file:
    while written < size:
      draws = np.empty((200_000, 2), object)
      ranks = np.searchsorted(weights, rng.random(len(draws)) * weights[-1])
      draws[:, 0] = words[ranks]
      draws[:, 1] = ends[np.searchsorted(odds, rng.random(len(draws)))]
      written += file.write(''.join(draws.ravel().tolist()))


def cpu_seconds() -> float:
  """Of this process and of its children that have ended."""
  both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  used = [resource.getrusage(who) for who in both]
  return sum(u.ru_utime + u.ru_stime for u in used)


class PeakMemory:
  """The most resident memory of this process and its children together."""

  def __enter__(self) -> 'PeakMemory':
    self.bytes, self._ended = 0, threading.Event()
    self._thread = threading.Thread(target=self._watch)
    self._thread.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._ended.set()
    self._thread.join()

  def _watch(self) -> None:
    import psutil

    own = psutil.Process()
    while not self._ended.wait(0.2):
      total = 0
      for process in [own, *own.children(recursive=True)]:
        try:
          total += process.memory_info().rss
        except psutil.Error:
          pass
      self.bytes = max(self.bytes, total)


def stored_bytes(directory: pathlib.Path) -> int:
  """Of the shards that are complete."""
  return sum(x.stat().st_size for x in directory.glob('cache/*/*.bin'))


def peer_rate(directory: str, text: str) -> float:
  """Tokens per second of processor time of the library on one thread."""
  import tokenizers

  library = tokenizers.Tokenizer.from_file(f'{directory}/hf_tokenizer.json')
  documents, start = [], 0
  while start < len(text):
    end = text.find('\n', start + DOCUMENT) + 1 or len(text)
    documents.append(text[start:end])
    start = end
  began, count = time.process_time(), 0
  for i in range(0, len(documents), BATCH):
    part = documents[i : i + BATCH]
    for one in library.encode_batch_fast(part, add_special_tokens=False):
      count += len(one)
  return count / (time.process_time() - began)


def peer_rates(directory: str, text: str, processes: int) -> list[float]:
  """`peer_rate` of processes side by side, one per core, as ours are."""
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(processes, context) as pool:
    jobs = [pool.submit(peer_rate, directory, text) for _ in range(processes)]
    return [job.result() for job in jobs]


def main(_: list[str]) -> None:
  os.environ['TOKENIZERS_PARALLELISM'] = 'false'
  from gpt import logs
  from gpt.data import corpus_tokens, encoder_pool, text_sample
  from gpt.data.pieces import iter_pieces
  from gpt.data.sources import find_sources
  from gpt.data.text_reader import TextStats
  from gpt.tokenizers import build_tokenizer

  logs.to_console('stdout')
  directory = pathlib.Path(DIRECTORY.value)
  directory.mkdir(parents=True, exist_ok=True)
  text = directory / 'text.txt'
  if not PATH.value:
    write_text(text, MEGABYTES.value * 1_000_000)
  corpus_tokens.SHARDS_FROM = 0
  sources = find_sources(PATH.value or str(text))

  def pieces():
    chosen = text_sample.sample(sources, whole_lines=False)
    found = iter_pieces(chosen, 'none', TextStats())
    return (piece for piece in found if piece)

  began = time.monotonic()
  tokenizer = build_tokenizer('hf', pieces(), VOCAB_SIZE.value)
  print(f'tokenizer: {time.monotonic() - began:.1f} s')
  part = ''
  for piece in pieces():
    part += piece
    if len(part) >= PEER_MB.value * 1_000_000:
      break
  tokenizer.save(directory / 'tokenizer')
  size = encoder_pool.cores()
  peer = peer_rates(str(directory / 'tokenizer'), part, size)
  kept = stored_bytes(directory)  # By a run that was stopped.
  began, used = time.monotonic(), cpu_seconds()
  with PeakMemory() as memory:
    tokens, _, info = corpus_tokens.load_or_encode(
      sources, tokenizer, 'none', directory / 'cache'
    )
  seconds, used = time.monotonic() - began, cpu_seconds() - used
  encoded = len(tokens) * (1 - kept / stored_bytes(directory))
  began = time.monotonic()
  corpus_tokens.load_or_encode(sources, tokenizer, 'none', directory / 'cache')
  again = time.monotonic() - began
  peer += peer_rates(str(directory / 'tokenizer'), part, size)
  if not PATH.value:
    text.unlink()
  found = {
    'machine': machine.facts(),
    'text_mb': info.stats.bytes / 1e6,
    'tokens': len(tokens),
    'tokens_encoded_now': round(encoded),
    'seconds': seconds,
    'cpu_seconds': used,
    'tokens_per_cpu_second': encoded / used,
    'peer_tokens_per_cpu_second': peer,
    'ratio': encoded / used / statistics.mean(peer),
    'peak_memory_mb': memory.bytes / 1e6,
    'second_start_seconds': again,
  }
  print(json.dumps(found))


if __name__ == '__main__':
  cli.run(main)
