"""The sampling options of a request, independent of any wire format."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

# What to do when prompt and completion outgrow the window: move it by half, by
# one token, end the text, or refuse the request.
Overflow = Literal['slide', 'exact', 'stop', 'error']
# Alternatives the compiled scoring program returns for each token.
MAX_TOP_LOGPROBS = 20


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Generation settings, shared by all choices of a request.

  Attributes:
    top_k: 0 turns it off.
    logit_bias: token id -> value added to its logit.
    stop: strings that end a choice. stop_token_ids: ids that do.
    ignore_eos: never sample the model's own end tokens.
    n: choices per prompt.
    seed: of choice 0; choice i uses seed + i.
    logprobs: alternatives per token; None: no log-probabilities at all.
    overflow: an Overflow.
    echo: the text of a choice begins with its prompt.
  """

  max_tokens: int = 256
  temperature: float = 0.8
  top_p: float = 0.9
  top_k: int = 0
  min_p: float = 0.0
  repetition: float = 1.0
  frequency: float = 0.0
  presence: float = 0.0
  logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
  stop: tuple[str, ...] = ()
  stop_token_ids: tuple[int, ...] = ()
  ignore_eos: bool = False
  n: int = 1
  seed: int = 0
  logprobs: int | None = None
  overflow: str = 'slide'
  echo: bool = False
