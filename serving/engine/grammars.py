"""The compiled grammars of the server's requests."""

import collections
import threading

from gpt.decoding.grammars import Grammar, Source
from gpt.errors import UserError
from gpt.tokenizers import Tokenizer
from serving.engine.errors import InvalidRequest

KEPT = 32  # Grammars; programs ask with the same few schemas.


class Grammars:
  """Compiles sources and keeps the newest grammars; thread-safe."""

  def __init__(self, tokenizer: Tokenizer) -> None:
    self._tokenizer = tokenizer
    self._lock = threading.Lock()
    self._kept: collections.OrderedDict[Source, Grammar] = (
      collections.OrderedDict()
    )

  def of(self, source: Source | None) -> Grammar | None:
    """The grammar of a source, if there is one. Raises InvalidRequest."""
    if source is None:
      return None
    with self._lock:
      if source in self._kept:
        self._kept.move_to_end(source)
        return self._kept[source]
    try:
      grammar = Grammar(source, self._tokenizer)
    except UserError as e:
      raise InvalidRequest(f'{e}', source.field.partition('.')[0]) from e
    with self._lock:
      self._kept[source] = grammar
      if len(self._kept) > KEPT:
        self._kept.popitem(last=False)
    return grammar
