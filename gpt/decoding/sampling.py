"""Sampling: logits -> token, with settings as arrays, one entry per row.

Rows with different settings share one compiled program, and changing a value
never recompiles.

Order: penalties -> bias -> temperature -> top-k -> top-p -> min-p -> one draw
by inverse CDF. Temperature <= 0 means argmax after penalties and bias. Every
filter is a threshold on the probability, so ties with the last token kept are
kept too and the result does not depend on the order of token ids.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike

from gpt.errors import UserError

_ONE_BITS = 0x3F800000  # float32 1.0


@struct.dataclass
class SamplingSettings:
  """Sampling settings of B rows; built by `settings`.

  Attributes:
    seed: uint32[B].
    temperature: float32[B]; <= 0 is greedy.
    top_k: int32[B]; <= 0 is off (Fan et al. 2018).
    top_p: float32[B] in (0, 1]; 1 is off (nucleus, Holtzman et al. 2020).
    min_p: float32[B] in [0, 1); keeps p >= min_p * max p (Nguyen et al. 2024).
    repetition: float32[B]; 1 is off. Divides positive and multiplies negative
      logits of tokens in the prompt or completion (CTRL, Keskar et al. 2019).
    frequency: float32[B]; 0 is off. Times the token's count in the completion,
      subtracted from its logit (OpenAI API).
    presence: float32[B]; 0 is off. Subtracted once from the logit of every
      token in the completion (OpenAI API).
  """

  seed: Any
  temperature: Any
  top_k: Any
  top_p: Any
  min_p: Any
  repetition: Any
  frequency: Any
  presence: Any


def settings(
  batch_size: int,
  *,
  seed: ArrayLike | Sequence[int] = 0,
  temperature: ArrayLike = 0.8,
  top_k: ArrayLike | Sequence[int] = 0,
  top_p: ArrayLike = 0.9,
  min_p: ArrayLike = 0.0,
  repetition: ArrayLike = 1.0,
  frequency: ArrayLike = 0.0,
  presence: ArrayLike = 0.0,
) -> SamplingSettings:
  """SamplingSettings as numpy arrays, from scalars or sequences of length B.

  Args:
    batch_size: B.
    seed: any integer, taken modulo 2^32.
    temperature, ...: see SamplingSettings.

  Raises:
    UserError: a value outside its range.
  """

  def floats(
    name: str,
    value: ArrayLike,
    allowed: str,
    is_allowed: Callable[[np.ndarray], np.ndarray],
  ) -> np.ndarray:
    with np.errstate(all='ignore'):
      array = np.asarray(value, np.float32)
      if not np.all(np.isfinite(array) & is_allowed(array)):
        raise UserError(f'{name} {value} is not {allowed}')
    return np.broadcast_to(array, (batch_size,)).copy()

  def integers(
    value: ArrayLike | Sequence[int],
    into_range: Callable[[int], int],
    dtype: type[np.integer],
  ) -> np.ndarray:
    values = [into_range(int(x)) for x in np.ravel(np.asarray(value, object))]
    return np.broadcast_to(np.asarray(values, dtype), (batch_size,)).copy()

  def number(name: str, value: ArrayLike) -> np.ndarray:
    return floats(name, value, 'a finite number', np.isfinite)

  return SamplingSettings(
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


def uniforms(seed_B: ArrayLike, step_B: jax.Array, k: int) -> jax.Array:
  """Uniform random numbers for the next k tokens of each row.

  Entry [b, i] depends on (seed_B[b], step_B[b] + i) only, so a completion does
  not depend on batch size, block size or neighbours.

  Args:
    seed_B: uint32[B].
    step_B: int32[B], completion tokens sampled so far.

  Returns:
    float32[B, k] in [0, 1).
  """

  def one(seed: ArrayLike, step: jax.Array) -> jax.Array:
    return jax.random.uniform(jax.random.fold_in(jax.random.key(seed), step))

  steps_Bk = step_B[:, None] + jnp.arange(k, dtype=jnp.int32)[None]
  return jax.vmap(jax.vmap(one, (None, 0)))(seed_B, steps_Bk)


def penalise(
  logits_BV: jax.Array,
  settings: SamplingSettings,
  in_prompt_BV: jax.Array,
  counts_BV: jax.Array,
) -> jax.Array:
  """Applies the repetition, frequency and presence penalties.

  With r, f, p the settings and c the count of a token in the completion:

    logit' = (logit / r if logit > 0 else logit * r   if in prompt or c > 0
              else logit) - f c - p [c > 0]

  Args:
    logits_BV: float32[B, V].
    in_prompt_BV: bool[B, V], tokens that occur in the prompt.
    counts_BV: int32[B, V], count of each token in the completion.

  Returns:
    float32[B, V].

  References:
    Keskar et al. 2019, CTRL (https://arxiv.org/abs/1909.05858), section 4.1;
    OpenAI API reference, frequency_penalty and presence_penalty.
  """
  seen_BV = in_prompt_BV | (counts_BV > 0)
  factor_BV = jnp.where(
    logits_BV > 0,
    1 / settings.repetition[:, None],
    settings.repetition[:, None],
  )
  logits_BV = jnp.where(seen_BV, logits_BV * factor_BV, logits_BV)
  counts_BV = counts_BV.astype(jnp.float32)
  logits_BV -= settings.frequency[:, None] * counts_BV
  return logits_BV - settings.presence[:, None] * (counts_BV > 0)


def largest(
  holds: Callable[[jax.Array], jax.Array], batch_size: int
) -> jax.Array:
  """The largest t in [0, 1] with holds(t), by bisection.

  Non-negative float32 values sort like their bit patterns, so 30 halvings of
  the pattern give the exact value without sorting the vocabulary.

  Args:
    holds: float32[B] -> bool[B]; monotone: true at 0, and once false it stays
      false.

  Returns:
    float32[B].
  """

  def halve(
    _: jax.Array, bounds: tuple[jax.Array, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
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


def top_k_threshold(probs_BV: jax.Array, top_k_B: jax.Array) -> jax.Array:
  """float32[B]: the k-th largest probability; the smallest if top-k is off."""
  k_B = jnp.where(top_k_B <= 0, probs_BV.shape[-1], top_k_B)

  def enough(t_B: jax.Array) -> jax.Array:
    return jnp.sum(probs_BV >= t_B[:, None], axis=-1) >= k_B

  return largest(enough, probs_BV.shape[0])


def top_p_threshold(probs_BV: jax.Array, top_p_B: jax.Array) -> jax.Array:
  """float32[B]: the smallest probability that top-p keeps; 0 if it is off.

  The nucleus is the smallest set of most probable tokens whose sum reaches
  top_p of the total; the token that crosses the threshold is in it.
  """
  target_B = top_p_B * jnp.sum(probs_BV, axis=-1)

  def enough(t_B: jax.Array) -> jax.Array:
    kept_BV = jnp.where(probs_BV >= t_B[:, None], probs_BV, 0.0)
    return jnp.sum(kept_BV, axis=-1) >= target_B

  threshold_B = largest(enough, probs_BV.shape[0])
  return jnp.where(top_p_B >= 1, 0.0, threshold_B)


def keep_above(probs_BV: jax.Array, threshold_B: jax.Array) -> jax.Array:
  """float32[B, V]: zero where the probability is below the row's threshold."""
  return jnp.where(probs_BV >= threshold_B[:, None], probs_BV, 0.0)


def filter_probs(probs_BV: jax.Array, settings: SamplingSettings) -> jax.Array:
  """float32[B, V]: probs, zero where top-k, top-p or min-p excludes a token.

  The result is not renormalised. A filter that no row uses costs nothing.
  """
  top_k_B, top_p_B = settings.top_k, settings.top_p
  sampled_B = settings.temperature > 0
  min_BV = keep_above(probs_BV, settings.min_p * jnp.max(probs_BV, axis=-1))
  probs_BV = jax.lax.cond(
    jnp.any(sampled_B & (top_k_B > 0)),
    lambda: keep_above(probs_BV, top_k_threshold(probs_BV, top_k_B)),
    lambda: probs_BV,
  )
  probs_BV = jax.lax.cond(
    jnp.any(sampled_B & (top_p_B < 1)),
    lambda: keep_above(probs_BV, top_p_threshold(probs_BV, top_p_B)),
    lambda: probs_BV,
  )
  return jnp.where(min_BV > 0, probs_BV, 0.0)


def draw(probs_BV: jax.Array, uniform_B: jax.Array) -> jax.Array:
  """Draws one token per row by inverse CDF; probs need not sum to 1.

  Takes the first possible token whose CDF exceeds the uniform. A parallel
  cumulative sum can round up at a token of probability 0, so zero-probability
  tokens are masked explicitly; it can also stay below the uniform, and then
  the last possible token is taken.

  Args:
    probs_BV: float32[B, V] >= 0.
    uniform_B: float32[B] in [0, 1).

  Returns:
    int32[B].
  """
  cdf_BV = jnp.cumsum(probs_BV, axis=-1)
  target_B = uniform_B * cdf_BV[:, -1]
  possible_BV = probs_BV > 0
  ids = jnp.arange(probs_BV.shape[-1], dtype=jnp.int32)[None]
  last_B = jnp.max(jnp.where(possible_BV, ids, 0), axis=-1)
  past_BV = possible_BV & (cdf_BV > target_B[:, None])
  return jnp.min(jnp.where(past_BV, ids, last_B[:, None]), axis=-1)


def sample(
  logits_BV: jax.Array,
  uniform_B: jax.Array,
  settings: SamplingSettings,
  bias_BV: jax.Array,
) -> jax.Array:
  """Samples one token per row from penalised logits.

  Args:
    logits_BV: float32[B, V].
    uniform_B: float32[B] in [0, 1), from `uniforms`.
    bias_BV: float32, broadcastable to [B, V], added; -inf bans a token.

  Returns:
    int32[B].
  """
  logits_BV = logits_BV + bias_BV
  greedy_B = settings.temperature <= 0
  # Shift before dividing: a tiny temperature must not overflow.
  logits_BV -= jnp.max(logits_BV, axis=-1, keepdims=True)
  temperature_B = jnp.where(
    greedy_B, 1.0, jnp.maximum(settings.temperature, 1e-6)
  )
  probs_BV = jax.nn.softmax(logits_BV / temperature_B[:, None])
  sampled_B = draw(filter_probs(probs_BV, settings), uniform_B)
  # argmax, first of ties; jnp.argmax is four times slower on XLA:CPU.
  ids = jnp.arange(logits_BV.shape[-1], dtype=jnp.int32)[None]
  best_B = jnp.min(jnp.where(logits_BV >= 0, ids, ids.shape[-1] - 1), axis=-1)
  return jnp.where(greedy_B, best_B, sampled_B)
