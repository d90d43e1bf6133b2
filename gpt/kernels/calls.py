"""Calls of the kernels: pure functions of packed weights and a decode state."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import ffi

from gpt.kernels.weights import PANEL, Packed, move_to_large_pages
from gpt.model.config import MLPS, GPTConfig

MAX_STEPS = 64  # A block writes at most so many columns past the window.
LOGIT_STEPS = 16  # Of a block whose logits are wanted: they take memory.
DRAFT = 5  # Tokens that a single row tries beside the next one.


@struct.dataclass
class KernelState:
  """As blocks.DecodeState, with the cache as the kernels read it.

  Attributes:
    k: float32[B, N, G, S / 64, K, 64], or uint32[.., K / 2, 64] in pairs of
      bfloat16.
    v: float32[B, N, G, S, K], or uint32[.., S / 2, K].
    tokens: int32[B, S], of the columns; where drafts come from.
    in_prompt, counts, bias: of DecodeState.
  """

  k: Any
  v: Any
  tokens: Any
  in_prompt: Any
  counts: Any
  bias: Any


@dataclasses.dataclass(frozen=True)
class Plan:
  """Static arguments of the programs; hashable.

  Attributes:
    pairs: weights in bfloat16. rounded: products also round the activations
      to bfloat16, where the processor has such instructions.
    cache_pairs: keys and values in bfloat16.
    threads: most of a product.
    draft: tokens that a single row tries beside the next one; 0: none. It does
      not change the text.
  """

  cfg: GPTConfig
  threads: int
  pairs: bool = False
  rounded: bool = False
  cache_pairs: bool = False
  draft: int = 0

  def attributes(self, head: bool = False) -> dict[str, np.ndarray]:
    cfg = self.cfg
    dims = [
      cfg.n_embd,
      cfg.n_head,
      cfg.kv_heads,
      cfg.head_dim,
      cfg.mlp_width,
      cfg.vocab_size,
      cfg.n_layer,
      cfg.block_size,
      MLPS.index(cfg.mlp),
      cfg.pos == 'rope',
      cfg.norm == 'layer',
      cfg.qk_norm,
      cfg.embed_norm,
      cfg.final_norm,
      self.rounded,
      self.threads,
      head,
    ]
    return {
      'dims': np.array(dims, np.int32),
      'numbers': np.array([cfg.norm_eps, cfg.logit_softcap], np.float32),
    }


def init_state(plan: Plan, slots: int) -> KernelState:
  """A state of empty slots."""
  cfg = plan.cfg
  S = -(-(cfg.block_size + MAX_STEPS) // PANEL) * PANEL
  K, dtype = cfg.head_dim, jnp.float32
  keys, values = (S // PANEL, K, PANEL), (S, K)
  if plan.cache_pairs:
    keys, values, dtype = (S // PANEL, K // 2, PANEL), (S // 2, K), jnp.uint32
  lead, vocab = (slots, cfg.n_layer, cfg.kv_heads), (slots, cfg.vocab_size)
  return KernelState(
    k=jnp.zeros(lead + keys, dtype),
    v=jnp.zeros(lead + values, dtype),
    tokens=jnp.zeros((slots, S), jnp.int32),
    in_prompt=jnp.zeros(vocab, bool),
    counts=jnp.zeros(vocab, jnp.int32),
    bias=jnp.zeros(vocab, jnp.float32),
  )


def fill(
  plan: Plan,
  weights: Packed,
  state: KernelState,
  slot: jax.Array,
  first: jax.Array,
  count: jax.Array,
  tokens_L: jax.Array,
  out: str = '',
) -> tuple[KernelState, jax.Array]:
  """Tokens at the positions first .. first + count - 1 of a slot.

  Args:
    slot, first, count: int32 scalars.
    tokens_L: int32[L], count <= L; the rest is not read.
    out: '', 'hidden' or 'logits'.

  Returns:
    (state, float32[L, D or V] of the tokens, or [0]).
  """
  cfg = plan.cfg
  width = {'': 0, 'hidden': cfg.n_embd, 'logits': cfg.vocab_size}[out]
  shape = (tokens_L.shape[0], width) if out else (0,)
  results = (
    jax.ShapeDtypeStruct(shape, jnp.float32),
    *map(like, (state.tokens, state.k, state.v)),
  )
  at = 3 + len(weights)
  found, tokens, k, v = ffi.ffi_call(
    'rgpt_fill', results, input_output_aliases={2: 1, at: 2, at + 1: 3}
  )(
    jnp.stack([slot, first, count]).astype(jnp.int32),
    tokens_L,
    state.tokens,
    *weights,
    state.k,
    state.v,
    **plan.attributes(out == 'logits'),
  )
  return dataclasses.replace(state, tokens=tokens, k=k, v=v), found


def decode(
  plan: Plan,
  weights: Packed,
  state: KernelState,
  slots_b: jax.Array,
  last_b: jax.Array,
  length_b: jax.Array,
  step_b: jax.Array,
  settings: Any,  # SamplingSettings of all slots.
  rows: jax.Array,
  steps: jax.Array,
  logits: bool = False,
) -> tuple[KernelState, jax.Array, jax.Array]:
  """As blocks.decode_block for the first `rows` rows and `steps` steps.

  Args:
    logits: at most LOGIT_STEPS steps then, else MAX_STEPS.

  Returns:
    (state, int32[b, k], float32[b, k, V] raw logits or [0]), with k the most
    steps; what lies beyond `rows` and `steps` is undefined.
  """
  b, V = slots_b.shape[0], plan.cfg.vocab_size
  s = settings
  numbers = [
    s.temperature,
    jnp.minimum(s.top_k, V).astype(jnp.float32),
    s.top_p,
    s.min_p,
    s.repetition,
    s.frequency,
    s.presence,
  ]
  at, k = 11 + len(weights), LOGIT_STEPS if logits else MAX_STEPS
  tokens, found, counts, columns, keys, v = ffi.ffi_call(
    'rgpt_decode',
    (
      jax.ShapeDtypeStruct((b, k), jnp.int32),
      jax.ShapeDtypeStruct((b, k, V) if logits else (0,), jnp.float32),
      *map(like, (state.counts, state.tokens, state.k, state.v)),
    ),
    input_output_aliases={8: 2, 10: 3, at: 4, at + 1: 5},
  )(
    jnp.stack([rows, steps, *map(jnp.int32, (plan.draft, logits))]),
    slots_b,
    last_b,
    length_b,
    step_b,
    s.seed,
    jnp.stack(numbers, axis=1),
    state.in_prompt,
    state.counts,
    state.bias,
    state.tokens,
    *weights,
    state.k,
    state.v,
    **plan.attributes(),
  )
  state = dataclasses.replace(state, k=keys, v=v, tokens=columns, counts=counts)
  return state, tokens, found


def like(x: jax.Array) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


def seat(
  state: KernelState,
  slot: jax.Array,
  in_prompt_V: jax.Array,
  counts_V: jax.Array,
  bias_V: jax.Array,
) -> KernelState:
  """Sets what the penalties and the bias of a slot's request need."""

  def put(old: jax.Array, new: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice(old, new[None], (slot, 0))

  return dataclasses.replace(
    state,
    in_prompt=put(state.in_prompt, in_prompt_V),
    counts=put(state.counts, counts_V),
    bias=put(state.bias, bias_V),
  )


jit_init_state = jax.jit(init_state, static_argnums=(0, 1))
jit_fill = jax.jit(
  fill, static_argnums=0, static_argnames='out', donate_argnums=2
)
jit_decode = jax.jit(
  decode, static_argnums=0, static_argnames='logits', donate_argnums=2
)
jit_seat = jax.jit(seat, donate_argnums=0)


def new_state(plan: Plan, slots: int) -> KernelState:
  """As `init_state`, outside of any program, in large pages."""
  state = jit_init_state(plan, slots)
  move_to_large_pages(state.k, state.v)
  return state
