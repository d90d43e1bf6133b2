"""Text that follows a JSON Schema, a regular expression or a grammar.

The library llguidance (extra: structured) says which tokens may come next; a
sampler bans all others. It works on the bytes of tokens, so any tokenizer will
do. Where a grammar leaves only one way to go on, it asks for the tokens that
the tokenizer itself would choose.

https://github.com/guidance-ai/llguidance
"""

import concurrent.futures
import dataclasses
import decimal
import functools
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from gpt.errors import UserError
from gpt.tokenizers import Tokenizer

MAX_SOURCE = 1 << 16  # Characters of a schema, an expression or a grammar.
KINDS = ('json_schema', 'regex', 'grammar', 'choice')
MAX_MULTIPLE = 10_000  # Compiles in 0.2 s; ten times as much takes seconds.
STACK_BYTES = 64 << 20
SEARCH_STEPS = 2_000  # Some 0.1 s.
# One space, or a line break with an indentation: a model cannot idle in it.
WHITESPACE = r'( |\n {0,20})?'
JSON_OPTIONS = {'whitespace_pattern': WHITESPACE}
# Far above what real grammars need; the library's own would let one request
# take half a gigabyte.
LIMITS = {'max_lexer_states': 20_000, 'verbose_errors': False}


T = TypeVar('T')
_compiling = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Source:
  """A constraint on the form of a text.

  Attributes:
    kind: one of KINDS. 'grammar' is Lark or GBNF, as llguidance reads them.
    text: JSON of a schema, or of a list of choices; else as it is.
    field: where it came from, for messages.
  """

  kind: str
  text: str
  field: str


class Grammar:
  """A compiled Source for the tokens of one tokenizer; `start` begins a text.

  Raises:
    UserError: llguidance is missing; the source is too large, wrong, or no
      text of this tokenizer satisfies it.
  """

  def __init__(self, source: Source, tokenizer: Tokenizer) -> None:
    self.source = source
    self._tokenizer = tokenizer
    self._library = library()
    self._vocabulary = vocabulary(tokenizer)
    try:
      self._text = self._read()
    except UserError:
      raise
    except (ValueError, RecursionError) as e:
      raise UserError(f'{source.field} cannot be read: {e}') from e
    self._plain = with_deep_stack(lambda: self._matcher(self._text))
    if not can_be_satisfied(Constraint(self._plain.deep_copy(), tokenizer)):
      raise UserError(
        f"{source.field} cannot be satisfied: this model's vocabulary lacks "
        'characters that every such text has'
      )

  def _read(self) -> str:
    """The source in llguidance's own notation."""
    kind, text, field = dataclasses.astuple(self.source)
    if len(text) > MAX_SOURCE:
      raise UserError(
        f'{field} has {len(text)} characters; at most {MAX_SOURCE} are allowed'
      )
    matcher = self._library.LLMatcher
    if kind == 'json_schema':
      check_multiples(json.loads(text), field)
      return matcher.grammar_from_json_schema(
        text, JSON_OPTIONS, {'lenient': False}
      )
    if kind == 'regex':
      return matcher.grammar_from_regex(text)
    if kind == 'choice':
      literals = ' | '.join(map(literal, json.loads(text)))
      return matcher.grammar_from_lark(f'start: CHOICE\nCHOICE: {literals}')
    return self._library.grammar_from('grammar', text)

  def _matcher(self, text: str) -> Any:
    matcher = self._library.LLMatcher(
      self._vocabulary,
      text,
      log_level=0,
      limits=self._library.LLParserLimits(**LIMITS),
    )
    if matcher.is_error():
      raise UserError(
        f'{self.source.field} cannot be used: {matcher.get_error()}'
      )
    return matcher

  @functools.cached_property
  def _spaced(self) -> Any:
    """As `_plain` after one space, which decoding will drop."""
    inner = self._text
    if not inner.startswith('{'):
      inner = json.dumps({'grammars': [{'lark_grammar': inner}]})
    first, *others = json.loads(inner)['grammars']
    outer = {'name': 'spaced', 'lark_grammar': 'start: " " @inner'}
    grammars = [outer, {**first, 'name': 'inner'}, *others]
    text = json.dumps({'grammars': grammars})
    return with_deep_stack(lambda: self._matcher(text))

  def start(self, after: int | None = None) -> 'Constraint':
    """The constraint of a text that follows the token `after`."""
    tokenizer = self._tokenizer
    continues = after is not None and tokenizer.token_bytes(after)
    spaced = tokenizer.strips_space and not continues
    matcher = self._spaced if spaced else self._plain
    return Constraint(matcher.deep_copy(), tokenizer)


class Constraint:
  """The state of one text in its grammar.

  Attributes:
    allowed_V: bool[V], the tokens that may come next; never one that ends it.
    complete: the text so far satisfies the grammar.
    is_partial: some text has no tokens in this vocabulary.
  """

  def __init__(self, matcher: Any, tokenizer: Tokenizer) -> None:
    self._matcher = matcher
    self._tokenizer = tokenizer
    self._eos_id = tokenizer.eos_id
    self._size = tokenizer.vocab_size
    self.is_partial = not spells_everything(tokenizer)
    self._look()

  def _look(self) -> None:
    bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
    allowed_V = np.unpackbits(bits, bitorder='little')[: self._size] > 0
    allowed_V[self._eos_id] = False
    if self.is_partial:
      self._keep_forced(allowed_V)
    self.allowed_V = allowed_V
    self.complete: bool = self._matcher.is_accepting()

  def _keep_forced(self, allowed_V: np.ndarray) -> None:
    """Bans what contradicts bytes that must come next.

    The library overlooks them where the vocabulary has no tokens for them.
    """
    forced = self._matcher.compute_ff_bytes()
    for id in np.flatnonzero(allowed_V) if forced else ():
      data = self._tokenizer.token_bytes(int(id))
      if not (data.startswith(forced) or forced.startswith(data)):
        allowed_V[id] = False

  def branches(self) -> Iterator['Constraint']:
    """The states that the tokens allowed next lead to.

    Those that end something in JSON are first: a text is soon complete.
    """
    read = self._tokenizer.token_bytes

    def late(id: int) -> bool:
      return read(id)[-1:] not in (b'"', b'}', b']')

    for id in sorted(np.flatnonzero(self.allowed_V).tolist(), key=late):
      branch = Constraint(self._matcher.deep_copy(), self._tokenizer)
      branch.accept(id)
      yield branch

  def accept(self, id: int) -> None:
    """Appends a token, one of those allowed."""
    self._matcher.consume_token(id)
    self._look()


def can_be_satisfied(start: Constraint) -> bool:
  """Whether tokens can complete the text; True too if a search takes long."""
  found = [iter([start])]
  for _ in range(SEARCH_STEPS):
    if not found:
      return False
    constraint = next(found[-1], None)
    if constraint is None:
      found.pop()
    elif constraint.complete:
      return True
    elif constraint.is_partial or constraint is start:
      found.append(constraint.branches())
    else:  # Every byte has a token, so no path ends too early.
      return True
  return True


class _Vocabulary:
  """A tokenizer as llguidance takes it: tokens by their bytes.

  A first byte of 0xff, which no text has, marks control tokens.
  """

  is_tokenizer_wrapper = True
  bos_token_id = None

  def __init__(self, tokenizer: Tokenizer) -> None:
    self._tokenizer = tokenizer
    self.eos_token_id = tokenizer.eos_id
    table = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    names = {id: name for name, id in tokenizer.special_tokens.items()}
    self.special_token_ids = [i for i, x in enumerate(table) if not x]
    self._ids: dict[bytes, int] = {}
    for id in sorted(set(range(len(table))) - {*tokenizer.unsampleable_ids}):
      if table[id]:
        self._ids.setdefault(table[id], id)
    self._longest = max(map(len, self._ids), default=1)
    self.tokens = [
      x or b'\xff' + names.get(i, f'[{i}]').encode()
      for i, x in enumerate(table)
    ]

  def __call__(self, text: str) -> list[int]:
    """Ids whose bytes are the text, or as much of it as there are tokens."""
    ids = self._tokenizer.encode_more(text).tolist()
    data = text.encode()
    if b''.join(map(self._tokenizer.token_bytes, ids)) == data:
      return ids
    ids = []
    while data:
      ends = range(min(self._longest, len(data)), 0, -1)
      end = next((n for n in ends if data[:n] in self._ids), 0)
      if not end:
        break
      ids.append(self._ids[data[:end]])
      data = data[end:]
    return ids


def with_deep_stack(fn: Callable[[], T]) -> T:
  """fn() on a thread with a large stack, one at a time.

  The library recurses once for each rule of a chain: a grammar of 64 KiB would
  overflow a usual stack, which ends the process.
  """
  future: concurrent.futures.Future[T] = concurrent.futures.Future()

  def run() -> None:
    try:
      future.set_result(fn())
    except BaseException as e:
      future.set_exception(e)

  with _compiling:
    usual = threading.stack_size(STACK_BYTES)
    try:
      thread = threading.Thread(target=run, name='rgpt-grammar', daemon=True)
      thread.start()
    finally:
      threading.stack_size(usual)
    return future.result()


def check_multiples(schema: Any, field: str) -> None:
  """Refuses large values of multipleOf, each of which is an automaton."""
  product, found = 1.0, [schema]
  while found:
    value = found.pop()
    if isinstance(value, dict):
      of = value.get('multipleOf')
      if isinstance(of, int | float) and of > 0:
        digits = decimal.Decimal(repr(of)).as_tuple().digits
        product *= int(''.join(map(str, digits)).rstrip('0') or '1')
    found += value.values() if isinstance(value, dict) else ()
    found += value if isinstance(value, list) else ()
  if product > MAX_MULTIPLE:
    raise UserError(
      f'{field}: the values of multipleOf are too large; their product must '
      f'be at most {MAX_MULTIPLE}, without zeros at the end'
    )


def library() -> Any:
  """The module llguidance. Raises UserError if it is not installed."""
  try:
    import llguidance
  except ImportError as e:
    raise UserError(
      'JSON Schemas and grammars need the library llguidance: '
      "pip install 'rgpt[structured]' (or: pip install llguidance)"
    ) from e
  return llguidance


@functools.lru_cache(4)
def vocabulary(tokenizer: Tokenizer) -> Any:
  """The LLTokenizer of a tokenizer."""
  tokens = _Vocabulary(tokenizer)
  return library().LLTokenizer(
    tokens, n_vocab=tokenizer.vocab_size, eos_token=tokens.eos_token_id
  )


@functools.lru_cache(4)
def spells_everything(tokenizer: Tokenizer) -> bool:
  """Whether every UTF-8 text has tokens, one a byte if need be."""
  ids = set(range(tokenizer.vocab_size)) - {*tokenizer.unsampleable_ids}
  table = {tokenizer.token_bytes(id) for id in ids}
  used = set(range(0xF5)) - {0xC0, 0xC1}
  return all(bytes([b]) in table for b in used)


def literal(text: str) -> str:
  """A string of the Lark notation."""
  return json.dumps(text, ensure_ascii=False)
