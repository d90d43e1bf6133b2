"""The tokenizer of a run: loaded, given or built, and never changed after."""

import copy
import logging
import pathlib
from collections.abc import Iterable, Iterator

from gpt.data.conversations import iter_texts
from gpt.data.documents import iter_lines_as_documents
from gpt.data.sources import Sources
from gpt.data.text_reader import TextStats, iter_pieces
from gpt.errors import UserError
from gpt.tokenizers import Tokenizer, build_tokenizer, load_tokenizer
from gpt.tokenizers.base import META_FILE
from gpt.tokenizers.chat_format import CHAT_TOKENS

logger = logging.getLogger(__name__)


def prepare_tokenizer(
  data_config,
  directory: pathlib.Path,
  sources: Sources,
  tokenizer: Tokenizer | None = None,
) -> Tokenizer:
  """The tokenizer in `directory`; if there is none, one is made and saved.

  Args:
    data_config: `config.data`.
    directory: of the tokenizer's files.
    sources: the text that a new tokenizer is trained on.
    tokenizer: used instead of building one.

  Raises:
    UserError: the tokenizer is not what data_config asks for.
  """
  special_tokens = CHAT_TOKENS if data_config.format == 'chat' else ()
  if (directory / META_FILE).is_file():
    saved = load_tokenizer(directory)
    check_same(saved, data_config, tokenizer, directory)
    _check_special(
      saved,
      special_tokens,
      f'the tokenizer in {directory}',
      'a run keeps its tokenizer; use another --workdir',
    )
    return saved
  if tokenizer is None and data_config.tokenizer_path:
    tokenizer = load_tokenizer(data_config.tokenizer_path)
  if tokenizer is not None:
    where = data_config.tokenizer_path or 'the tokenizer given'
    _check_kind(tokenizer, data_config, where)
    _check_special(tokenizer, special_tokens, where, 'give one that has them')
    tokenizer = copy.copy(tokenizer)
    tokenizer.requested_vocab_size = 0  # This run did not choose the size.
  else:
    wanted = data_config.vocab_size
    texts = _texts(data_config, sources)
    tokenizer = build_tokenizer(
      data_config.tokenizer, texts, wanted, special_tokens
    )
    if tokenizer.kind != 'char' and tokenizer.vocab_size != wanted:
      logger.info(
        f'tokenizer: the text gives {tokenizer.vocab_size:,} tokens, not the '
        f'{wanted:,} asked for'
      )
  tokenizer.save(directory)
  return tokenizer


def check_same(
  saved: Tokenizer, data_config, given: Tokenizer | None, directory
) -> None:
  """Raises UserError if data_config or `given` means another tokenizer."""
  _check_kind(saved, data_config, directory)
  requested = saved.requested_vocab_size
  if requested and data_config.vocab_size != requested:
    raise UserError(
      f'{directory} was trained with data.vocab_size={requested}, now it is '
      f'{data_config.vocab_size}: a run keeps its tokenizer; set '
      f'--config.data.vocab_size={requested} or use another --workdir'
    )
  if given is None and data_config.tokenizer_path:
    path = pathlib.Path(data_config.tokenizer_path)
    given = load_tokenizer(path) if path.exists() else None
  if given is not None and given.fingerprint != saved.fingerprint:
    raise UserError(
      f'the tokenizer in {directory} is not the one given '
      f'({data_config.tokenizer_path or given.kind}): a run keeps its '
      'tokenizer; use another --workdir'
    )


def _texts(data_config, sources: Sources) -> Iterator[str]:
  """Yields all text of `sources`, without separators."""
  stats = TextStats()
  if data_config.format == 'chat':
    yield from iter_texts(sources, stats)
  elif data_config.format == 'lines':
    yield from iter_lines_as_documents(sources, stats)
  else:
    for piece in iter_pieces(sources, data_config.document_separator, stats):
      if piece is not None:
        yield piece


def _check_special(
  tokenizer: Tokenizer, names: Iterable[str], where, advice: str
) -> None:
  if missing := set(names) - set(tokenizer.special_tokens):
    raise UserError(f'{where} has no {", ".join(sorted(missing))}: {advice}')


def _check_kind(tokenizer: Tokenizer, data_config, where) -> None:
  if tokenizer.kind != data_config.tokenizer:
    raise UserError(
      f'{where} is a {tokenizer.kind} tokenizer, but data.tokenizer is '
      f'{data_config.tokenizer}: set --config.data.tokenizer='
      f'{tokenizer.kind}, or give another tokenizer or workdir'
    )
