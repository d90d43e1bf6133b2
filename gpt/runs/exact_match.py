"""Answers of a chat model to problems that have one right answer."""

import dataclasses
from collections.abc import Callable, Sequence

import jax

from gpt.data.problems import Problem
from gpt.decoding import generation, sampling
from gpt.decoding.prompt import read_prompt
from gpt.errors import UserError
from gpt.runs.load import LoadedModel
from gpt.tokenizers import chat_format

ROWS = 64  # Problems answered at once.


@dataclasses.dataclass(frozen=True)
class Answer:
  """What the model answered to a problem."""

  problem: Problem
  given: str

  @property
  def right(self) -> bool:
    """Whether the answers are equal, apart from spaces around them."""
    return self.given.strip() == self.problem.answer.strip()


def answer(
  loaded: LoadedModel,
  problems: Sequence[Problem],
  max_tokens: int = 32,
  progress: Callable[[int], object] = lambda n: None,
) -> list[Answer]:
  """Asks a model each problem, in a conversation of its own, greedily.

  Args:
    loaded: a chat model.
    problems: in the order of the answers.
    max_tokens: most tokens of an answer; a longer one is cut.
    progress: called with the number of problems that were answered.

  Raises:
    UserError: the model was not trained to chat.
  """
  tokenizer = loaded.tokenizer
  if not chat_format.is_chat_tokenizer(tokenizer):
    raise UserError(
      'a task is asked in conversations, and this model was not trained to '
      'chat; its loss is measured without --task'
    )
  params = jax.device_put(loaded.params)
  answers = []
  for first in range(0, len(problems), ROWS):
    group = problems[first : first + ROWS]
    prompts = [
      read_prompt(
        tokenizer, 'chat', p.question, loaded.cfg.block_size, max_tokens
      )
      for p in group
    ]
    ids: list[list[int]] = [[] for _ in group]
    for row, new in generation.generate(
      loaded.model,
      params,
      [prompt.ids for prompt in prompts],
      sampling.settings(len(group), temperature=0.0),
      max_tokens,
      bias_V=prompts[0].bias_V,
      stop_ids=prompts[0].stop_ids,
      window='stop',
    ):
      ids[row] += new or []
    answers += [Answer(p, tokenizer.decode(x)) for p, x in zip(group, ids)]
    progress(len(group))
  return answers
