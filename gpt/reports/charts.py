"""Matplotlib figures as inline SVG whose colours follow the page.

Text stays text, nothing refers to the network, and equal data give equal
bytes. Colours become CSS variables (`--c0`, `--soft`, ...), so the page around
a chart decides on them, light or dark.
"""

import io
import math
import re
import types
from collections.abc import Callable, Sequence
from typing import Any
from xml.etree import ElementTree

from gpt.errors import UserError
from gpt.reports.markup import Markup, element

# Okabe and Ito's palette, which colour-blind readers can tell apart too.
COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#a8842c', '#5c6670')
SOFT, GRID = '#5c6671', '#e3e5e4'
_VARIABLES = {color: f'var(--c{i})' for i, color in enumerate(COLORS)} | {
  SOFT: 'var(--soft)',
  GRID: 'var(--grid)',
}
_SETTINGS: dict[Any, Any] = {  # Any: matplotlib's stubs name the keys.
  'svg.fonttype': 'none',  # Text as text.
  'svg.hashsalt': 'rgpt',  # Ids that do not change from run to run.
  'font.size': 12,
  'text.color': SOFT,
  'axes.labelcolor': SOFT,
  'axes.edgecolor': SOFT,
  'xtick.color': SOFT,
  'ytick.color': SOFT,
  'grid.color': GRID,
}


def load_matplotlib() -> types.ModuleType:
  """The matplotlib module, with matplotlib.figure.

  Raises:
    UserError: it cannot be imported.
  """
  try:
    import matplotlib
    import matplotlib.figure
  except ImportError as e:
    raise UserError(
      f'a figure needs matplotlib ({e}): pip install matplotlib'
    ) from e
  return matplotlib


def svg(
  draw: Callable,
  label: str,
  *,
  width: int = 720,
  height: int = 300,
  hover: Sequence[tuple[float, float, str]] = (),
) -> Markup:
  """An <svg> element with what draw(axes) draws.

  Args:
    draw: adds lines to the axes. Colours of COLORS follow the page.
    label: what the chart shows, for people who do not see it.
    width, height: in CSS pixels.
    hover: (x, y, text) in the units of the axes: texts shown under the mouse.
  """
  matplotlib = load_matplotlib()
  with matplotlib.rc_context():
    matplotlib.rcdefaults()  # A user's style does not change the page.
    matplotlib.rcParams.update(_SETTINGS)
    figure = matplotlib.figure.Figure(
      figsize=(width / 72, height / 72), dpi=72, layout='constrained'
    )
    axes = figure.subplots()
    draw(axes)
    axes.spines[['top', 'right']].set_visible(False)
    written = io.StringIO()
    figure.savefig(written, format='svg', transparent=True)
    points = [(*axes.transData.transform((x, y)), s) for x, y, s in hover]
    inside = axes.bbox.padded(1)
  root = ElementTree.fromstring(written.getvalue())
  _clean(root, re.sub(r'\W+', '-', label))
  marks = ''.join(
    element(
      'circle',
      element('title', text),
      class_='dot',
      cx=f'{x:.1f}',
      cy=f'{height - y:.1f}',
      r='3',
    )
    for x, y, text in points
    if inside.contains(x, y)
  )
  inner = ''.join(
    ElementTree.tostring(child, encoding='unicode') for child in root
  )
  return element(
    'svg',
    Markup(inner + marks),
    viewBox=f'0 0 {width} {height}',
    role='img',
    attributes={'aria-label': label},
  )


def _clean(root: ElementTree.Element, prefix: str) -> None:
  """Makes a document that matplotlib wrote part of a page, in place.

  Ids get a prefix, since a page has several charts; metadata, namespaces,
  style sheets and fonts go.
  """
  for parent in list(root.iter()):
    for child in list(parent):
      if child.tag.endswith(('}metadata', '}style')):
        parent.remove(child)
  for node in root.iter():
    node.tag = node.tag.split('}')[-1]
    for name in list(node.attrib):
      value = node.attrib.pop(name)
      name = name.split('}')[-1]
      if name == 'id':
        value = f'{prefix}-{value}'
      elif name == 'href':
        value = f'#{prefix}-{value[1:]}'
      elif name == 'clip-path':
        value = value.replace('url(#', f'url(#{prefix}-')
      elif name == 'style':
        value = _themed(value)
      elif name == 'd':
        value = ' '.join(value.split())
      node.set(name, value)
    if node.text and not node.text.strip():
      node.text = None
    node.tail = None


def _themed(style: str) -> str:
  """An inline style with the page's colours and fonts."""
  for color, variable in _VARIABLES.items():
    style = re.sub(color, variable, style, flags=re.IGNORECASE)
  kept = []
  for rule in style.split(';'):
    name, _, value = rule.strip().partition(': ')
    if name == 'font':  # Older versions of matplotlib write all in one.
      name, value = 'font-size', value.split()[0]
    if name and name != 'font-family':
      kept.append(f'{name}:{value}')
  return ';'.join(kept)


def number(x: float) -> str:
  """1200 -> '1200', 12000 -> '12k', 0.0003 -> '3e-4'."""
  size = abs(x)
  if x == 0:
    return '0'
  for unit, letter in ((1e9, 'G'), (1e6, 'M'), (1e4, 'k')):
    if size >= unit:
      scale = 1e3 if letter == 'k' else unit
      return f'{x / scale:.4g}{letter}'
  if size < 1e-2:
    digits, exponent = f'{x:.2e}'.split('e')
    digits = digits.rstrip('0').rstrip('.')
    return f'{digits}e{int(exponent)}'
  return f'{x:.4g}'


def short_numbers(axes: Any, log_y: bool = False) -> None:
  """Short tick labels; round ticks on a logarithmic axis of any range."""
  from matplotlib import ticker

  if log_y:
    axes.set_yscale('log')
    low, high = axes.get_ylim()
    decades = math.log10(high / low)
    subs = (1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)
    locator = (
      ticker.MaxNLocator(5) if decades < 0.7 else ticker.LogLocator(subs=subs)
    )
    axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: number(x)))
