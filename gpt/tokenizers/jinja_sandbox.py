"""Jinja templates in a sandbox, with bounds on time and memory.

A chat template comes from whoever published the model: it is code of a
stranger. jinja2's ImmutableSandboxedEnvironment keeps it away from Python's
internals; this module bounds what it costs. Every iteration and call is a step,
every string and list it makes is paid for, and operations whose result could be
far larger than their arguments are measured before they are carried out.

The environment is that of transformers (trim_blocks, lstrip_blocks, loop
controls, `raise_exception`, `strftime_now`, its `tojson`, the tag
`{% generation %}`), so that a template means the same here and there. This
module imports jinja2 (extra: hf) and is imported only when a template is used.
"""

import datetime
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from gpt.errors import UserError
from gpt.tokenizers.jinja_budget import (
  BUDGET,
  LONG_WIDTH,
  MAX_CHARS,
  MAX_WIDTH,
  Budget,
  Exhausted,
  budget,
  check_call,
  size,
)

MAX_SOURCE = 1 << 18  # Characters of a template.


class Refused(Exception):
  """Raised by a template through raise_exception()."""


class Environment(ImmutableSandboxedEnvironment):
  """The sandbox of transformers, in which every operation is paid for."""

  intercepted_binops = frozenset(['+', '*', '**', '%'])

  def call_binop(
    self, context: Any, operator: str, left: Any, right: Any
  ) -> Any:
    """Carries out a binary operation whose result fits the budget."""
    sized = [x for x in (left, right) if isinstance(x, str | bytes | list)]
    sized += [x for x in (left, right) if isinstance(x, tuple)]
    if operator == '**':
      if sized or not (abs(left) <= MAX_CHARS and abs(right) <= 64):
        raise Exhausted('it computes with too large a number')
    elif operator == '*' and sized:
      if size(left) * size(right) > MAX_CHARS:
        raise Exhausted('it makes too much text')
    elif operator == '%' and isinstance(left, str | bytes):
      text = left if isinstance(left, str) else left.decode('latin-1')
      if LONG_WIDTH.search(text):
        raise Exhausted('a width in its format string may be too large')
    return budget().pay(super().call_binop(context, operator, left, right))

  def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
    """The sandbox's own str.format; one that checks its widths."""
    format = super().wrap_str_format(value)
    if format is None:
      return None

    @functools.wraps(format)
    def checked(*args: Any, **kwargs: Any) -> str:
      check_call('format', value.__self__, ())
      return format(*args, **kwargs)

    return checked

  def call(
    __self,  # noqa: N805
    __context: Any,
    __obj: Any,
    *args: Any,
    **kwargs: Any,
  ) -> Any:
    """Calls a function, method or macro of a template."""
    owner = getattr(__obj, '__self__', None)
    name = getattr(__obj, '__name__', '')
    values = [*args, *kwargs.values()]
    if name == 'join' and isinstance(owner, str) and args:
      args = (list(args[0]), *args[1:])
      check_call(name, args[0], [owner])
    else:
      check_call(name, owner, values)
    budget().step()
    return budget().pay(super().call(__context, __obj, *args, **kwargs))


def _joined(parts: Iterable[Any]) -> str:
  """Joins the output of a macro or a block."""
  parts = list(parts)
  if sum(map(len, parts)) > MAX_CHARS:
    raise Exhausted('it makes too much text')
  return budget().pay(''.join(parts))


def _concatenated(parts: Iterable[Any]) -> str:
  """The operator ~ ."""
  return _joined(list(map(str, parts)))


def _counted(iterable: Iterable[Any]) -> Iterator[Any]:
  """The items of a loop, each of which is a step."""
  counter = budget()
  for item in iterable:
    counter.step()
    yield item


def _paid(name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
  """A filter that checks its arguments and pays for its result."""
  passed = int(hasattr(filter, 'jinja_pass_arg'))

  @functools.wraps(filter)
  def paid(*args: Any, **kwargs: Any) -> Any:
    if name == 'join':  # Of an iterator that would be used up by looking.
      args = *args[:passed], list(args[passed]), *args[passed + 1 :]
    values = [*args[passed + 1 :], *kwargs.values()]
    check_call(name, args[passed] if len(args) > passed else None, values)
    return budget().pay(filter(*args, **kwargs))

  return paid


def _raise_exception(message: Any) -> None:
  raise Refused(str(message))


def _strftime_now(format: str) -> str:
  if len(format) > MAX_WIDTH:
    raise Exhausted('strftime_now has too large an argument')
  return datetime.datetime.now().strftime(format)


def _tojson(
  value: Any,
  ensure_ascii: bool = False,
  indent: int | None = None,
  separators: tuple[str, str] | None = None,
  sort_keys: bool = False,
) -> str:
  """As in transformers: jinja2's own filter escapes HTML."""
  return json.dumps(
    value,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )


class _Namespace(Namespace):
  """namespace(), whose attributes cannot be Python's internal ones."""

  def __setitem__(self, name: str, value: Any) -> None:
    if name.startswith('_'):
      raise Exhausted(f'a name must not begin with an underscore: {name}')
    super().__setitem__(name, value)

  def __repr__(self) -> str:
    return '<Namespace>'


class _Generation(jinja2.ext.Extension):
  """{% generation %}: what the assistant writes, between two marks."""

  tags = {'generation'}

  def parse(self, parser: Any) -> nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    call = self.call_method('_marked', [nodes.Name('generation_marks', 'load')])
    return nodes.CallBlock(call, [], [], body).set_lineno(line)

  def _marked(self, marks: Any, caller: Callable[[], str]) -> str:
    if not isinstance(marks, tuple):
      return caller()
    return _joined([marks[0], caller(), marks[1]])


@functools.cache
def _environment() -> Environment:
  environment = Environment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[_Generation, jinja2.ext.loopcontrols],
    optimized=False,
  )
  environment.concat = _joined  # pyright: ignore[reportAttributeAccessIssue]
  environment.filters['tojson'] = _tojson
  environment.filters = {
    name: _paid(name, filter) for name, filter in environment.filters.items()
  }
  environment.filters |= {
    '_counted': _counted,
    '_concatenated': _concatenated,
    '_paid': lambda value: budget().pay(value),
  }
  environment.globals |= {
    'raise_exception': _raise_exception,
    'strftime_now': _strftime_now,
    'dict': lambda *args, **kwargs: dict(*args, **kwargs),
    'namespace': _Namespace,
  }
  del environment.globals['lipsum']
  return environment


class _Prepared(NodeTransformer):
  """Renames literals that a template writes, and counts its loops.

  What a text is compared with, split at or stripped of is not written: such
  literals stay, since texts keep their characters.
  """

  def __init__(self, rename: Callable[[str], str]) -> None:
    self._rename = rename

  def _values(self, values: list[Any]) -> list[Any]:
    """Visits expressions, except for plain literals."""
    return [v if isinstance(v, nodes.Const) else self.visit(v) for v in values]

  def visit_TemplateData(self, node: Any) -> Any:  # noqa: N802
    node.data = self._rename(node.data)
    return node

  def visit_Const(self, node: Any) -> Any:  # noqa: N802
    if isinstance(node.value, str):
      node.value = self._rename(node.value)
    return node

  def visit_Operand(self, node: Any) -> Any:  # noqa: N802
    (node.expr,) = self._values([node.expr])
    return node

  def visit_Compare(self, node: Any) -> Any:  # noqa: N802
    (node.expr,) = self._values([node.expr])
    node.ops = [self.visit(op) for op in node.ops]
    return node

  def visit_Getitem(self, node: Any) -> Any:  # noqa: N802
    node.node = self.visit(node.node)
    (node.arg,) = self._values([node.arg])
    return node

  def visit_Filter(self, node: Any) -> Any:  # noqa: N802
    if node.name == 'join':
      return self.generic_visit(node)
    if node.node is not None:
      node.node = self.visit(node.node)
    node.args = self._values(node.args)
    return node

  def visit_Call(self, node: Any) -> Any:  # noqa: N802
    if isinstance(node.node, nodes.Getattr):
      node.node = self.visit(node.node)
      node.args = self._values(node.args)
      return node
    node = self.generic_visit(node)
    if isinstance(node.node, nodes.Name) and node.node.name == 'loop':
      node.args = [_filter(arg, '_counted') for arg in node.args]
    return node

  def visit_Concat(self, node: Any) -> Any:  # noqa: N802
    parts = nodes.List([self.visit(n) for n in node.nodes], lineno=node.lineno)
    return _filter(parts, '_concatenated')

  def visit_List(self, node: Any) -> Any:  # noqa: N802
    return _paid_for(self.generic_visit(node), node.items)

  def visit_Tuple(self, node: Any) -> Any:  # noqa: N802
    node = self.generic_visit(node)
    return node if node.ctx == 'store' else _paid_for(node, node.items)

  def visit_Dict(self, node: Any) -> Any:  # noqa: N802
    values = [pair.value for pair in node.items]
    return _paid_for(self.generic_visit(node), values)

  def visit_For(self, node: Any) -> Any:  # noqa: N802
    node = self.generic_visit(node)
    node.iter = _filter(node.iter, '_counted')
    return node


def _paid_for(node: Any, values: list[Any]) -> Any:
  """A list or dict that is paid for, unless it is a constant."""
  constant = all(isinstance(value, nodes.Const) for value in values)
  return node if constant else _filter(node, '_paid')


def _filter(node: Any, name: str) -> Any:
  return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def compile_template(
  source: str, rename: Callable[[str], str]
) -> jinja2.Template:
  """Compiles a template.

  Args:
    rename: applied to every literal that the template writes.

  Raises:
    UserError: too long, or not a Jinja template.
  """
  if len(source) > MAX_SOURCE:
    raise UserError(
      f'the chat template has {len(source):,} characters: at most '
      f'{MAX_SOURCE:,} are allowed'
    )
  environment = _environment()
  try:
    tree = _Prepared(rename).visit(environment.parse(source))
    code = environment.compile(tree)
    return jinja2.Template.from_code(environment, code, environment.globals)
  except jinja2.TemplateSyntaxError as e:
    raise UserError(
      f'the chat template is wrong in line {e.lineno}: {_line(e)}'
    ) from e
  except RecursionError as e:
    raise UserError('the chat template is nested too deeply') from e
  except Exception as e:  # A filter or test that does not exist, for example.
    raise UserError(f'the chat template is wrong: {_line(e)}') from e


def writes_generation(source: str) -> bool:
  """Whether a template marks the assistant's text with {% generation %}."""
  return re.search(r'\{%[-+]?\s*generation\s*[-+]?%\}', source) is not None


def render(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
  """Renders a template.

  Args:
    variables: made of str, numbers, None, lists and dicts.

  Raises:
    UserError: the template refuses them (raise_exception), fails or takes too
      much time or memory.
  """
  token = BUDGET.set(Budget())
  try:
    parts, length = [], 0
    for part in template.generate(**variables):
      parts.append(part)
      length += len(part)
      if length > MAX_CHARS:
        raise Exhausted('it makes too much text')
    return ''.join(parts)
  except Refused as e:
    raise UserError(
      f'the chat template refuses this conversation: {_line(e)}'
    ) from e
  except Exhausted as e:
    raise UserError(f'the chat template was stopped: {_line(e)}') from e
  except RecursionError as e:
    raise UserError(
      'the chat template was stopped: it calls itself without end'
    ) from e
  except Exception as e:
    raise UserError(f'the chat template fails: {_line(e)}') from e
  finally:
    BUDGET.reset(token)


def _line(error: BaseException) -> str:
  """The message of an error in one short line."""
  text = ' '.join(str(error).split()) or type(error).__name__
  return text if len(text) <= 300 else text[:300] + '...'
