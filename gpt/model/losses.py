"""Next-token cross-entropy as (sum, count), and the units it is reported in."""

import math

import jax
import jax.numpy as jnp


def cross_entropy(logits_BLV: jax.Array, targets_BL: jax.Array) -> jax.Array:
  """Cross-entropy of each target: logsumexp(logits) - logits[target].

  The target's logit is selected by comparison instead of a gather: the gradient
  is then dense arithmetic, correct on every backend (Metal included).

  Args:
    logits_BLV: float32[B, L, V].
    targets_BL: int32[B, L].

  Returns:
    float32[B, L], nats.
  """
  vocab = jax.lax.broadcasted_iota(jnp.int32, (1, 1, logits_BLV.shape[-1]), 2)
  is_target_BLV = vocab == targets_BL[:, :, None]
  picked_BL = jnp.sum(jnp.where(is_target_BLV, logits_BLV, 0.0), axis=-1)
  return jax.nn.logsumexp(logits_BLV, axis=-1) - picked_BL


def weighted_sum(
  nats_BL: jax.Array, weights_BL: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """(sum, count) as float32[]: add up over batches, divide when reporting.

  Args:
    nats_BL: float32[B, L] losses.
    weights_BL: float32[B, L], 0/1 loss mask.
  """
  return jnp.sum(nats_BL * weights_BL), jnp.sum(weights_BL)


def perplexity(nats_per_token: float) -> float:
  """exp(nats per token); inf where that overflows."""
  return math.exp(nats_per_token) if nats_per_token < 700 else math.inf


def bits_per_byte(nats: float, n_bytes: float) -> float:
  """Total nats / (ln 2 * UTF-8 bytes): comparable across tokenizers.

  NaN if there are no bytes.
  """
  return nats / (math.log(2) * n_bytes) if n_bytes else math.nan
