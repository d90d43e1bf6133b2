"""Attention probabilities, next-token probabilities and raw logits of a model.

The attention probabilities come from the queries and keys that the forward
pass computes (intercepted as it runs), so they cannot drift from the model.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gpt.errors import UserError
from gpt.files import replacing
from gpt.model.attention import attend, causal_mask
from gpt.model.params import Params
from gpt.model.transformer import GPT, Block, GPTConfig
from gpt.tokenizers import Tokenizer

# Tokens per forward pass of `write_logits`; bounds its memory.
TOKENS_PER_PASS = 4096


def attention_probs(
  model: GPT, params: Params, tokens_BL: np.ndarray
) -> np.ndarray:
  """Attention probabilities of every layer and head.

  Args:
    tokens_BL: int[B, L], L <= block_size.

  Returns:
    float32[N, B, H, L, S] with S = L; rows sum to 1, future keys have 0.
  """
  captured = []

  def capture(
    call: Callable[..., Any],
    args: tuple,
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
  ) -> Any:
    out = call(*args, **kwargs)
    if isinstance(context.module, Block) and context.method_name == 'qkv':
      captured.append(out)
    return out

  def forward(params: Params, tokens_BL: jax.Array) -> jax.Array:
    captured.clear()
    with nn.intercept_methods(capture):
      model.apply({'params': params}, tokens_BL)
    return jnp.stack([_probs(q, k) for q, k, _ in captured])

  model = GPT(dataclasses.replace(model.cfg, remat=False))
  return np.asarray(jax.jit(forward)(params, jnp.asarray(tokens_BL, jnp.int32)))


def _probs(q_BLHK: jax.Array, k_BSGK: jax.Array) -> jax.Array:
  """Softmax of the scores: `attend` with the identity matrix as values."""
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


def next_probs(model: GPT, params: Params, tokens_BL: np.ndarray) -> np.ndarray:
  """float32[B, L, V]: probabilities of the token after each position.

  Args:
    tokens_BL: int[B, L], L <= block_size.
  """
  logits_BLV = jax.jit(model.apply)(
    {'params': params}, jnp.asarray(tokens_BL, jnp.int32)
  )
  return np.asarray(jax.nn.softmax(logits_BLV))


def top_tokens(
  tokenizer: Tokenizer, probs_V: np.ndarray, k: int = 5
) -> list[tuple[str, float]]:
  """The k most probable tokens as (readable text, probability).

  Args:
    probs_V: float[V]. Ties are in the order of token ids.
  """
  best = np.argsort(-np.asarray(probs_V), kind='stable')[:k]
  return [(token_text(tokenizer, i), float(probs_V[i])) for i in best.tolist()]


def token_text(tokenizer: Tokenizer, id: int) -> str:
  """A token as printable text: escapes '\\n' and partial UTF-8.

  Special tokens are shown by name.
  """
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


def principal_plane(rows_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Projects rows onto their first two principal components (PCA).

  Args:
    rows_ND: float[N, D].

  Returns:
    (float[N, 2] projections, float[2] fraction of the variance explained).
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


def write_logits(
  cfg: GPTConfig,
  params: Params,
  ids_BL: np.ndarray,
  path: str | pathlib.Path,
) -> tuple[int, int, int]:
  """Writes the logits of token ids to a .npy file, for parity checks.

  Computes in float32 with the highest matmul precision, whatever cfg.dtype is.
  The file is written atomically.

  Args:
    ids_BL: int[B, L], L <= block_size.
    path: output file, float32[B, L, V].

  Returns:
    (B, L, V).

  Raises:
    UserError: ids of a wrong shape, dtype or range; an unwritable path.
  """
  cfg = dataclasses.replace(cfg, dtype='float32', attention='plain')
  ids_BL = check_ids(ids_BL, cfg)
  batch, length = ids_BL.shape
  rows = min(batch, max(1, TOKENS_PER_PASS // length))
  forward = jax.jit(GPT(cfg).apply)
  variables = {'params': jax.device_put(params)}
  shape = batch, length, cfg.vocab_size
  path = pathlib.Path(path)
  try:
    with replacing(path) as file, jax.default_matmul_precision('highest'):
      np.lib.format.write_array_header_1_0(
        file, {'descr': '<f4', 'fortran_order': False, 'shape': shape}
      )
      for i in range(0, batch, rows):
        part = ids_BL[i : i + rows]
        padded = np.zeros((rows, length), np.int32)
        padded[: len(part)] = part
        logits = np.asarray(forward(variables, padded)[: len(part)], '<f4')
        file.write(logits.tobytes())
  except OSError as e:
    raise UserError(f'cannot write {path}: {e.strerror}') from e
  return shape


def check_ids(ids: np.ndarray, cfg: GPTConfig) -> np.ndarray:
  """The ids as int32[B, L]; UserError unless all are valid tokens."""
  if not np.issubdtype(ids.dtype, np.integer):
    raise UserError(f'ids are {ids.dtype}; expected integers')
  if ids.ndim != 2 or not ids.size:
    raise UserError(
      f'ids have the shape {list(ids.shape)}; expected [B, L]: B >= 1 rows of '
      'L >= 1 tokens'
    )
  if ids.shape[1] > cfg.block_size:
    raise UserError(
      f'rows of {ids.shape[1]} ids are longer than the context of '
      f'{cfg.block_size} tokens'
    )
  low, high = int(ids.min()), int(ids.max())
  if low < 0 or high >= cfg.vocab_size:
    raise UserError(
      f'ids range from {low} to {high}; allowed: 0 to {cfg.vocab_size - 1}'
    )
  return ids.astype(np.int32)
