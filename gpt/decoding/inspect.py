"""Looking inside a model: where each head attends, what it expects next.

The probabilities are computed from the very queries and keys of the forward
pass (taken from its modules as it runs), so they cannot drift from the model.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gpt.model.attention import attend, causal_mask
from gpt.model.transformer import GPT, Block


def attention_probs(model, params, tokens_BL) -> np.ndarray:
  """How much each position looks at each earlier one, head by head.

  Args:
    model: GPT.
    params: its parameter tree.
    tokens_BL: int[B, L], L <= block_size.

  Returns:
    float32[N, B, H, L, S = L]; every row sums to 1, the future has 0.
  """
  taken = []

  def take(call, args, kwargs, context):
    out = call(*args, **kwargs)
    if isinstance(context.module, Block) and context.method_name == 'qkv':
      taken.append(out)
    return out

  def forward(params, tokens_BL):
    taken.clear()
    with nn.intercept_methods(take):
      model.apply({'params': params}, tokens_BL)
    return jnp.stack([_probs(q, k) for q, k, _ in taken])

  model = GPT(dataclasses.replace(model.cfg, remat=False))
  tokens_BL = jnp.asarray(tokens_BL, jnp.int32)
  return np.asarray(jax.jit(forward)(params, tokens_BL))


def _probs(q_BLHK, k_BSGK):
  """Softmax of the scores: `attend` with the identity for values."""
  batch, length, n_head, _ = q_BLHK.shape
  identity = jnp.eye(length, dtype=jnp.float32)[None, :, None]
  shape = (batch, length, n_head, length)
  out_BLHS = attend(
    q_BLHK,
    k_BSGK,
    jnp.broadcast_to(identity, shape),
    causal_mask(length)[None],
  )
  return out_BLHS.transpose(0, 2, 1, 3)


def next_probs(model, params, tokens_BL) -> np.ndarray:
  """float32[B, L, V]: probabilities of the token after each position."""
  tokens_BL = jnp.asarray(tokens_BL, jnp.int32)
  logits = jax.jit(model.apply)({'params': params}, tokens_BL)
  return np.asarray(jax.nn.softmax(logits))


def top_tokens(tokenizer, probs_V, k: int = 5) -> list[tuple[str, float]]:
  """The k likeliest tokens, as text that can be read, with probabilities."""
  best = np.argsort(-np.asarray(probs_V), kind='stable')[:k]
  return [(token_text(tokenizer, i), float(probs_V[i])) for i in best.tolist()]


def token_text(tokenizer, id: int) -> str:
  """A token as text: '\\n' and partial UTF-8 escaped, control tokens named."""
  names = {i: name for name, i in tokenizer.special_tokens.items()}
  if id in names:
    return names[id]
  data = tokenizer.token_bytes(id)
  try:
    text = data.decode('utf-8')
  except UnicodeDecodeError:
    return ''.join(f'\\x{b:02x}' for b in data)
  return ''.join(
    c if c.isprintable() else c.encode('unicode_escape').decode() for c in text
  )


def principal_plane(rows_ND) -> tuple[np.ndarray, np.ndarray]:
  """Rows projected on their two widest directions (PCA).

  Returns:
    (float[N, 2], float[2] share of the variance each direction holds).
  """
  x = np.asarray(rows_ND, np.float64)
  x = x - x.mean(0)
  _, scale, directions = np.linalg.svd(x, full_matrices=False)
  total = max((scale**2).sum(), 1e-30)
  plane = np.zeros((len(x), 2))
  plane[:, : len(directions[:2])] = x @ directions[:2].T
  share = np.zeros(2)
  share[: len(scale[:2])] = scale[:2] ** 2 / total
  return plane, share
