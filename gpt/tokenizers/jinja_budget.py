"""Bounds on the time and memory that a chat template takes."""

import contextvars
import re
import time
from collections.abc import Iterable
from typing import Any

MAX_ITEMS = 1 << 18  # Of a list or dict, with all inside it.
MAX_CHARS = 1 << 24  # Of a string, and of the result.
TOTAL_CHARS = 1 << 27  # Of all strings of one rendering.
MAX_STEPS = 1_000_000
MAX_WIDTH = 1000  # Widths, indentations, numbers of decimals.
MAX_BITS = 1 << 12  # Of an integer.
SECONDS = 10.0
# Filters and methods whose result, or whose time, may grow with the product of
# the lengths of their arguments.
PRODUCTS = {'replace', 'join', 'indent', 'expandtabs', 'rfind', 'rindex'}
PRODUCTS |= {'rsplit', 'rpartition', 'trim', 'strip', 'lstrip', 'rstrip'}
# Those that take a width or a number of digits or items.
WIDTHS = {'batch', 'center', 'expandtabs', 'indent', 'ljust', 'rjust', 'round'}
WIDTHS |= {'slice', 'to_bytes', 'tojson', 'zfill'}
# Those that make many small strings of a large one.
SPLITS = {'list', 'map', 'split', 'rsplit', 'splitlines'}
MAX_SPLIT = 1 << 22  # Characters.
# Those without use in a chat template that take quadratic time or more.
FORBIDDEN = {'decode', 'encode', 'pprint', 'striptags', 'translate', 'urlize'}
FORBIDDEN |= {'wordwrap', 'xmlattr'}
# In format strings: a large width, or one that is an argument.
LONG_WIDTH = re.compile(r'[0-9]{4}|\*')
NESTED_WIDTH = re.compile(r'\{[^{}]*:[^{}]*\{')


class Exhausted(Exception):
  """A rendering has reached a bound."""


class Budget:
  """The rest of one rendering's budget."""

  def __init__(self) -> None:
    self._steps = self._chars = 0
    self._deadline = time.monotonic() + SECONDS

  def step(self) -> None:
    """Counts an iteration or a call."""
    self._steps += 1
    if self._steps > MAX_STEPS:
      raise Exhausted(f'it takes more than {MAX_STEPS:,} steps')
    if time.monotonic() > self._deadline:
      raise Exhausted(f'it takes longer than {SECONDS:.0f} seconds')

  def pay(self, value: Any) -> Any:
    """Counts a step and its result, which is returned."""
    self.step()
    if isinstance(value, str | bytes):
      self._chars += len(value)
      if max(len(value), self._chars - TOTAL_CHARS + MAX_CHARS) > MAX_CHARS:
        raise Exhausted('it makes too much text')
    elif isinstance(value, list | tuple | dict):
      self._chars += whole_size(value)
      if self._chars > TOTAL_CHARS:
        raise Exhausted('it makes too long a list')
    elif isinstance(value, int) and value.bit_length() > MAX_BITS:
      raise Exhausted('it computes with too large a number')
    return value


def whole_size(value: Any) -> int:
  """Items and characters of a list, tuple or dict, and of all inside it.

  What occurs twice counts twice, as it would in text: a list of lists that hold
  one another may have few parts and still be astronomically large.
  """
  items, total, stack = 0, 0, [value]
  while stack:
    inner = stack.pop()
    items += 1
    if isinstance(inner, str | bytes):
      total += len(inner)
    elif isinstance(inner, dict):
      stack += [*inner, *inner.values()]
    elif isinstance(inner, list | tuple):
      stack += inner
    if max(items, len(stack)) > MAX_ITEMS or total > MAX_CHARS:
      raise Exhausted('it makes too long a list')
  return items + total


BUDGET: contextvars.ContextVar[Budget] = contextvars.ContextVar('budget')


def budget() -> Budget:
  """The budget of the rendering in progress; a new one while compiling."""
  return BUDGET.get(None) or Budget()


def size(value: Any) -> int:
  """Bound on what one argument contributes to a product."""
  if isinstance(value, int):
    return abs(value)
  return len(value) if hasattr(value, '__len__') else 0


def check_call(name: str, owner: Any, values: Iterable[Any]) -> None:
  """Raises Exhausted for a call whose result could explode.

  Args:
    name: of the filter, method or function.
    owner: the object of a method, the value of a filter.
    values: the arguments.
  """
  values = list(values)
  if name in FORBIDDEN:
    raise Exhausted(f'{name} is not allowed in a chat template')
  if name in WIDTHS:
    flat = [x for v in values for x in (v if isinstance(v, tuple) else [v])]
    if any(isinstance(x, int | str) and size(x) > MAX_WIDTH for x in flat):
      raise Exhausted(f'{name} has too large an argument')
  if name in SPLITS and isinstance(owner, str) and len(owner) > MAX_SPLIT:
    raise Exhausted('it makes too long a list')
  if name in PRODUCTS:
    longest = max([size(v) for v in values], default=0)
    if (size(owner) + 1) * longest > TOTAL_CHARS:
      raise Exhausted('it makes too much text')
  if name in ('format', 'format_map') and isinstance(owner, str):
    if LONG_WIDTH.search(owner) or NESTED_WIDTH.search(owner):
      raise Exhausted('a width in its format string may be too large')
