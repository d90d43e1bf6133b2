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
    include_stop: the text of a choice ends with the stop string or token.
    ignore_eos: never sample the model's own end tokens.
    min_tokens: sampled before a choice may end.
    allowed_token_ids: nothing else is sampled; (): no such limit.
    truncate_prompt: most tokens of a prompt; -1: of the context; None: any.
    prompt_logprobs: alternatives per token of the prompts; None: no scores.
    n: choices per prompt.
    seed: of choice 0; choice i uses seed + i.
    logprobs: alternatives per token; None: no log-probabilities at all.
    overflow: an Overflow.
    embed: the prompts are wanted as vectors.
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
  include_stop: bool = False
  ignore_eos: bool = False
  min_tokens: int = 0
  allowed_token_ids: tuple[int, ...] = ()
  truncate_prompt: int | None = None
  prompt_logprobs: int | None = None
  n: int = 1
  seed: int = 0
  logprobs: int | None = None
  overflow: str = 'slide'
  echo: bool = False
  embed: bool = False
