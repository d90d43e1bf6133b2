"""The loss that a run will reach: a scaling law for few data, read often.

    L = exp(c) b^p v^w (1 + u V / T) (e + A N'^(-h alpha) + B T'^(-h beta))

in bits per byte, for a text with n-gram entropy b (entropy.py, 256 KB counted)
and v bytes per token. The faster the entropy of a text falls with the bytes
counted, the faster its loss falls with size and training: h = f^s, with f the
entropy by 128 KB, or half of a short text, relative to that by 512 KB. A text
of U bytes supports blocks of about kappa U parameters, and reading it again
teaches less each time, as if there were at most 1 + R passes:

    1 / N' = 1 / N + 1 / (kappa U)
    T' = U (x + R (1 - exp(-y / R))),  x = min(1, T / U),  y = max(0, T / U - 1)

`launch.bench.law` makes the runs that the constants in coefficients.py are
fitted to; docs/results.md has the residuals.

Each of the V entries of a vocabulary has to be met to be learned: in a run of T
tokens that adds u V / T to the loss, 4.5 % for 2,000 pieces and 800,000 tokens.

N counts the parameters of the blocks, without embeddings and head (Kaplan et
al. 2020); U and T only what has a loss: of conversations, the answers.

References:
  Kaplan et al. 2020 (https://arxiv.org/abs/2001.08361);
  Hoffmann et al. 2022 (https://arxiv.org/abs/2203.15556): the sum of powers.
  Muennighoff et al. 2023 (https://arxiv.org/abs/2305.16264): T' and its decay.
"""

import dataclasses
import math

from gpt.planning.coefficients import COEFFICIENTS
from gpt.planning.entropy import Entropy

# Units of N', U and T'.
MILLION = 1e6
# Bits per byte of a model that knows nothing.
UNIFORM = 8.0
# Of f: the texts of the fit have 1.02 to 1.14, repeated lines any number.
LARGEST_FALL = 1.15


@dataclasses.dataclass(frozen=True)
class Coefficients:
  """Constants of the law; all but `level`, `yield_power` and `pieces` are
  positive.

  Attributes:
    floor: e.
    per_parameter, parameter_power: A and alpha, N' in millions.
    per_byte, byte_power: B and beta, T' in millions of bytes.
    useful_passes: R.
    parameters_per_byte: kappa.
    entropy_power, level: p and c.
    yield_power: s.
    pieces: w.
    per_entry: u.
  """

  floor: float
  per_parameter: float
  parameter_power: float
  per_byte: float
  byte_power: float
  useful_passes: float
  parameters_per_byte: float
  entropy_power: float
  yield_power: float
  level: float
  pieces: float
  per_entry: float


def bits_per_byte(
  parameters: float,
  tokens_seen: float,
  text_tokens: float,
  bytes_per_token: float,
  vocab: float,
  entropy: Entropy,
  coefficients: Coefficients | None = None,
) -> float:
  """Validation loss of a run of the family of recipe.py, in bits per byte.

  Args:
    parameters: of the blocks.
    tokens_seen: tokens trained on, repeats included.
    text_tokens: tokens of the training split; of both only those with a loss.
    bytes_per_token: of the text under its tokenizer; 1 for ASCII characters.
    vocab: entries of the tokenizer's vocabulary.
    entropy: of the text: entropy.measure.
    coefficients: None: the fitted ones.
  """
  c = coefficients or Coefficients(**COEFFICIENTS)
  size = text_tokens * bytes_per_token / MILLION
  passes = tokens_seen / text_tokens
  again = max(0.0, passes - 1)
  taught = size * (
    min(1.0, passes) + c.useful_passes * -math.expm1(-again / c.useful_passes)
  )
  useful = 1 / (MILLION / parameters + 1 / (c.parameters_per_byte * size))
  fall = entropy.quarter / max(entropy.bits, 1e-9)
  fall = min(max(fall, 1.0), LARGEST_FALL)
  level = (
    entropy.half**c.entropy_power
    * math.exp(c.level)
    * bytes_per_token**c.pieces
    * (1 + c.per_entry * vocab / tokens_seen)
  )
  more = fall**c.yield_power
  bits = level * (
    c.floor
    + c.per_parameter * useful ** (-more * c.parameter_power)
    + c.per_byte * taught ** (-more * c.byte_power)
  )
  return min(UNIFORM, bits)
