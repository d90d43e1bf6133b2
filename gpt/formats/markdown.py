"""Markdown whose values are text: none becomes markup, HTML or a link."""

import re
from collections.abc import Mapping

# With a backslash they are text; the others are entities, which every renderer
# knows, GitHub's automatic links and mentions included.
_BACKSLASHED = re.compile(r'([\\`*\[\]|~])|(?<!\w)(_)|(_)(?!\w)')
_ENTITIES = {'&': '&amp;', '<': '&lt;', '>': '&gt;', '@': '&#64;'}
_CONTROL = re.compile(r'[\x00-\x1f\x7f-\x9f\u2028\u2029]+')


def escape(value: object) -> str:
  """A value as one line of text, for a paragraph, a heading or a table."""
  text = _CONTROL.sub(' ', str(value))
  text = re.sub('[&<>@]', lambda found: _ENTITIES[found[0]], text)
  text = _BACKSLASHED.sub(lambda found: f'\\{found[0]}', text)
  text = text.replace('://', '&#58;//')
  return re.sub(r'(?i)\bwww\.', 'www&#46;', text)


def table(rows: Mapping[str, object]) -> str:
  """A two-column table; its values are escaped."""
  lines = [f'| {escape(k)} | {escape(v)} |' for k, v in rows.items()]
  return '\n'.join(['| | |', '| --- | --- |', *lines])


def fence(text: object, language: str = 'text') -> str:
  """A code block with more backticks than the text has in a row.

  Args:
    language: a literal of the caller, never data.
  """
  text = re.sub(r'[\x00-\x08\x0b-\x1f\x7f]', '\ufffd', str(text))
  runs = [len(run) for run in re.findall('`+', text)]
  marks = '`' * max(3, max(runs, default=0) + 1)
  return f'{marks}{language}\n{text.rstrip()}\n{marks}'
