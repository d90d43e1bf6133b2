"""The server's programs on the compiled kernels: a few, for any request.

A kernel takes the numbers of rows, steps and tokens as values, not as shapes.
So one program decodes and one prefills, and each compiles in milliseconds.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt import kernels
from gpt.decoding import blocks, sampling
from gpt.kernels import calls, columns
from gpt.kernels.weights import Packed
from gpt.model import GPT
from serving.engine.programs import UNIFORMS, Programs, array, shapes_of
from serving.engine.slots import ranked

SCORED = 64  # Tokens of a prompt that are scored at once.


def make_programs(
  model: GPT,
  slots: int,
  lanes: int,
  shapes: list[tuple[int, int, int]] | None,
  weights: str,
) -> Programs:
  """Programs of the kernels where they can be used, else of XLA.

  Args:
    lanes: for XLA; kernels have one lane, and use all cores in it.
    weights: see kernels.plan_for.
  """
  model = blocks.for_decoding(model)
  plan = None if shapes else kernels.plan_for(model.cfg, weights)
  if plan is not None:
    return KernelPrograms(model, plan, slots)
  return Programs(model, -(-slots // lanes), lanes, shapes)


class KernelPrograms(Programs):
  """As Programs; the state is a KernelState, the params are Packed weights."""

  block_seconds = 0.015  # Another block costs less here.

  def __init__(self, model: GPT, plan: calls.Plan, slots: int) -> None:
    super().__init__(model, slots)
    self.plan = plan
    self._fill: Any = None
    self._decode: dict[bool, Any] = {}
    self._scratch: Any = None
    self._states: Any = None

  def _jobs(self, params: Any) -> list[Callable[[], None]]:
    cfg, plan, int32 = self.model.cfg, self.plan, jnp.int32
    state = jax.eval_shape(lambda: calls.init_state(plan, self.slots))
    one = jax.eval_shape(lambda: calls.init_state(plan, 1))
    number, rows = array((), int32), array((self.slots,), int32)
    vocab = (cfg.vocab_size,)

    def compiled(function: Callable, *args: Any, donate: int | None = None):
      donated = () if donate is None else donate
      return jax.jit(function, donate_argnums=donated).lower(*args).compile()

    def fill() -> None:
      self._fill = compiled(
        lambda weights, state, slot, first, count, tokens: calls.fill(
          plan, weights, state, slot, first, count, tokens
        )[0],
        *(params, state, number, number, number),
        array((self.block_size,), int32),
        donate=1,
      )

    def decode(logits: bool) -> None:
      settings = shapes_of(sampling.settings(self.slots))
      self._decode[logits] = compiled(
        lambda *args: calls.decode(plan, *args, logits=logits),
        *(params, state, rows, rows, rows, rows, settings, number, number),
        donate=1,
      )

    def score() -> None:
      def program(
        weights: Any, state: Any, first: Any, count: Any, given: Any, next: Any
      ) -> tuple[Any, Any]:
        state, logits_LV = calls.fill(
          plan, weights, state, jnp.int32(0), first, count, given, out='logits'
        )
        return state, ranked(logits_LV, next)

      tokens = array((SCORED,), int32)
      self._score = compiled(
        program, params, one, number, number, tokens, tokens, donate=1
      )

    def hidden() -> None:
      self._states = compiled(
        lambda weights, state, first, count, tokens_L: calls.fill(
          plan,
          weights,
          state,
          jnp.int32(0),
          first,
          count,
          tokens_L,
          out='hidden',
        ),
        *(params, one, number, number, array((SCORED,), int32)),
        donate=1,
      )

    def small() -> None:
      row = array(vocab, bool), array(vocab, int32), array(vocab, jnp.float32)
      self._seat = compiled(calls.seat, state, number, *row, donate=0)
      self._new_state = lambda: calls.new_state(plan, self.slots)
      self._scratch = compiled(lambda: calls.init_state(plan, 1))

    decodes = [functools.partial(decode, logits) for logits in (False, True)]
    return [fill, *decodes, score, hidden, small]

  def prepare(self, params: Any, known: dict[tuple, Any]) -> Packed:
    if isinstance(params, tuple):
      return params
    return kernels.pack(self.plan.cfg, params, self.plan.pairs, known)

  def warm_up(self, params: Any, state: Any) -> Any:
    vocab, zeros = self.model.cfg.vocab_size, np.zeros
    rows = zeros(vocab, bool), zeros(vocab, np.int32), zeros(vocab, np.float32)
    token = zeros(1, np.int32)
    state = self.fill(params, state, 0, token, 0, *rows)
    zeros_b = zeros(self.slots, np.int32)
    state, _, _ = self.block(
      params,
      state,
      np.arange(self.slots, dtype=np.int32),
      zeros_b,
      zeros_b,
      zeros_b,
      sampling.settings(self.slots),
      zeros((self.slots, 1), np.float32),
    )
    state = self.write_columns(state, 0, [self.read_columns(state, 0, 0, 1)])
    self.score(params, token, token)
    self.hidden(params, token)
    return jax.block_until_ready(state)

  def fill(
    self,
    params: Any,
    state: Any,
    slot: int,
    tokens: np.ndarray,
    first: int,
    in_prompt_V: np.ndarray,
    counts_V: np.ndarray,
    bias_V: np.ndarray | None,
  ) -> Any:
    at = np.int32(slot)
    state = self._seat(state, at, in_prompt_V, counts_V, bias_V)
    if not len(tokens):
      return state
    padded = np.zeros(self.block_size, np.int32)
    padded[: len(tokens)] = tokens
    count = np.int32(len(tokens))
    return self._fill(params, state, at, np.int32(first), count, padded)

  def read_columns(
    self, state: Any, slot: int, first: int, n: int
  ) -> np.ndarray:
    return columns.read(state, slot, first, n)

  def write_columns(
    self, state: Any, slot: int, pieces: list[np.ndarray]
  ) -> Any:
    columns.write(state, slot, pieces)
    return state

  def rows(self, n: int) -> int:
    return n

  def steps(self, b: int, logits: bool) -> list[int]:
    most = calls.LOGIT_STEPS if logits else calls.MAX_STEPS
    return list(range(1, most + 1))

  def uniforms(self, seed: int, step: int) -> Any:
    return np.zeros(UNIFORMS, np.float32)  # The kernel draws the same ones.

  def block(
    self,
    params: Any,
    state: Any,
    slots_b: np.ndarray,
    last_b: np.ndarray,
    length_b: np.ndarray,
    step_b: np.ndarray,
    s: sampling.SamplingSettings,
    uniform_bk: np.ndarray,
    logits: bool = True,
  ) -> tuple[Any, Any, Any]:
    b, k = uniform_bk.shape

    def padded(x: np.ndarray) -> np.ndarray:
      return np.concatenate([x, np.zeros(self.slots - b, x.dtype)])

    state, tokens_bk, logits_bkV = self._decode[logits](
      params,
      state,
      *map(padded, (slots_b, last_b, length_b, step_b)),
      s,
      np.int32(b),
      np.int32(k),
    )
    # What lies beyond is undefined, even as numbers.
    if logits:
      logits_bkV = np.asarray(logits_bkV)[:b, :k]
    return state, np.asarray(tokens_bk)[:b, :k], logits_bkV

  def score(
    self, params: Any, tokens: np.ndarray, targets: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    state, found = self._scratch(), []
    for first, count, given in pieces(tokens):
      _, _, wanted = next(pieces(targets[first:]))
      state, ranking = self._score(params, state, first, count, given, wanted)
      found.append([np.asarray(x)[:count] for x in ranking])
    target_L, best_LC, ids_LC = map(np.concatenate, zip(*found))
    return target_L, best_LC, ids_LC

  def hidden(self, params: Any, tokens: np.ndarray) -> np.ndarray:
    state, total_D = self._scratch(), 0.0
    for first, count, given in pieces(tokens):
      state, state_LD = self._states(params, state, first, count, given)
      total_D += np.asarray(state_LD)[:count].sum(axis=0)
    return np.asarray(total_D / max(np.linalg.norm(total_D), 1e-12))


def pieces(tokens: np.ndarray) -> Iterator[tuple[np.int32, np.int32, Any]]:
  """(first, count, int32[SCORED]) of a sequence; the last one is padded."""
  for first in range(0, len(tokens), SCORED):
    piece = tokens[first : first + SCORED]
    padded = np.zeros(SCORED, np.int32)
    padded[: len(piece)] = piece
    yield np.int32(first), np.int32(len(piece)), padded
