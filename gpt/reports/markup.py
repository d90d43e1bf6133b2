"""HTML elements whose contents are escaped unless they are elements."""

import html
import re


class Markup(str):
  """HTML that is safe to insert: made by `element`, `join` or `svg`."""


def escape(value: object) -> Markup:
  """Text for HTML; characters that HTML does not allow become U+FFFD."""
  if isinstance(value, Markup):
    return value
  text = re.sub(r'[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]', '\ufffd', str(value))
  return Markup(html.escape(text))


def join(*parts: object) -> Markup:
  """Parts in a row; plain strings among them are escaped."""
  return Markup(''.join(map(escape, parts)))


def element(
  tag: str, *children: object, attributes: dict | None = None, **more: object
) -> Markup:
  """<tag ...>children</tag>.

  Args:
    tag: a literal of the caller, never data.
    *children: Markup, or anything else, which is escaped.
    attributes: {name: value}; True gives a bare attribute, None and False none.
    **more: the same, with `class_` for `class`.
  """
  given = {
    name.rstrip('_'): value
    for name, value in ((attributes or {}) | more).items()
  }
  shown = ''.join(
    f' {name}' if value is True else f' {name}="{escape(value)}"'
    for name, value in given.items()
    if value is not None and value is not False
  )
  return Markup(f'<{tag}{shown}>{join(*children)}</{tag}>')
