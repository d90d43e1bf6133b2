"""Continue a prompt with a trained model, as a stream.

    python -m launch.generate --workdir=runs/l --prompt='ROMEO:'
    python -m launch.generate --workdir=runs/l --num_samples=3 --temperature=0.5
    printf 'ROMEO:' | python -m launch.generate --workdir=runs/l --prompt_file=-

Without a prompt, a model of documents (data.format lines) writes documents, one
a line (--top_p is then 1 by default), and reports how many of them are not in
its training set:

    python -m launch.generate --workdir=runs/names --num_samples=20

Completions go to stdout, everything else to stderr.
"""

import dataclasses
import os
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from absl import flags

from gpt.errors import UserError
from gpt.files import read_stream
from gpt.model.params import Params
from launch import cli, common_flags, pretrained, program

if TYPE_CHECKING:  # At run time, JAX waits until the flags are right.
  from gpt.decoding.prompt import Prompt
  from gpt.decoding.sampling import SamplingSettings
  from gpt.runs.load import LoadedModel
  from gpt.tokenizers import Tokenizer

WORKDIR = common_flags.workdir()
MODEL = pretrained.define('to use')
WHICH = common_flags.which()
BASE = common_flags.base()
PROMPT = flags.DEFINE_multi_string(
  'prompt',
  None,
  'Text to continue; may be repeated. Empty: start from BOS.',
)
PROMPT_FILE = flags.DEFINE_string(
  'prompt_file',
  None,
  'File with a text to continue, its last line end included; - is stdin.',
)
SHOW_PROMPT = flags.DEFINE_bool(
  'show_prompt', False, 'Print the prompt before its completion.'
)
MAX_PROMPT_BYTES = 1 << 26
MAX_TOKENS = common_flags.max_tokens(
  200,
  'Maximum length of a completion, in tokens. For documents the default is the '
  'context.',
)
NUM_SAMPLES = flags.DEFINE_integer(
  'num_samples',
  1,
  'Completions of each prompt; number i uses seed + i.',
  lower_bound=1,
)
SEED = common_flags.seed('The same seed gives the same text.')
SAMPLING = common_flags.sampling()
PRECISION = common_flags.precision()
WINDOW = flags.DEFINE_enum(
  'window',
  'slide',
  ['slide', 'exact', 'stop'],
  'When the context is full: drop its older half, drop one token at a time '
  '(slow), or stop (default for documents and chat).',
)
ROWS = 64  # Documents generated at once.


@dataclasses.dataclass(frozen=True)
class Job:
  """Everything a completion needs besides its prompt.

  Attributes:
    params: the weights, on the device.
    limit: maximum tokens of a completion.
    window: what happens when the context is full, see --window.
  """

  loaded: 'LoadedModel'
  params: Params
  limit: int
  window: str
  clock: 'Clock'

  def generate(
    self, start: 'Prompt', s: 'SamplingSettings'
  ) -> Iterator[tuple[int, list[int] | None]]:
    """(row, new token ids, None at its end), for each row of `s`."""
    from gpt.decoding import generation

    for row, new in generation.generate(
      self.loaded.model,
      self.params,
      [start.ids] * len(s.temperature),
      s,
      self.limit,
      bias_V=start.bias_V,
      stop_ids=start.stop_ids,
      window=self.window,
      weights=PRECISION.value,
    ):
      self.clock.tick(len(new or ()))
      yield row, new


def main(_: list[str]) -> None:
  started = time.perf_counter()
  chosen = pretrained.choose(MODEL(), WORKDIR.value)
  prompts = read_prompts()

  # JAX, after the flags are right.
  import jax

  from gpt import devices, kernels
  from gpt.decoding import generation
  from gpt.decoding.prompt import read_prompt

  n = NUM_SAMPLES.value
  samples = [sampling_params([SEED.value + i]) for i in range(n)]
  devices.setup_devices(1)
  loaded = chosen.load(WHICH.value, BASE.value)
  workdir = str(chosen.workdir)
  tokenizer, cfg = loaded.tokenizer, loaded.cfg
  format = loaded.config['data']['format']
  documents = format == 'lines' and not any(prompts)
  window, limit = WINDOW.value, MAX_TOKENS.value
  if format != 'text' and not flags.FLAGS['window'].present:
    window = 'stop'
  if documents and not flags.FLAGS['max_tokens'].present:
    limit = cfg.block_size
  for prompt in prompts:
    warn_of_unknown(tokenizer, prompt)
  starts = [
    read_prompt(tokenizer, format, prompt, cfg.block_size, limit)
    for prompt in prompts
  ]
  generation.check_request(cfg, [start.ids for start in starts], limit, window)
  kernels.plan_for(cfg, PRECISION.value)  # Raises if it is impossible.
  note(chosen.title(loaded))
  if format == 'chat':
    note(
      'This is a chat model. To talk with it: '
      f'python -m launch.chat --workdir={workdir}'
    )
  if PROMPT_FILE.value != '-' and stdin_has_data():
    note('note: stdin is not read; --prompt_file=- takes the prompt from it')

  params = jax.device_put(loaded.params)
  job = Job(loaded, params, limit, window, Clock(started))
  if documents:
    write_documents(job, starts[0], n, workdir)
    return
  for i, (prompt, start) in enumerate(zip(prompts, starts)):
    for j, s in enumerate(samples):
      write(headline(i, len(prompts), j, n))
      if SHOW_PROMPT.value:
        write(prompt)
      write_completion(job, start, s)
  note(job.clock.summary())


def write_completion(job: Job, start: 'Prompt', s: 'SamplingSettings') -> None:
  """Streams one completion, and a line end unless it closes with one."""
  from gpt.decoding.prompt import TurnDecoder

  decoder, last = TurnDecoder(job.loaded.tokenizer, start), ''
  for _, new in job.generate(start, s):
    piece = decoder.feed(new)
    write(piece)
    last = piece or last
  if not last.endswith('\n'):
    write('\n')


def write_documents(job: Job, start: 'Prompt', n: int, workdir: str) -> None:
  """n documents, one a line and many at once; then how many are new."""
  from gpt.runs.novelty import count_new

  made: list[str] = []
  for first in range(0, n, ROWS):
    seeds = [SEED.value + i for i in range(first, min(first + ROWS, n))]
    ids: list[list[int]] = [[] for _ in seeds]
    ended = set()
    for row, new in job.generate(start, sampling_params(seeds, top_p=1.0)):
      ids[row] += new or []
      ended |= {row} if new is None else set()
      while len(made) - first in ended:  # In order, as soon as complete.
        made.append(job.loaded.tokenizer.decode(ids[len(made) - first]))
        write(made[-1] + '\n')
  note(job.clock.summary())
  try:
    new_ones, known = count_new(job.loaded, workdir, made)
  except UserError as e:
    note(f'warning: cannot count how many of them are new: {e}')
    return
  note(f'{new_ones} of {n} are not in the training set of {known:,} documents')


def sampling_params(
  seeds: Sequence[int], top_p: float | None = None
) -> 'SamplingSettings':
  """The flags as sampling.settings, a row for each seed.

  Args:
    top_p: replaces the default of --top_p.
  """
  from gpt.decoding import sampling

  options = SAMPLING()
  if top_p is not None and not flags.FLAGS['top_p'].present:
    options['top_p'] = top_p
  return sampling.settings(len(seeds), seed=seeds, **options)


def headline(prompt: int, prompts: int, sample: int, samples: int) -> str:
  """The line above one of several completions; '' above a single one."""
  parts = [f'prompt {prompt + 1} of {prompts}'] if prompts > 1 else []
  if samples > 1:
    seed = SEED.value + sample
    parts.append(f'sample {sample + 1} of {samples}, seed {seed}')
  return f'--- {", ".join(parts)} ---\n' if parts else ''


def read_prompts() -> list[str]:
  """The prompts of --prompt, then that of --prompt_file; [''] without any.

  Files are read as training reads text: UTF-8, CRLF as LF, without a byte-order
  mark; otherwise as they are.
  """
  prompts = list(PROMPT.value or ())
  name = PROMPT_FILE.value
  if name is not None:
    try:
      data = (
        sys.stdin.buffer.read()
        if name == '-'
        else read_stream(name, MAX_PROMPT_BYTES)
      )
    except OSError as e:
      raise UserError(f'cannot read --prompt_file={name}: {e.strerror}') from e
    text = data.decode('utf-8', 'replace').removeprefix('\ufeff')
    try:
      data.decode('utf-8')
    except UnicodeDecodeError as e:
      note(f'warning: {name} is not UTF-8 ({e}); invalid parts became U+FFFD')
    prompts.append(text.replace('\r\n', '\n'))
  return prompts or ['']


def warn_of_unknown(tokenizer: 'Tokenizer', prompt: str) -> None:
  """Names the characters of a prompt that the vocabulary lacks."""
  from gpt.data.prepare import describe_unknown

  if unknown := tokenizer.count_unknown(prompt):
    nothing = sum(unknown.values()) == len(prompt)
    rest = '; nothing is left of the prompt' if nothing else ''
    note(f'warning: prompt: {describe_unknown(unknown)}{rest}')


def stdin_has_data() -> bool:
  """Whether stdin is a file or pipe with something to read; never waits."""
  try:
    import fcntl
    import termios

    status = os.fstat(sys.stdin.fileno())
    if stat.S_ISREG(status.st_mode):
      return status.st_size > os.lseek(sys.stdin.fileno(), 0, os.SEEK_CUR)
    if not (stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode)):
      return False
    waiting = fcntl.ioctl(sys.stdin.fileno(), termios.FIONREAD, b'\0' * 4)
    return any(waiting)
  except (ImportError, OSError, ValueError, AttributeError):
    return False  # No stdin, or a system that cannot tell.


def note(text: str) -> None:
  print(program.as_called(text), file=sys.stderr, flush=True)


def write(text: str) -> None:
  """To stdout at once: a reader sees each piece as it comes."""
  if text:
    sys.stdout.write(text)
    sys.stdout.flush()


class Clock:
  """Time to the first token, and tokens per second after it."""

  def __init__(self, started: float) -> None:
    self._started = self._last = started
    self._first: float | None = None
    self._tokens, self._after_first = 0, 0

  def tick(self, tokens: int) -> None:
    """Some tokens have arrived."""
    self._last = time.perf_counter()
    self._tokens += tokens
    if self._first is None:
      self._first = self._last
    else:
      self._after_first += tokens

  def summary(self) -> str:
    """'200 tokens; the first after 1.5 s, then 900/s'."""
    first = (self._first or self._last) - self._started
    seconds = self._last - self._started - first
    # Tokens of one block arrive together: that gives no rate.
    known = seconds > 0.01
    rate = f', then {self._after_first / seconds:,.0f}/s' if known else ''
    return f'{self._tokens} tokens; the first after {first:.1f} s{rate}'


if __name__ == '__main__':
  cli.run(main)
