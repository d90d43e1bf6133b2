"""Calls of the kernels: pure functions of packed weights and a decode state."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import ffi

from gpt.kernels.weights import PANEL, VECTOR, Packed, move_to_large_pages
from gpt.model.config import MLPS, GPTConfig

MAX_STEPS = 64  # A block writes at most so many columns past the window.
LOGIT_STEPS = 16  # Of a block whose logits are wanted: they take memory.
DRAFT = 5  # Tokens that a single row tries beside the next one.


@struct.dataclass
class KernelState:
  """As blocks.DecodeState, with the cache as the kernels read it.

  Attributes:
    k: float32[B, N, G, S / 64, K, 64], or uint32[.., K / 2, 64] in pairs of
      bfloat16; K is padded to whole vectors.
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

  @property
  def columns(self) -> int:
    """Of a slot: S."""
    return -(-(self.cfg.block_size + MAX_STEPS) // PANEL) * PANEL

  @property
  def head_dim(self) -> int:
    """K, padded to whole vectors."""
    return -(-self.cfg.head_dim // VECTOR) * VECTOR

  def shape(self) -> np.ndarray:
    """int32[n]: the numbers of Shape in network.h; the last ones are floats."""
    cfg = self.cfg
    numbers = [
      cfg.n_embd,
      cfg.n_head,
      cfg.kv_heads,
      self.head_dim,
      cfg.mlp_width,
      cfg.vocab_size,
      cfg.n_layer,
      cfg.block_size,
      self.columns,
      cfg.head_dim,
      MLPS.index(cfg.mlp),
      cfg.pos == 'rope',
      cfg.pos == 'learned',
      cfg.norm == 'layer',
      cfg.qk_norm,
      cfg.exclusive_attention,
      cfg.embed_norm,
      cfg.final_norm,
      self.pairs,
      self.rounded,
      self.cache_pairs,
      self.threads,
    ]
    floats = np.array([cfg.norm_eps, cfg.logit_softcap], np.float32)
    return np.concatenate([np.array(numbers, np.int32), floats.view(np.int32)])


def init_state(plan: Plan, slots: int) -> KernelState:
  """A state of empty slots."""
  cfg, S, K, dtype = plan.cfg, plan.columns, plan.head_dim, jnp.float32
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


def call(
  plan: Plan,
  target: str,
  weights: Packed,
  state: KernelState,
  operands: tuple[Any, ...],
  results: tuple[jax.ShapeDtypeStruct, ...],
) -> tuple[KernelState, list[jax.Array]]:
  """(the state, changed in place, results) of a target of kernels.cc."""
  changed = state.tokens, state.counts, state.k, state.v
  like = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in changed]
  tokens, counts, k, v, *found = ffi.ffi_call(
    target,
    (*like, *results),
    input_output_aliases={i: i for i in range(len(changed))},
  )(*changed, *weights, *operands, shape=plan.shape())
  state = dataclasses.replace(state, tokens=tokens, counts=counts, k=k, v=v)
  return state, found


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
  kinds = '', 'hidden', 'logits'
  width = 0, plan.cfg.n_embd, plan.cfg.vocab_size
  kind = kinds.index(out)
  shape = (tokens_L.shape[0], width[kind]) if out else (0,)
  control = jnp.stack([slot, first, count, jnp.int32(kind)]).astype(jnp.int32)
  result = jax.ShapeDtypeStruct(shape, jnp.float32)
  state, (found,) = call(
    plan, 'rgpt_fill', weights, state, (control, tokens_L), (result,)
  )
  return state, found


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
  k = LOGIT_STEPS if logits else MAX_STEPS
  control = jnp.stack([rows, steps, *map(jnp.int32, (plan.draft, logits, k))])
  operands = control, slots_b, last_b, length_b, step_b, s.seed
  state, (tokens, found) = call(
    plan,
    'rgpt_decode',
    weights,
    state,
    (*operands, jnp.stack(numbers, axis=1), state.in_prompt, state.bias),
    (
      jax.ShapeDtypeStruct((b, k), jnp.int32),
      jax.ShapeDtypeStruct((b, k, V) if logits else (0,), jnp.float32),
    ),
  )
  return state, tokens, found


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
