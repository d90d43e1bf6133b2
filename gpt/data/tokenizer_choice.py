"""The tokenizer of a run: loaded, given or built once, then fixed."""

import copy
import logging
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from gpt.data.conversations import iter_texts
from gpt.data.documents import iter_lines_as_documents
from gpt.data.pieces import iter_pieces
from gpt.data.sources import Sources
from gpt.data.text_reader import TextStats
from gpt.data.text_sample import sample
from gpt.data.token_files import are_tokens
from gpt.errors import UserError
from gpt.tokenizers import Tokenizer, build_tokenizer, load_tokenizer
from gpt.tokenizers.base import BOS, EOS, META_FILE
from gpt.tokenizers.chat_format import CHAT_TOKENS
from gpt.tokenizers.chat_template import template_of
from gpt.tokenizers.template_files import (
  BUILTIN,
  control_names,
  read_template,
)

logger = logging.getLogger(__name__)


def prepare_tokenizer(
  data_config: Any,
  directory: pathlib.Path,
  sources: Sources,
  tokenizer: Tokenizer | None = None,
) -> Tokenizer:
  """Loads the tokenizer in `directory`; saves one there if there is none.

  Args:
    data_config: `config.data` (format, tokenizer, tokenizer_path, vocab_size,
      document_separator, chat_template).
    directory: of the tokenizer's files.
    sources: the text to train a new tokenizer on.
    tokenizer: saved instead of building a new one.

  Raises:
    UserError: the tokenizer differs from what data_config asks for.
  """
  special_tokens = CHAT_TOKENS if data_config.format == 'chat' else ()
  if (directory / META_FILE).is_file():
    saved = load_tokenizer(directory)
    check_same(saved, data_config, tokenizer, directory)
    if not saved.chat_template:
      _check_special(
        saved,
        special_tokens,
        f'the tokenizer in {directory}',
        'a run keeps its tokenizer; use another --workdir',
      )
    return saved
  if tokenizer is None and data_config.tokenizer_path:
    tokenizer = load_tokenizer(data_config.tokenizer_path)
  template = chosen_template(data_config, tokenizer)
  if asked_template(data_config):
    special_tokens = tuple(
      name for name in control_names(template) if name not in (BOS, EOS)
    )
  elif template:
    special_tokens = ()
  if tokenizer is not None:
    where = data_config.tokenizer_path or 'the given tokenizer'
    _check_kind(tokenizer, data_config, where)
    _check_special(tokenizer, special_tokens, where, 'use one that has them')
    tokenizer = copy.copy(tokenizer)
    tokenizer.requested_vocab_size = 0  # This run did not choose the size.
  else:
    wanted = data_config.vocab_size
    texts = _texts(data_config, sources)
    tokenizer = build_tokenizer(
      data_config.tokenizer, texts, wanted, special_tokens
    )
    asked = tokenizer.requested_vocab_size  # 0: its kind ignores vocab_size.
    if asked and tokenizer.vocab_size != asked:
      logger.info(
        f'tokenizer: the text yields {tokenizer.vocab_size:,} tokens instead '
        f'of the {asked:,} requested'
      )
  tokenizer.chat_template = template
  if template and data_config.format == 'chat':
    _check_template(tokenizer)
  tokenizer.save(directory)
  return tokenizer


def asked_template(data_config: Any) -> str:
  """data.chat_template, which configs of older versions do not have."""
  return getattr(data_config, 'chat_template', '')


def chosen_template(data_config: Any, given: Tokenizer | None) -> str:
  """The chat template of a new run: data.chat_template, or that of `given`."""
  if asked := asked_template(data_config):
    return read_template(asked)
  return given.chat_template if given is not None else ''


def _check_template(tokenizer: Tokenizer) -> None:
  """Raises UserError if the chat template is wrong, before anything is made."""
  if template_of(tokenizer).stop_ids == (tokenizer.eos_id,):
    logger.info(
      'the chat template ends a turn of the assistant with no control token '
      'other than EOS'
    )


def check_same(
  saved: Tokenizer,
  data_config: Any,
  given: Tokenizer | None,
  directory: str | os.PathLike,
) -> None:
  """Checks that data_config and `given` agree with a run's tokenizer.

  Args:
    saved: the tokenizer of the run.
    data_config: `config.data`.
    given: the tokenizer to use, or None.
    directory: of `saved`, for messages.

  Raises:
    UserError: kind, requested size or fingerprint differ.
  """
  _check_kind(saved, data_config, directory)
  template = asked_template(data_config)
  readable = template in BUILTIN or pathlib.Path(template).is_file()
  if readable and read_template(template) != saved.chat_template:
    raise UserError(
      f'the chat template in {directory} is not data.chat_template '
      f'{template}: a run keeps its template; leave the key '
      'out or use another --workdir'
    )
  requested = saved.requested_vocab_size
  if requested and data_config.vocab_size != requested:
    raise UserError(
      f'{directory} was trained with data.vocab_size={requested}, not '
      f'{data_config.vocab_size}: a run keeps its tokenizer; set '
      f'--config.data.vocab_size={requested} or use another --workdir'
    )
  if given is None and data_config.tokenizer_path:
    path = pathlib.Path(data_config.tokenizer_path)
    given = load_tokenizer(path) if path.exists() else None
  if given is not None and given.fingerprint != saved.fingerprint:
    raise UserError(
      f'the tokenizer in {directory} differs from the given one '
      f'({data_config.tokenizer_path or given.kind}): a run keeps its '
      'tokenizer; use another --workdir'
    )


def _texts(data_config: Any, sources: Sources) -> Iterator[str]:
  """Yields the text of `sources`, or a sample, without separators.

  Raises:
    UserError: they hold tokens, not text.
  """
  if are_tokens(sources):
    raise UserError(
      f'{sources.items[0].name} holds tokens: name the tokenizer that made '
      'them with --config.data.tokenizer_path'
    )
  stats = TextStats()
  if data_config.tokenizer != 'char':  # Which needs every character.
    sources = sample(sources, whole_lines=data_config.format != 'text')
  if data_config.format == 'chat':
    yield from iter_texts(sources, stats)
  elif data_config.format == 'lines':
    yield from iter_lines_as_documents(sources, stats)
  else:
    for piece in iter_pieces(sources, data_config.document_separator, stats):
      if piece is not None:
        yield piece


def _check_special(
  tokenizer: Tokenizer, names: Iterable[str], where: str, advice: str
) -> None:
  """Raises UserError unless the tokenizer has these control tokens."""
  if missing := set(names) - set(tokenizer.special_tokens):
    raise UserError(f'{where} has no {", ".join(sorted(missing))}: {advice}')


def _check_kind(
  tokenizer: Tokenizer, data_config: Any, where: str | os.PathLike
) -> None:
  """Raises UserError unless the tokenizer is of kind data.tokenizer."""
  if tokenizer.kind != data_config.tokenizer:
    raise UserError(
      f'{where} is a {tokenizer.kind} tokenizer, but data.tokenizer is '
      f'{data_config.tokenizer}: set --config.data.tokenizer='
      f'{tokenizer.kind}, or use another tokenizer or --workdir'
    )
