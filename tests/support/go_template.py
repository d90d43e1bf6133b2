"""The part of Go's text/template that our Modelfiles use, in a few lines.

if, else if, else, range over .Messages, eq, and fields of the current value.
"""

import re

ACTION = re.compile(r'\{\{(.*?)\}\}', re.S)


def render(template: str, data: dict) -> str:
  """What Go prints for `template` and a value with these fields."""
  parts = ACTION.split(template)
  nodes, rest = _block([(i % 2, part) for i, part in enumerate(parts)])
  assert not rest
  return _run(nodes, data)


def _block(parts):
  """(nodes up to the end of this block, what follows it)."""
  nodes = []
  while parts:
    (action, text), *parts = parts
    word, _, rest = text.strip().partition(' ')
    if not action:
      nodes.append(('text', text))
    elif word in ('if', 'range'):
      branches, condition = [], rest
      while True:
        body, parts = _block(parts)
        branches.append((condition, body))
        (_, end), *parts = parts
        if end.strip() == 'end':
          break
        condition = end.strip().removeprefix('else').strip()
        condition = condition.removeprefix('if').strip()
      nodes.append((word, branches))
    elif word in ('else', 'end'):
      return nodes, [(action, text), *parts]
    else:
      nodes.append(('value', text.strip()))
  return nodes, []


def _value(expression, data):
  if not expression:  # A plain else.
    return True
  if match := re.fullmatch(r'eq (\.\w+) "(\w+)"', expression):
    return _value(match[1], data) == match[2]
  assert re.fullmatch(r'\.\w+', expression), expression
  return data.get(expression[1:], '')


def _run(nodes, data):
  out = ''
  for kind, content in nodes:
    if kind == 'text':
      out += content
    elif kind == 'value':
      out += _value(content, data)
    elif kind == 'range':
      (expression, body), *_ = content
      out += ''.join(_run(body, item) for item in _value(expression, data))
    else:
      for expression, body in content:
        if _value(expression, data):
          out += _run(body, data)
          break
  return out
