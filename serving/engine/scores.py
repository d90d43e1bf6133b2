"""Log-probabilities of a prompt's tokens and of sampled ones; embeddings."""

import numpy as np

from gpt.decoding import blocks
from gpt.model.params import Params
from gpt.tokenizers import Tokenizer
from serving.engine.events import Embedded, Scored, Token
from serving.engine.programs import Programs
from serving.engine.text import TextStream


class PromptScores:
  """The log-probability of each token of a prompt given the tokens before it.

  `advance` runs one forward pass; a long prompt takes one for each position of
  its window, and other requests decode in between.

  Args:
    prompt: int32[n], not empty.
    alternatives: most probable tokens to report at each place.
    stride: how far the window moves at once.

  Attributes:
    tokens: scored so far, from the first on.
  """

  def __init__(
    self,
    prompt: np.ndarray,
    tokenizer: Tokenizer,
    alternatives: int,
    block_size: int,
    stride: int,
  ) -> None:
    self._prompt = prompt
    self._alternatives = alternatives
    self._block_size = block_size
    self._stride = stride
    self._text = TextStream(tokenizer)
    self.tokens: list[Token] = []
    # The first token has no context, so no probability.
    self._append(None, [])

  @property
  def done(self) -> bool:
    return len(self.tokens) == len(self._prompt)

  def advance(self, programs: Programs, params: Params) -> None:
    """Scores every token whose window starts where the next token's does."""
    if self.done:
      return
    n, window = len(self.tokens), self._block_size
    start = blocks.window_start(n, window, self._stride)
    end = min(start + window, len(self._prompt) - 1)
    inputs = self._prompt[start:end]
    targets = self._prompt[start + 1 : end + 1]
    target_L, best_LC, ids_LC = programs.score(params, inputs, targets)
    for i in range(n - start - 1, len(inputs)):
      pairs = zip(ids_LC[i].tolist(), best_LC[i].tolist())
      self._append(float(target_L[i]), list(pairs)[: self._alternatives])

  def event(self, number: int) -> Scored:
    """What the client is sent; `number` is the prompt's."""
    return Scored(number, self.tokens)

  def _append(
    self, logprob: float | None, top: list[tuple[int, float]]
  ) -> None:
    id, before = int(self._prompt[len(self.tokens)]), self._text.length
    self._text.feed(id)
    self.tokens.append(Token(id, before, self._text.length, logprob, top))


class PromptVector:
  """A prompt as a vector: a stand-in for PromptScores.

  Args:
    prompt: int32[n], at most a window.
  """

  def __init__(self, prompt: np.ndarray) -> None:
    self._prompt = prompt
    self._vector_D: np.ndarray | None = None

  @property
  def done(self) -> bool:
    return self._vector_D is not None

  def advance(self, programs: Programs, params: Params) -> None:
    """Computes the vector, in one pass."""
    self._vector_D = programs.hidden(params, self._prompt)

  def event(self, number: int) -> Embedded:
    """What the client is sent; `number` is the prompt's."""
    assert self._vector_D is not None
    return Embedded(number, self._vector_D)


def choice_logprobs(
  logits_kV: np.ndarray, ids: list[int], alternatives: int
) -> list[tuple[float, list[tuple[int, float]]]]:
  """For each id (its log-probability, [(id, log-probability), ...]).

  Args:
    logits_kV: float32[k, V], raw model output.
    ids: k sampled ids.
    alternatives: how many of the most probable tokens to list.
  """
  top_V = logits_kV.max(axis=-1, keepdims=True)
  shifted_kV = logits_kV - top_V
  logp_kV = shifted_kV - np.log(np.exp(shifted_kV).sum(axis=-1, keepdims=True))
  out = []
  for logp_V, id in zip(logp_kV, ids):
    best = [(i, float(logp_V[i])) for i in largest(logp_V, alternatives)]
    out.append((float(logp_V[id]), best))
  return out


def largest(values_V: np.ndarray, k: int) -> list[int]:
  """Ids of the k largest values in descending order; ties by lower id."""
  k = min(k, len(values_V))
  if not k:
    return []
  least = np.partition(values_V, -k)[-k]
  ids = np.flatnonzero(values_V >= least)
  return ids[np.argsort(-values_V[ids], kind='stable')[:k]].tolist()
