"""Suggestions for a name that does not exist."""

import difflib
from collections.abc import Iterable


def closest(name: str, names: Iterable[str], limit: int = 3) -> list[str]:
  """The names most like `name`, best first.

  `model.lr` is like `lr`: a right last part in the wrong group counts.
  """

  def ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()

  def score(other: str) -> float:
    last, other_last = name.split('.')[-1], other.split('.')[-1]
    return max(ratio(name, other), 0.95 * ratio(last, other_last))

  scored = sorted(((score(n), n) for n in names), key=lambda x: (-x[0], x[1]))
  best = scored[0][0] if scored else 0.0
  return [n for s, n in scored[:limit] if s >= max(0.6, 0.9 * best)]


def did_you_mean(names: list[str]) -> str:
  """'; did you mean a or b?', or ''."""
  return f'; did you mean {" or ".join(names)}?' if names else ''
