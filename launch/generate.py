"""Continue a prompt with a trained model; the text streams as it is made.

    python -m launch.generate --workdir=runs/l --prompt='ROMEO:'
    python -m launch.generate --workdir=runs/l --num_samples=3 --temperature=0.5
    printf 'ROMEO:' | python -m launch.generate --workdir=runs/l --prompt_file=-

A model of documents (data.format lines) that is given no prompt makes up
documents, one a line, and how many are not in its training set is said:

    python -m launch.generate --workdir=runs/names --num_samples=20

Only the completion goes to stdout; everything about it goes to stderr.
"""

import pathlib
import signal
import sys
import time

from absl import flags

from gpt.errors import UserError
from launch import cli, sampling_flags

WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of a trained run.')
WHICH = flags.DEFINE_enum(
  'which',
  'best',
  ['best', 'latest'],
  'The checkpoint of the lowest validation loss, or the newest.',
)
PROMPT = flags.DEFINE_multi_string(
  'prompt',
  None,
  'Text to continue; may be given several times. Empty: start from BOS.',
)
PROMPT_FILE = flags.DEFINE_string(
  'prompt_file',
  None,
  'File with a text to continue, to its last line end; - is stdin.',
)
SHOW_PROMPT = flags.DEFINE_bool(
  'show_prompt', False, 'Print the prompt before its completion.'
)
MAX_TOKENS = flags.DEFINE_integer(
  'max_tokens',
  200,
  'Most tokens of a completion. Documents: default the context.',
)
NUM_SAMPLES = flags.DEFINE_integer(
  'num_samples',
  1,
  'Completions of each prompt; number i uses seed + i.',
  lower_bound=1,
)
SEED = flags.DEFINE_integer('seed', 42, 'The same seed gives the same text.')
flags.adopt_module_key_flags(sampling_flags)
WINDOW = flags.DEFINE_enum(
  'window',
  'slide',
  ['slide', 'exact', 'stop'],
  'When the context is full: drop its older half, drop one token at a time '
  '(slow), or stop (default for documents and chat).',
)
# Documents that are made at once.
ROWS = 64


def main(_):
  started = time.perf_counter()
  ctrl_c = CtrlC()
  if not WORKDIR.value:
    raise UserError('--workdir=DIRECTORY of a trained run is needed')
  prompts = read_prompts()

  # JAX, after the flags are right.
  import jax

  from gpt import devices
  from gpt.decoding import generation
  from gpt.decoding.prompt import Shown, read_prompt
  from gpt.runs.load import load_model

  n = NUM_SAMPLES.value
  samples = [sampling_params([SEED.value + i]) for i in range(n)]
  devices.setup_devices(1)
  loaded = load_model(WORKDIR.value, WHICH.value)
  format, T = loaded.config['data']['format'], loaded.cfg.block_size
  window = WINDOW.value
  if format != 'text' and not flags.FLAGS['window'].present:
    window = 'stop'
  documents = format == 'lines' and not any(prompts)
  limit = MAX_TOKENS.value
  if documents and not flags.FLAGS['max_tokens'].present:
    limit = T
  for prompt in prompts:
    warn_of_unknown(loaded.tokenizer, prompt)
  starts = [
    read_prompt(loaded.tokenizer, format, prompt, T, limit)
    for prompt in prompts
  ]
  generation.check_request(
    loaded.cfg, [start.ids for start in starts], limit, window
  )
  print(
    f'{loaded.name}, {loaded.which} checkpoint, step {loaded.step}',
    file=sys.stderr,
    flush=True,
  )
  if format == 'chat':
    print(
      'This is a chat model; to talk with it: python -m launch.chat '
      f'--workdir={WORKDIR.value}',
      file=sys.stderr,
      flush=True,
    )

  clock = Clock(started)
  params = jax.device_put(loaded.params)
  if documents:
    write_documents(loaded, params, starts[0], n, limit, window, clock, ctrl_c)
    return
  for i, (prompt, start) in enumerate(zip(prompts, starts)):
    for j, s in enumerate(samples):
      write(headline(i, len(prompts), j, n))
      if SHOW_PROMPT.value:
        write(prompt)
      last = ''
      shown = Shown(loaded.tokenizer, start.names)
      for _, new in generation.generate(
        loaded.model,
        params,
        [start.ids],
        s,
        limit,
        bias_V=start.bias_V,
        stop_ids=start.stop_ids,
        window=window,
      ):
        ctrl_c.check()
        clock.tick(len(new or ()))
        piece = shown.feed(new)
        write(piece)
        last = piece or last
      if not last.endswith('\n'):
        write('\n')
  print(clock.summary(), file=sys.stderr)


def write_documents(
  loaded, params, start, n, limit, window, clock, ctrl_c
) -> None:
  """n documents, one a line and many at once; then how many are new."""
  from gpt.decoding import generation
  from gpt.runs.novelty import count_new

  made = []
  for first in range(0, n, ROWS):
    seeds = [SEED.value + i for i in range(first, min(first + ROWS, n))]
    ids: list[list[int]] = [[] for _ in seeds]
    ended = set()
    for row, new in generation.generate(
      loaded.model,
      params,
      [start.ids] * len(seeds),
      sampling_params(seeds, top_p=1.0),
      limit,
      bias_V=start.bias_V,
      stop_ids=start.stop_ids,
      window=window,
    ):
      ctrl_c.check()
      clock.tick(len(new or ()))
      ids[row] += new or []
      ended |= {row} if new is None else set()
      while len(made) - first in ended:  # In order, as soon as they are there.
        made.append(loaded.tokenizer.decode(ids[len(made) - first]))
        write(made[-1] + '\n')
  print(clock.summary(), file=sys.stderr)
  try:
    new, known = count_new(loaded, WORKDIR.value, made)
  except UserError as e:
    warn(f'how many of them are new is unknown: {e}')
    return
  print(
    f'{new} of {n} are not in the training set of {known:,} documents',
    file=sys.stderr,
  )


def sampling_params(seeds, top_p=None):
  """The flags as sampling.params, a row for each seed."""
  from gpt.decoding import sampling

  options = sampling_flags.options()
  if top_p is not None and not flags.FLAGS['top_p'].present:
    options['top_p'] = top_p
  return sampling.params(len(seeds), seed=seeds, **options)


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
        else pathlib.Path(name).read_bytes()
      )
    except OSError as e:
      raise UserError(f'cannot read --prompt_file={name}: {e.strerror}') from e
    text = data.decode('utf-8', 'replace').removeprefix('\ufeff')
    try:
      data.decode('utf-8')
    except UnicodeDecodeError as e:
      warn(f'{name} is not UTF-8 ({e}); invalid parts became U+FFFD')
    prompts.append(text.replace('\r\n', '\n'))
  return prompts or ['']


def warn_of_unknown(tokenizer, prompt: str) -> None:
  """Says which characters of a prompt the model does not know."""
  from gpt.data.prepare import describe_unknown

  if unknown := tokenizer.count_unknown(prompt):
    nothing = sum(unknown.values()) == len(prompt)
    rest = '; nothing is left of the prompt' if nothing else ''
    warn(f'prompt: {describe_unknown(unknown)}{rest}')


def warn(text: str) -> None:
  print(f'warning: {text}', file=sys.stderr, flush=True)


def write(text: str) -> None:
  """To stdout at once: a reader sees each piece as it comes."""
  if text:
    sys.stdout.write(text)
    sys.stdout.flush()


class CtrlC:
  """Ctrl-C raises KeyboardInterrupt, and again at the next check.

  Libraries call Python where exceptions are lost; the first may be.
  """

  def __init__(self):
    self._pressed = False
    signal.signal(signal.SIGINT, self._handle)

  def _handle(self, number, frame):
    self._pressed = True
    raise KeyboardInterrupt

  def check(self) -> None:
    if self._pressed:
      raise KeyboardInterrupt


class Clock:
  """How long the first token took, and how fast the others came."""

  def __init__(self, started: float):
    self._started, self._first, self._last = started, None, started
    self._tokens, self._after_first = 0, 0

  def tick(self, tokens: int) -> None:
    """Some tokens have come."""
    self._last = time.perf_counter()
    self._tokens += tokens
    if self._first is None:
      self._first = self._last
    else:
      self._after_first += tokens

  def summary(self) -> str:
    first = (self._first or self._last) - self._started
    seconds = self._last - self._started - first
    # Tokens of one block come together: that is no rate.
    known = seconds > 0.01
    rate = f', then {self._after_first / seconds:,.0f}/s' if known else ''
    return f'{self._tokens} tokens; the first after {first:.1f} s{rate}'


if __name__ == '__main__':
  cli.run(main)
