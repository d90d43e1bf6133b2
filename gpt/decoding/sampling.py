"""Logits -> token. Every parameter is an array: no value causes a compile.

Order: penalties -> bias and bans -> temperature -> top-k -> top-p -> min-p ->
one draw by inverse CDF. Temperature <= 0 is argmax after penalties and bias.
Filters are thresholds on the probability: tokens that tie with the last one
kept are kept too, so the result does not depend on the order of token ids.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from gpt.errors import UserError

_ONE_BITS = 0x3F800000  # float32 1.0


@struct.dataclass
class SamplingParams:
  """One entry a row.

  Attributes:
    seed: uint32[B].
    temperature: float32[B]; <= 0 is greedy.
    top_k: int32[B]; <= 0 is off.
    top_p: float32[B] in (0, 1]; 1 is off.
    min_p: float32[B] in [0, 1); keeps p >= min_p * max p.
    repetition: float32[B]; 1 is off. Logits of tokens in prompt or completion
      are divided by it where positive, multiplied where negative (CTRL,
      Keskar et al. 2019).
    frequency, presence: float32[B]; OpenAI's penalties on completion tokens.
  """

  seed: Any
  temperature: Any
  top_k: Any
  top_p: Any
  min_p: Any
  repetition: Any
  frequency: Any
  presence: Any


def params(
  batch_size: int,
  *,
  seed=0,
  temperature=0.8,
  top_k=0,
  top_p=0.9,
  min_p=0.0,
  repetition=1.0,
  frequency=0.0,
  presence=0.0,
) -> SamplingParams:
  """Numpy SamplingParams from scalars or sequences of length B.

  Args:
    seed: any integer; 2^32 of them differ.

  Raises:
    UserError: a value outside its range (see SamplingParams).
  """

  def floats(name, value, allowed, fits):
    with np.errstate(all='ignore'):
      array = np.asarray(value, np.float32)
      if not np.all(np.isfinite(array) & fits(array)):
        raise UserError(f'{name} {value} is not {allowed}')
    return np.broadcast_to(array, (batch_size,)).copy()

  def integers(value, fit, dtype):
    values = [fit(int(x)) for x in np.ravel(np.asarray(value, object))]
    return np.broadcast_to(np.asarray(values, dtype), (batch_size,)).copy()

  def number(name, value):
    return floats(name, value, 'a finite number', np.isfinite)

  return SamplingParams(
    seed=integers(seed, lambda x: x & 0xFFFFFFFF, np.uint32),
    temperature=number('temperature', temperature),
    top_k=integers(top_k, lambda x: min(max(x, 0), 2**31 - 1), np.int32),
    top_p=floats('top_p', top_p, 'in (0, 1]', lambda x: (x > 0) & (x <= 1)),
    min_p=floats('min_p', min_p, 'in [0, 1)', lambda x: (x >= 0) & (x < 1)),
    repetition=floats(
      'repetition_penalty',
      repetition,
      'a positive number',
      lambda x: (x > 0) & np.isfinite(1 / x),
    ),
    frequency=number('frequency_penalty', frequency),
    presence=number('presence_penalty', presence),
  )


def uniforms(seed_B, step_B, k: int):
  """float32[B, k] in [0, 1): a function of (seed, number of the token) alone.

  Args:
    seed_B: uint32[B].
    step_B: int32[B], completion tokens sampled so far.
  """

  def one(seed, step):
    return jax.random.uniform(jax.random.fold_in(jax.random.key(seed), step))

  steps_Bk = step_B[:, None] + jnp.arange(k, dtype=jnp.int32)[None]
  return jax.vmap(jax.vmap(one, (None, 0)))(seed_B, steps_Bk)


def penalise(logits_BV, s: SamplingParams, in_prompt_BV, counts_BV):
  """Repetition, frequency and presence penalties.

  Args:
    in_prompt_BV: bool[B, V], tokens of the prompt.
    counts_BV: int32[B, V], how often each token was sampled.
  """
  seen_BV = in_prompt_BV | (counts_BV > 0)
  factor_BV = jnp.where(
    logits_BV > 0, 1 / s.repetition[:, None], s.repetition[:, None]
  )
  logits_BV = jnp.where(seen_BV, logits_BV * factor_BV, logits_BV)
  counts_BV = counts_BV.astype(jnp.float32)
  logits_BV -= s.frequency[:, None] * counts_BV
  return logits_BV - s.presence[:, None] * (counts_BV > 0)


def largest(holds, batch_size: int):
  """float32[B]: the largest t in [0, 1] for which holds(t) is true.

  Bisection over the bit patterns of float32, which sort like the numbers they
  stand for: exact after 30 halvings, and no sort of the vocabulary.

  Args:
    holds: float32[B] -> bool[B]; true at 0 and never true above a false.
  """

  def halve(_, bounds):
    low_B, high_B = bounds
    middle_B = (low_B + high_B) // 2
    holds_B = holds(jax.lax.bitcast_convert_type(middle_B, jnp.float32))
    return (
      jnp.where(holds_B, middle_B, low_B),
      jnp.where(holds_B, high_B, middle_B),
    )

  low_B = jnp.zeros(batch_size, jnp.int32)
  high_B = jnp.full(batch_size, _ONE_BITS + 1, jnp.int32)
  low_B, _ = jax.lax.fori_loop(0, 30, halve, (low_B, high_B))
  return jax.lax.bitcast_convert_type(low_B, jnp.float32)


def top_k_threshold(probs_BV, top_k_B):
  """float32[B]: the k-th largest probability; 0 where top-k is off."""
  k_B = jnp.where(top_k_B <= 0, probs_BV.shape[-1], top_k_B)

  def enough(t_B):
    return jnp.sum(probs_BV >= t_B[:, None], axis=-1) >= k_B

  return largest(enough, probs_BV.shape[0])


def top_p_threshold(probs_BV, top_p_B):
  """float32[B]: the smallest probability that top-p keeps.

  The most probable tokens are kept until their sum reaches top_p of the whole;
  the one that crosses is kept. 0 where top_p is 1.
  """
  target_B = top_p_B * jnp.sum(probs_BV, axis=-1)

  def enough(t_B):
    kept_BV = jnp.where(probs_BV >= t_B[:, None], probs_BV, 0.0)
    return jnp.sum(kept_BV, axis=-1) >= target_B

  threshold_B = largest(enough, probs_BV.shape[0])
  return jnp.where(top_p_B >= 1, 0.0, threshold_B)


def keep_above(probs_BV, threshold_B):
  return jnp.where(probs_BV >= threshold_B[:, None], probs_BV, 0.0)


def filter_probs(probs_BV, s: SamplingParams):
  """Probabilities with everything top-k, top-p and min-p exclude set to 0.

  A filter that no row asks for costs nothing.
  """
  sampled_B = s.temperature > 0
  min_BV = keep_above(probs_BV, s.min_p * jnp.max(probs_BV, axis=-1))
  probs_BV = jax.lax.cond(
    jnp.any(sampled_B & (s.top_k > 0)),
    lambda: keep_above(probs_BV, top_k_threshold(probs_BV, s.top_k)),
    lambda: probs_BV,
  )
  probs_BV = jax.lax.cond(
    jnp.any(sampled_B & (s.top_p < 1)),
    lambda: keep_above(probs_BV, top_p_threshold(probs_BV, s.top_p)),
    lambda: probs_BV,
  )
  return jnp.where(min_BV > 0, probs_BV, 0.0)


def draw(probs_BV, uniform_B):
  """int32[B]: inverse CDF; probabilities need not sum to 1.

  The first token with a probability whose CDF is past the uniform. A parallel
  sum may round so that the CDF rises at a token of probability 0, so that has
  to be asked for; and it may never get past: then it is the last one.
  """
  cdf_BV = jnp.cumsum(probs_BV, axis=-1)
  target_B = uniform_B * cdf_BV[:, -1]
  possible_BV = probs_BV > 0
  ids = jnp.arange(probs_BV.shape[-1], dtype=jnp.int32)[None]
  last_B = jnp.max(jnp.where(possible_BV, ids, 0), axis=-1)
  past_BV = possible_BV & (cdf_BV > target_B[:, None])
  return jnp.min(jnp.where(past_BV, ids, last_B[:, None]), axis=-1)


def sample(logits_BV, uniform_B, s: SamplingParams, bias_BV):
  """One token a row from penalised logits.

  Args:
    logits_BV: float32[B, V].
    uniform_B: float32[B] in [0, 1).
    bias_BV: float32, broadcastable to [B, V], added; -inf bans a token.

  Returns:
    int32[B].
  """
  logits_BV = logits_BV + bias_BV
  greedy_B = s.temperature <= 0
  # A tiny temperature must not overflow: shift first, then divide.
  logits_BV -= jnp.max(logits_BV, axis=-1, keepdims=True)
  temperature_B = jnp.where(greedy_B, 1.0, jnp.maximum(s.temperature, 1e-6))
  probs_BV = jax.nn.softmax(logits_BV / temperature_B[:, None])
  sampled_B = draw(filter_probs(probs_BV, s), uniform_B)
  # The first of the largest; argmax would be four times slower on a CPU.
  ids = jnp.arange(logits_BV.shape[-1], dtype=jnp.int32)[None]
  best_B = jnp.min(jnp.where(logits_BV >= 0, ids, ids.shape[-1] - 1), axis=-1)
  return jnp.where(greedy_B, best_B, sampled_B)
