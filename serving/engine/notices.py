"""Notices: what a request loses without failing, in words for its sender."""

import collections
import dataclasses
from collections.abc import Iterable

from gpt.data.prepare import describe_unknown
from gpt.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Notice:
  """Attributes: code: for programs. param: the field of the request."""

  code: str
  message: str
  param: str

  def as_json(self) -> dict[str, str]:
    return dataclasses.asdict(self)


def unknown_characters(
  tokenizer: Tokenizer, texts: Iterable[str], param: str
) -> list[Notice]:
  """A notice if encoding drops characters of these texts."""
  unknown: collections.Counter[str] = collections.Counter()
  for text in texts:
    unknown.update(tokenizer.count_unknown(text))
  if not unknown:
    return []
  return [Notice('characters_dropped', describe_unknown(unknown), param)]


def cut_prompt(dropped: int, window: int, param: str) -> list[Notice]:
  """A notice if the beginning of the prompts lies outside the window."""
  if not dropped:
    return []
  return [
    Notice(
      'prompt_truncated',
      f'dropped the first {dropped:,} tokens: the context holds {window:,}',
      param,
    )
  ]
