"""POST /v1/embeddings: texts as vectors.

The vector of a text is the mean of the model's last hidden states, scaled to
length 1 (L2 norm); the answer says so. The model was trained to continue texts,
not to compare them.
"""

import base64
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from pydantic import Field, PlainValidator, ValidationInfo
from pydantic import WithJsonSchema as JsonSchema
from typing_extensions import TypedDict

from serving.engine.events import Embedded, Event
from serving.engine.jobs import Job
from serving.engine.sampling import Sampling
from serving.http.fields import (
  MAX_INT32,
  PROMPTS,
  prompts_schema,
  read_prompts,
)
from serving.http.replies import warnings_of
from serving.http.responses import Notice
from serving.http.schemas import Generating
from serving.http.unsupported import OFF
from serving.http.validation import Wanted

MAX_INPUTS = 2048  # as OpenAI's API has it


def read_inputs(value: Any, info: ValidationInfo) -> tuple[Any, ...]:
  return read_prompts(value, info, MAX_INPUTS)


Inputs = Annotated[
  tuple[Any, ...],
  PlainValidator(read_inputs),
  JsonSchema(prompts_schema(MAX_INPUTS)),
  Wanted(PROMPTS),
]


class EmbeddingRequest(Generating):
  """POST /v1/embeddings."""

  foreign = {
    'add_special_tokens': (True,),
    'dimensions': (),
    'embed_dtype': ('float32',),
    'messages': OFF,
    'normalize': (True,),
    'pooling': ('mean',),
    'use_activation': (True,),
  }

  input: Inputs
  encoding_format: Annotated[
    Literal['float', 'base64'],
    Field(description='base64: of little-endian float32 values.'),
  ] = 'float'
  truncate_prompt_tokens: Annotated[
    int | None,
    Field(
      ge=-1,
      le=MAX_INT32,
      description='Keep the last so many tokens of a text; -1: as many as the '
      'context holds.',
    ),
  ] = None

  def sampling(self) -> Sampling:
    cut = self.truncate_prompt_tokens
    return Sampling(
      max_tokens=0, embed=True, overflow='error', truncate_prompt=cut or None
    )


class EmbeddingUsage(TypedDict):
  prompt_tokens: int
  total_tokens: int


class Embedding(TypedDict):
  object: Literal['embedding']
  index: int
  embedding: list[float] | str


class Embeddings(TypedDict):
  """`pooling` and `normalized`: how hidden states became a vector."""

  object: Literal['list']
  data: list[Embedding]
  model: str
  pooling: Literal['mean']
  normalized: Literal[True]
  usage: EmbeddingUsage
  tokens_dropped: NotRequired[int]
  warnings: NotRequired[list[Notice]]


class EmbeddingReply:
  """Events -> the answer, as Reply for generated text."""

  def __init__(self, job: Job, model: str, encoding: str) -> None:
    self._job = job
    self._model = model
    self._encoding = encoding

  def whole(self, events: Iterable[Event]) -> dict[str, Any]:
    vectors = {e.prompt: e.vector_D for e in events if isinstance(e, Embedded)}
    tokens, dropped = self._job.prompt_tokens, self._job.tokens_dropped
    answer = {
      'object': 'list',
      'data': [
        {
          'object': 'embedding',
          'index': index,
          'embedding': self._encode(vector_D),
        }
        for index, vector_D in sorted(vectors.items())
      ],
      'model': self._model,
      'pooling': 'mean',
      'normalized': True,
      'usage': {'prompt_tokens': tokens, 'total_tokens': tokens},
    }
    if dropped:
      answer['tokens_dropped'] = dropped
    return answer | warnings_of(self._job.notices)

  def _encode(self, vector_D: np.ndarray) -> list[float] | str:
    if self._encoding == 'float':
      return vector_D.tolist()
    return base64.b64encode(vector_D.astype('<f4').tobytes()).decode('ascii')
