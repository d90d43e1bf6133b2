"""What a run costs: seconds of a step, of everything around it, and memory.

The constants for CPUs were fitted to measured training steps of the family of
recipe.py (docs/performance.md); they relate a step to the rate of products that
machine.py measures, so they hold on other machines, too. A run replaces them by
its own times after the first steps (clock.py).
"""

import dataclasses
import math

from gpt.planning.machine import Machine
from gpt.planning.text import Text
from gpt.training.rows import CPU_MICRO_TOKENS

# --- a step


@dataclasses.dataclass(frozen=True)
class StepCost:
  """Constants of `step_seconds` for a kind of device.

  Attributes:
    products: time of the matrix products of a step, relative to the measured
      rate of such products alone.
    elementwise: products' worth of everything else, in FLOPs per token, layer
      and unit of width, at the rate of float32.
    gates: the same, of an MLP that has them.
    scores: the same per column of the context as well: attention's softmax.
    pieces: the same per token and piece of the vocabulary: the last softmax.
    muon: time of the Newton-Schulz iterations, as `products`.
    update: seconds per parameter of the optimizer's other work.
    launch: seconds of a step that does nothing.
  """

  products: float
  elementwise: float
  gates: float
  scores: float
  pieces: float
  muon: float
  update: float
  launch: float


# On CPUs, products of narrower matrices are slower than those measured.
NARROW = 96
# Fitted to steps in both precisions on two cores of a Zen 4, with the compiled
# kernels of training; but `gates`, and the 200 of `elementwise` that exclusive
# attention takes, are from one comparison of 6 x 128.
ON_CPU = StepCost(0.84, 3700.0, 1000.0, 5.0, 145.0, 0.65, 1.4e-8, 5e-4)
# Estimates, which one step on an H200 (8 x 384, 7.2 ms instead of 6.0) did not
# contradict. They only place the first plan; a run replaces them by its own
# times.
ON_ACCELERATOR = StepCost(1.3, 4000.0, 500.0, 2.0, 100.0, 1.5, 4e-11, 3e-3)


@dataclasses.dataclass(frozen=True)
class Shape:
  """What decides the time of a step, and the memory it takes.

  Attributes:
    width, depth, vocab, context: of the model.
    batch: sequences per step.
    parameters: of the model.
    dtype: of products, as config.model.dtype.
    gated: whether MLPs have gates.
  """

  width: int
  depth: int
  vocab: int
  context: int
  batch: int
  parameters: int
  dtype: str
  gated: bool = False

  @property
  def tokens(self) -> int:
    """Per step."""
    return self.batch * self.context


def step_seconds(shape: Shape, machine: Machine) -> float:
  """Seconds of an optimizer step.

  A token takes 6 (12 N D^2 + V D) FLOPs in the products of forward and backward
  pass, and 6 N D T in causal attention. Muon's five iterations take 300 N D^3.
  """
  D, N, V, T = shape.width, shape.depth, shape.vocab, shape.context
  on_cpu = machine.platform == 'cpu'
  cost = ON_CPU if on_cpu else ON_ACCELERATOR
  rate = machine.rate(shape.dtype, D)
  if on_cpu:
    rate *= min(1.0, D / NARROW)
  products = 6 * (12 * N * D * D + V * D) + 6 * N * D * T
  elementwise = cost.elementwise + cost.gates * shape.gated
  others = (elementwise + cost.scores * T) * N * D + cost.pieces * V
  others /= machine.rate('float32', D)
  muon = 300 * N * D**3
  return (
    shape.tokens * (cost.products * products / rate + others)
    + cost.muon * muon / rate
    + cost.update * shape.parameters
    + cost.launch
  )


def forward_seconds(shape: Shape, machine: Machine) -> float:
  """Seconds to evaluate a token."""
  return 0.4 * step_seconds(shape, machine) / shape.tokens


# --- around the steps

# Imports, reading samples and measuring the machine.
START_S = 5.0
# Compiling the initial weights, the step and the evaluation. An accelerator's
# compiler tries out kernels: 26 s for a step of 6 layers, 52 s for one of 12 on
# an H200, with the imports.
COMPILE_S, COMPILE_LAYER_S = 3.0, 0.7
ACCELERATOR_COMPILE_S, ACCELERATOR_COMPILE_LAYER_S = 12.0, 3.0
# Bytes per second that are hashed, and turned into characters or pieces.
HASH_RATE, CHARACTER_RATE, PIECE_RATE = 5e8, 4e7, 3.5e6
# Training a vocabulary of pieces.
TRAINING_S = 1.0
# The sample, the last checkpoint and the end of the process; an accelerator
# compiles the sample's programs first (10 s after the last step on an H200).
END_S, ACCELERATOR_END_S = 1.0, 10.0


def start_seconds(depth: int, machine: Machine) -> float:
  """From the start of the process to the first step, without the text."""
  if machine.platform == 'cpu':
    return START_S + COMPILE_S + COMPILE_LAYER_S * depth
  return START_S + ACCELERATOR_COMPILE_S + ACCELERATOR_COMPILE_LAYER_S * depth


def end_seconds(platform: str) -> float:
  """From the last step to the end, without the full pass."""
  return END_S if platform == 'cpu' else ACCELERATOR_END_S


def text_seconds(text: Text, vocab: int) -> float:
  """To read the text and encode it; `vocab`: 0 for characters."""
  stored = text.bytes / text.share_read
  size = max(stored, text.bytes)  # A compressed file holds more than it is.
  if not vocab:
    return stored / HASH_RATE + size / CHARACTER_RATE
  return stored / HASH_RATE + TRAINING_S + size / PIECE_RATE


# --- memory

# Bytes of a process that has imported everything.
BASE_BYTES = 6e8
# Copies of every parameter: weights, gradients, two moments, and what an update
# holds meanwhile.
COPIES = 6
# float32 values kept per token, layer and unit of width; and per token and
# piece of the vocabulary.
ACTIVATIONS, LOGITS = 30, 5


def memory_bytes(shape: Shape, machine: Machine) -> float:
  """Bytes that a run takes, about; every device holds all parameters."""
  on_cpu = machine.platform == 'cpu'
  rows = math.ceil(shape.batch / machine.devices)
  at_once = rows * shape.context
  if on_cpu:
    at_once = min(at_once, max(CPU_MICRO_TOKENS, shape.context))
  per_token = ACTIVATIONS * shape.depth * shape.width + LOGITS * shape.vocab
  device = 4 * (COPIES * shape.parameters + at_once * per_token)
  return machine.devices * device + (BASE_BYTES if on_cpu else 0)
