"""The text and the tokenizer that a start of a run finds or makes."""

import contextlib
import dataclasses
import pathlib
import shutil
from typing import Any

from gpt.data import record
from gpt.data.corpus_tokens import is_large
from gpt.data.documents import FORMATS as DOCUMENT_FORMATS
from gpt.data.sources import Sources, find_sources
from gpt.data.tokenizer_choice import (
  check_same,
  chosen_template,
  prepare_tokenizer,
)
from gpt.errors import UserError
from gpt.tokenizers import Tokenizer, load_tokenizer

FORMATS = ('text', *DOCUMENT_FORMATS)


def text_field(data_config: Any) -> str:
  """data.text_field, which configs of older versions do not have."""
  return getattr(data_config, 'text_field', '')


def order(data_config: Any) -> str:
  """data.order, which configs of older versions do not have."""
  return getattr(data_config, 'order', 'random')


def check_format(format: str) -> None:
  """Raises UserError unless `format` is one of FORMATS."""
  if format not in FORMATS:
    raise UserError(
      f'data.format {format!r} is not known; allowed: {", ".join(FORMATS)}'
    )


def large(data_config: Any) -> bool:
  """Whether the text is encoded into shards; raises UserError as find_text."""
  field = text_field(data_config)
  path, format = data_config.path, data_config.format
  return is_large(find_sources(path, '', format, field))


def find_text(
  data_config: Any,
  workdir: pathlib.Path,
  begun: bool,
  tokenizer: Tokenizer | None,
) -> tuple[Sources, dict[str, Any]]:
  """The text, and the record of it if that still holds; see prepare."""
  check_format(data_config.format)
  recorded = record.read(workdir)
  field = text_field(data_config)
  sources = find_sources(
    data_config.path,
    recorded.get('kind', '') if begun else '',
    data_config.format,
    field,
  )
  cache_dir = pathlib.Path(data_config.cache_dir or workdir / 'cache')
  sources = dataclasses.replace(sources, memory=cache_dir)
  if field and not any(item.are_records for item in sources.items):
    raise UserError(
      f'data.text_field={field} is for JSON Lines and Parquet files, and '
      f'{sources.items[0].name} is none: leave it out, or name the file .jsonl'
    )
  if not sources.size:
    raise UserError(f'the text is empty: {sources.description}')
  if not begun:
    recorded = _drop_leftovers(
      data_config, workdir, recorded, sources, tokenizer
    )
  return sources, recorded


def make_tokenizer(
  data_config: Any,
  workdir: pathlib.Path,
  sources: Sources,
  known: bool,
  tokenizer: Tokenizer | None,
  undo: contextlib.ExitStack,
) -> Tokenizer:
  """The tokenizer of prepare; `undo` removes what a failed start leaves."""
  if not known:
    # Recorded first, so that an interrupted start can be cleaned up.
    record.write(workdir, sources.kind, sources.description, '')
    undo.callback(record.drop, workdir)
    if not (workdir / 'tokenizer').exists():
      undo.callback(shutil.rmtree, workdir / 'tokenizer', ignore_errors=True)
  tokenizer = prepare_tokenizer(
    data_config, workdir / 'tokenizer', sources, tokenizer
  )
  if not known and is_large(sources):
    # A start that is killed while it encodes goes on with this tokenizer.
    record.write(workdir, sources.kind, sources.description, sources.sha256)
  return tokenizer


def _drop_leftovers(
  data_config: Any,
  workdir: pathlib.Path,
  recorded: dict[str, Any],
  sources: Sources,
  tokenizer: Tokenizer | None,
) -> dict[str, Any]:
  """Deletes a tokenizer that was made for another text or other settings.

  Returns:
    `recorded` if it still holds, or {} if it was deleted too.
  """
  if 'text_sha256' not in recorded:
    return recorded
  directory = workdir / 'tokenizer'
  if sources.sha256 == recorded['text_sha256']:
    try:
      saved = load_tokenizer(directory)
      check_same(saved, data_config, tokenizer, directory)
      if saved.chat_template == _wanted_template(data_config, tokenizer):
        return recorded
    except UserError:
      pass
  shutil.rmtree(directory, ignore_errors=True)
  record.drop(workdir)
  return {}


def _wanted_template(data_config: Any, given: Tokenizer | None) -> str:
  """The chat template the run would start with."""
  if given is None and data_config.tokenizer_path:
    given = load_tokenizer(data_config.tokenizer_path)
  return chosen_template(data_config, given)
