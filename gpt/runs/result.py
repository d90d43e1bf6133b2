"""The result of a training run."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Result:
  """The outcome of a call of `train_and_evaluate`.

  Attributes:
    outcome: 'finished', 'interrupted', 'early stop' or 'nothing' (to train).
    step: completed steps.
    best_loss: lowest validation loss, nats/token.
    final: {'final': values, 'best': values} of the full passes, if any.
    workdir: of the run.
  """

  outcome: str
  step: int
  best_loss: float
  final: dict
  workdir: str
