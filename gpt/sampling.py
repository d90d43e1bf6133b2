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

# Candidates looked at first; a full sort only when they do not suffice.
FAST_CANDIDATES = 64


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
      'repetition_penalty', repetition, 'a positive number',
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


def threshold_from_sorted(sorted_BC, s: SamplingParams):
  """float32[B]: the smallest probability top-k and top-p keep.

  Args:
    sorted_BC: float32[B, C], the C largest probabilities, descending.
  """
  n = sorted_BC.shape[-1]
  rank_BC = jnp.arange(n, dtype=jnp.int32)[None]
  k_B = jnp.where(s.top_k <= 0, n, jnp.minimum(s.top_k, n))
  in_k_BC = rank_BC < k_B[:, None]
  kept_BC = jnp.where(in_k_BC, sorted_BC, 0.0)
  before_BC = jnp.pad(jnp.cumsum(kept_BC, axis=-1)[:, :-1], ((0, 0), (1, 0)))
  # top-p is a share of what top-k left; without top-k that is all: 1.
  mass_B = jnp.where(s.top_k <= 0, 1.0, jnp.sum(kept_BC, axis=-1))
  target_B = s.top_p * mass_B
  in_p_BC = (before_BC < target_B[:, None]) | (s.top_p >= 1)[:, None]
  in_p_BC |= rank_BC == 0
  return jnp.min(jnp.where(in_k_BC & in_p_BC, sorted_BC, jnp.inf), axis=-1)


def threshold(probs_BV, s: SamplingParams):
  """As `threshold_from_sorted`, sorting no more of the vocabulary than needed.

  The first candidates settle it for a row if top-k is within them, or if their
  mass reaches top-p; rows with neither filter (or greedy ones) need no sort.
  What a row gets does not depend on whether another row needs the full sort.
  """
  vocab = probs_BV.shape[-1]
  if vocab <= FAST_CANDIDATES:
    return threshold_from_sorted(jax.lax.top_k(probs_BV, vocab)[0], s)
  fast_BC = jax.lax.top_k(probs_BV, FAST_CANDIDATES)[0]
  unfiltered_B = ((s.top_k <= 0) | (s.top_k >= vocab)) & (s.top_p >= 1)
  unfiltered_B |= s.temperature <= 0
  settled_B = (s.top_k > 0) & (s.top_k <= FAST_CANDIDATES)
  # A hair of slack, as the sum of few and of many terms round differently.
  enough_B = jnp.sum(fast_BC, axis=-1) > s.top_p + 1e-5
  settled_B |= (s.top_k <= 0) & enough_B
  fast_B = threshold_from_sorted(fast_BC, s)
  full_B = jax.lax.cond(
    jnp.all(settled_B | unfiltered_B),
    lambda: fast_B,
    lambda: threshold_from_sorted(jax.lax.top_k(probs_BV, vocab)[0], s),
  )
  threshold_B = jnp.where(settled_B, fast_B, full_B)
  return jnp.where(unfiltered_B, 0.0, threshold_B)


def filter_probs(probs_BV, s: SamplingParams):
  """Probabilities with everything top-k, top-p and min-p exclude set to 0."""
  floor_B = s.min_p * jnp.max(probs_BV, axis=-1)
  floor_B = jnp.maximum(floor_B, threshold(probs_BV, s))
  return jnp.where(probs_BV >= floor_B[:, None], probs_BV, 0.0)


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
  best_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  return jnp.where(greedy_B, best_B, sampled_B)
