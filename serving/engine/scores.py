"""Log-probabilities: of a prompt's tokens, and of sampled ones."""

import numpy as np

from gpt.decoding import blocks
from serving.engine import jobs
from serving.engine.text import TextStream


class PromptScores:
  """The log-probability of each token of a prompt, given those before it.

  As many passes as the window has places over the prompt; `advance` does one
  of them, so that a long prompt does not stop everybody else.

  Attributes:
    tokens: a jobs.Token for each token of the prompt so far.
    done: all are there.
  """

  def __init__(self, prompt, job, block_size: int):
    self._prompt = prompt
    self._alternatives = job.sampling.logprobs
    self._block_size = block_size
    self._stride = jobs.stride(job.sampling.overflow, block_size)
    self._text = TextStream(job.tokenizer)
    self.tokens = []
    # What comes before the first token is unknown.
    self._append(None, [])

  @property
  def done(self) -> bool:
    return len(self.tokens) == len(self._prompt)

  def advance(self, programs, params) -> None:
    """Scores all tokens whose window starts at the same place."""
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

  def _append(self, logprob, top) -> None:
    id, before = int(self._prompt[len(self.tokens)]), self._text.length
    self._text.feed(id)
    self.tokens.append(jobs.Token(id, before, self._text.length, logprob, top))


def choice_logprobs(logits_kV, ids, alternatives: int) -> list:
  """For each id (its log-probability, [(id, log-probability), ...]).

  Args:
    logits_kV: float32[k, V], as the model gave them.
    ids: k sampled ids.
    alternatives: how many of the most probable ones.
  """
  top_V = logits_kV.max(axis=-1, keepdims=True)
  shifted_kV = logits_kV - top_V
  logp_kV = shifted_kV - np.log(np.exp(shifted_kV).sum(axis=-1, keepdims=True))
  out = []
  for logp_V, id in zip(logp_kV, ids):
    best = [(i, float(logp_V[i])) for i in largest(logp_V, alternatives)]
    out.append((float(logp_V[id]), best))
  return out


def largest(values_V, k: int) -> list[int]:
  """Ids of the k largest, largest first; of equal ones the smallest id."""
  k = min(k, len(values_V))
  if not k:
    return []
  least = np.partition(values_V, -k)[-k]
  ids = np.flatnonzero(values_V >= least)
  return ids[np.argsort(-values_V[ids], kind='stable')[:k]].tolist()
