"""From a text, a machine and a time to the config of a run: pure functions.

Every shape and vocabulary that fits is tried on paper: how many steps it makes
in the time (cost.py), how often it reads the text, and the loss that follows
(law.py). The best one is the plan; recipe.py gives its other options.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from gpt.errors import UserError
from gpt.planning import cost, law, recipe
from gpt.planning.clock import AIM, evals_of
from gpt.planning.cost import Shape
from gpt.planning.machine import Machine
from gpt.planning.text import Text

# (width, depth), smallest first.
SHAPES = (
  *((64, 2), (64, 3), (64, 4), (96, 4), (128, 4), (128, 6)),
  *((192, 6), (256, 6), (256, 8), (320, 8), (384, 8), (512, 8), (512, 12)),
  *((640, 12), (768, 12), (1024, 16), (1280, 20), (1536, 24)),
)
# Part of the memory that a plan may fill.
MEMORY_SHARE = 0.6
# Most tokens of a vocabulary per unit of width: more are hardly trained.
PIECES_PER_WIDTH = 24
# bfloat16 products pay where they are so much faster.
WORTH_BFLOAT16 = 1.15
# A model of twice the size has to promise a loss lower by this part: the law
# does not know how it overfits a short text.
WORTH_DOUBLING = 0.002
# A narrower model of characters has to promise that much less: on Shakespeare,
# in seven runs of 94 s, it lost 1 % more than the law says, and in two of 145 s
# on a slower processor (2 x 64) 1.9 and 2.6 %.
NARROW_LOSS, NARROW = 0.02, 96
# Fewer steps teach nothing.
FEWEST_STEPS = 20
# What decides how long a step takes, and is not a shape.
OF_A_STEP = ('batch_size', 'total_steps', 'model.mlp')
# Schedules that begin at their peak.
NO_WARMUP = {'randy': {'opt.warmup_steps': 0}}
# Validation splits, and the part of the time that a full pass may take.
VAL_FRACTIONS = (0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
PASS_SHARE = 0.08
# Tokens of a quick eval, and the part of the time that all of them may take.
EVAL_TOKENS, EVAL_SHARE = 25_000, 0.03
SAVE_S = 0.15  # What an eval costs beside that: samples, a checkpoint.
# A budget is compared with these multiples of it.
HALF, TENFOLD = 0.5, 10.0


@dataclasses.dataclass(frozen=True)
class Outlook:
  """A run that would use a number of seconds, and what it would reach.

  Attributes:
    seconds: of the budget.
    options: flat keys of the config -> values, given ones included.
    vocab: tokens of the vocabulary.
    parameters: of the model.
    steps, step_s: how many, and seconds of each.
    tokens_seen, passes: trained on; how often that is the training split.
    bytes_per_token: of the text.
    bits_per_byte: expected validation loss.
    fixed_s: seconds around the steps: start, evals, full pass and end.
    memory: bytes, about.
  """

  seconds: float
  options: dict[str, Any]
  vocab: int
  parameters: int
  steps: int
  step_s: float
  tokens_seen: float
  passes: float
  bytes_per_token: float
  bits_per_byte: float
  fixed_s: float
  memory: float

  @property
  def total_s(self) -> float:
    """Seconds of the whole run."""
    return self.fixed_s + self.steps * self.step_s


@dataclasses.dataclass(frozen=True)
class Plan:
  """The outlook of a budget, and of half and ten times the time."""

  now: Outlook
  half: Outlook | None
  tenfold: Outlook


def make(
  text: Text, machine: Machine, seconds: float, given: Mapping[str, Any]
) -> Plan:
  """The plan of a budget; equal facts give equal plans.

  Args:
    seconds: of wall time, from the start of the process to its end.
    given: flat keys of the config that somebody set: they are not chosen.

  Raises:
    UserError: no run fits the time or the memory.
  """
  now = best(text, machine, seconds, given)
  try:
    half = best(text, machine, HALF * seconds, given)
  except UserError:
    half = None
  return Plan(now, half, best(text, machine, TENFOLD * seconds, given))


def best(
  text: Text, machine: Machine, seconds: float, given: Mapping[str, Any]
) -> Outlook:
  """The outlook with the lowest expected loss for its size; see WORTH_DOUBLING.

  Raises:
    UserError: no run fits the time or the memory.
  """
  found, shortest = _search(text, machine, seconds, given)
  if found is not None:
    return found
  least = seconds
  while found is None and math.isfinite(shortest):
    # Evals take a part of a longer time, so the first guess may be too short.
    least = max(math.floor(least) + 1, math.ceil(shortest))
    found, shortest = _search(text, machine, least, given)
  if found is not None:
    raise UserError(
      f'{seconds:g} s are too short to read {text.bytes:,} bytes of text and '
      f'to train on them here: give at least {least}s'
    )
  raise UserError(
    f'no model fits in the memory, {machine.memory / 1e9:.2g} GB: every shape '
    f'needs more than {MEMORY_SHARE:.0%} of it. Close other programs, or give '
    'a smaller --config.model.n_embd'
  )


def _search(
  text: Text, machine: Machine, seconds: float, given: Mapping[str, Any]
) -> tuple[Outlook | None, float]:
  """(the best outlook, seconds that the fastest of the others needs).

  A given number of steps may need more time than there is: then the best
  outlook is the fastest.
  """
  found, late, shortest = None, None, math.inf
  for vocab, (width, depth) in candidates(text, given):
    outlook = look(text, machine, seconds, given, vocab, width, depth)
    if outlook.memory > MEMORY_SHARE * machine.memory:
      continue
    if 'total_steps' in given:
      if outlook.total_s > AIM * seconds:
        if late is None or outlook.total_s < late.total_s:
          late = outlook
        continue
    elif outlook.steps < FEWEST_STEPS:
      needed = outlook.fixed_s + FEWEST_STEPS * outlook.step_s
      shortest = min(shortest, needed / AIM)
      continue
    if found is None or _handicapped(outlook) < _handicapped(found):
      found = outlook
  return found or late, shortest


def _handicapped(outlook: Outlook) -> float:
  worth = outlook.parameters ** math.log2(1 + WORTH_DOUBLING)
  options = outlook.options
  if options['data.tokenizer'] == 'char' and options['model.n_embd'] < NARROW:
    worth *= 1 + NARROW_LOSS
  return outlook.bits_per_byte * worth


def candidates(
  text: Text, given: Mapping[str, Any]
) -> Iterator[tuple[int, tuple[int, int]]]:
  """(vocabulary, (width, depth)) of every run to consider; 0: characters."""
  width, depth = given.get('model.n_embd'), given.get('model.n_layer')
  shapes = list(dict.fromkeys((width or w, depth or d) for w, d in SHAPES))
  if heads := given.get('model.n_head'):  # Each of an even width.
    shapes = [s for s in shapes if s[0] % (2 * heads) == 0] or shapes
  vocabularies = sorted(text.bytes_per_token)
  for vocab in vocabularies:
    for shape in sorted(shapes, key=lambda s: s[0] ** 2 * s[1]):
      small = vocab <= PIECES_PER_WIDTH * shape[0]
      if small or vocab == vocabularies[0]:
        yield vocab, shape


def look(
  text: Text,
  machine: Machine,
  seconds: float,
  given: Mapping[str, Any],
  pieces: int,
  width: int,
  depth: int,
) -> Outlook:
  """The outlook of one shape and vocabulary (`pieces`; 0: characters)."""
  density = text.bytes_per_token[pieces]
  vocab = pieces or text.characters
  context = given.get('model.block_size') or context_of(
    text, pieces, width, density
  )
  dtype = given.get('model.dtype') or dtype_of(machine, width)
  tokens = text.bytes / density
  # What the law was fitted to, whatever is held out here.
  train_tokens = max(1.0, 0.9 * tokens)
  parameters = recipe.parameters(width, depth, vocab)
  seen = 1e6
  for _ in range(8):  # The batch depends on the tokens seen, and they on it.
    options = recipe.options(
      *(width, depth, vocab, context, seen, train_tokens),
      given.get('model.mlp', ''),
    ) | {k: x for k, x in given.items() if k in OF_A_STEP}
    batch = options['batch_size']
    shape = Shape(
      *(width, depth, vocab, context, batch, parameters),
      rated(dtype, machine),
      gated=options['model.mlp'] == 'swiglu',
    )
    step_s = cost.step_seconds(shape, machine)
    token_s = cost.forward_seconds(shape, machine)
    val = given.get('data.val_fraction') or val_fraction_of(
      tokens * token_s, seconds
    )
    windows = given.get('eval.windows') or windows_of(context, token_s, seconds)
    eval_s = windows * context * token_s + SAVE_S
    fixed = (
      cost.start_seconds(depth, machine)
      + cost.text_seconds(text, pieces)
      + evals_of(seconds) * eval_s
      + val * tokens * token_s
      + cost.end_seconds(machine.platform)
    )
    left = AIM * seconds - fixed
    steps = given.get('total_steps') or max(0, int(left / step_s))
    seen = max(1.0, steps * batch * context)
  passes = seen / train_tokens
  every = max(1, math.ceil(steps / evals_of(seconds)))
  options |= {
    'data.format': text.format,
    'data.tokenizer': text.tokenizer or ('sentencepiece' if pieces else 'char'),
    'data.vocab_size': pieces or 2000,
    'data.val_fraction': val,
    'model.dtype': dtype,
    'total_steps': max(1, steps),
    'eval.every': every,
    'eval.windows': windows,
    'checkpoint.every': max(1, math.ceil(steps / 2)),
    'sample.prompt': text.opening,
    **document_options(text),
    **NO_WARMUP.get(given.get('opt.schedule', ''), {}),
    **given,
  }
  options['model.n_head'] = given.get('model.n_head') or heads_of(width)
  return Outlook(
    seconds=seconds,
    options=options,
    vocab=vocab,
    parameters=parameters,
    steps=steps,
    step_s=step_s,
    tokens_seen=seen,
    passes=passes,
    bytes_per_token=density,
    bits_per_byte=law.bits_per_byte(
      recipe.block_parameters(width, depth),
      text.share_trained * seen,
      text.share_trained * train_tokens,
      density,
      vocab,
      text.entropy,
    ),
    fixed_s=fixed,
    memory=cost.memory_bytes(shape, machine),
  )


def rated(dtype: str, machine: Machine) -> str:
  """The measured dtype that stands for a given one."""
  if dtype in machine.rates:
    return dtype
  other = [x for x in machine.rates if x != 'float32']
  return other[0] if other and dtype != 'auto' else 'float32'


def dtype_of(machine: Machine, width: int) -> str:
  """bfloat16 products, in the form for the device, if they pay."""
  plain = machine.rate('float32', width)
  for dtype in machine.rates:
    if machine.rate(dtype, width) > WORTH_BFLOAT16 * plain:
      return dtype
  return 'float32'


def heads_of(width: int) -> int:
  """Heads of about recipe.HEAD_DIM, or of a width that divides `width`."""
  most = max(1, width // recipe.HEAD_DIM)
  return (
    max(n for n in range(1, most + 1) if width % n == 0 and width // n % 2 == 0)
    if width % 2 == 0
    else 1
  )


def context_of(text: Text, pieces: int, width: int, density: float) -> int:
  """Tokens of a window: more for wider models, and for long documents."""
  context = 128 if width < (256 if pieces else 128) else 256
  context = 512 if width >= 768 else context
  if text.long_document:
    wanted = 1 << max(4, math.ceil(math.log2(text.long_document / density + 8)))
    limit = 512 if width < 512 else 1024
    return min(wanted, limit)
  # A window has to fit the validation split.
  fits = max(8, int(0.05 * text.bytes / density))
  return min(context, 1 << int(math.log2(fits)))


def val_fraction_of(pass_s: float, seconds: float) -> float:
  """The largest part to hold out whose full pass leaves time to train.

  Args:
    pass_s: seconds of a pass over the whole text.
  """
  for fraction in VAL_FRACTIONS:
    if fraction * pass_s <= PASS_SHARE * seconds:
      return fraction
  return VAL_FRACTIONS[-1]


def windows_of(context: int, token_s: float, seconds: float) -> int:
  """Windows of a quick eval."""
  affordable = EVAL_SHARE * seconds / evals_of(seconds) / token_s
  return max(10, int(min(EVAL_TOKENS, affordable) / context))


def document_options(text: Text) -> dict[str, Any]:
  """Options of data.* for lines and conversations."""
  if text.format == 'chat':
    return {'data.loss_on': 'assistant', 'data.packing': True}
  return {'data.loss_on': 'all', 'data.packing': text.format == 'lines'}
