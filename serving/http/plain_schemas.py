"""The request bodies of RandyGPT's and microgpt's routes."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from serving.engine.sampling import Sampling
from serving.http import unsupported
from serving.http.fields import (
  MAX_TOKENS,
  MaxTokens,
  Seed,
  Temperature,
  Text,
  max_tokens_of,
)
from serving.http.schemas import (
  DEFAULT_TOKENS,
  ChatRequest,
  CompletionRequest,
  Generating,
  Messages,
  draw_seed,
)
from serving.http.unsupported import OFF

MAX_SAMPLES = 50

# What OpenAI's routes know beyond those of RandyGPT and microgpt.
FIELDS = {**CompletionRequest.model_fields, **ChatRequest.model_fields}
BEYOND: Mapping[str, tuple[Any, ...]] = {
  **dict.fromkeys(FIELDS, OFF),
  **unsupported.NEUTRAL,
  **unsupported.STRUCTURED,
  'n': (1,),
  'repetition_penalty': (1,),
  'top_k': (0, -1),
  'top_p': (0.9,),
}


class RandyRequest(Generating):
  """POST /, as RandyGPT has it."""

  foreign = BEYOND

  prompt: Text
  max_tokens: MaxTokens = DEFAULT_TOKENS
  temperature: Temperature = 0.7
  seed: Seed | None = None

  def sampling(self, overflow: str) -> Sampling:
    return Sampling(
      max_tokens=max_tokens_of(self.max_tokens),
      temperature=self.temperature,
      seed=draw_seed(self.seed),
      overflow=overflow if self.max_tokens >= 0 else 'stop',
    )


class MicroRequest(Generating):
  """Fields of both of microgpt's routes: no filters, a fixed seed."""

  foreign = {**BEYOND, 'top_p': (1,)}

  max_tokens: MaxTokens = MAX_TOKENS
  temperature: Temperature = 0.8
  seed: Seed = 42

  def sampling(self, n: int = 1) -> Sampling:
    return Sampling(
      max_tokens=max_tokens_of(self.max_tokens),
      temperature=self.temperature,
      top_p=1.0,
      n=n,
      seed=draw_seed(self.seed),
      overflow='stop',
    )


class MicroGenerateRequest(MicroRequest):
  """POST /microgpt/v1/generate: from BOS to the end of text or context."""

  num_samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = 1


class MicroChatRequest(MicroRequest):
  """POST /microgpt/v1/chat."""

  messages: Messages
