"""Next-token cross-entropy as (sum, count), and its reporting units."""

import math

import jax
import jax.numpy as jnp


def cross_entropy(logits_BLV, targets_BL):
  """Nats of each target: logsumexp(logits) - logits[target].

  Args:
    logits_BLV: float32[B, L, V].
    targets_BL: int32[B, L].

  Returns:
    float32[B, L]. The target's logit is picked by comparison, not by gather:
    its gradient is dense arithmetic, right on every backend.
  """
  vocab = jax.lax.broadcasted_iota(jnp.int32, (1, 1, logits_BLV.shape[-1]), 2)
  is_target_BLV = vocab == targets_BL[:, :, None]
  picked_BL = jnp.sum(jnp.where(is_target_BLV, logits_BLV, 0.0), axis=-1)
  return jax.nn.logsumexp(logits_BLV, axis=-1) - picked_BL


def weighted_sum(nats_BL, weights_BL):
  """(sum, count): add them up over batches, divide once when reporting."""
  return jnp.sum(nats_BL * weights_BL), jnp.sum(weights_BL)


def perplexity(nats_per_token: float) -> float:
  """exp(nats per token); inf instead of an overflow."""
  return math.exp(nats_per_token) if nats_per_token < 700 else math.inf


def bits_per_byte(nats: float, n_bytes: float) -> float:
  """Total nats / (ln 2 * bytes of UTF-8 text): comparable across tokenizers."""
  return nats / (math.log(2) * n_bytes) if n_bytes else math.nan
