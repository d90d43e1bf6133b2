"""Line charts as SVG text: no library, no script, no network.

Colours are CSS variables (`--c0`, `--c1`, ..., `--ink`, `--grid`), so that the
page around a chart decides on them, light or dark.
"""

import dataclasses
import html
import math
import re
from collections.abc import Sequence

MARGIN = {'left': 62, 'right': 16, 'top': 12, 'bottom': 42}
MAX_POINTS = 1200  # A chart has no pixels for more.


@dataclasses.dataclass
class Series:
  """One line.

  name: for the legend; '' for none.
  points: (x, y); a y that is None or not finite interrupts the line.
  color: number of a colour.
  style: 'line', 'faint' (thin and pale) or 'dots' (a line with its points,
    which show their numbers under the mouse).
  """

  name: str
  points: Sequence[tuple[float, float | None]]
  color: int = 0
  style: str = 'line'


def line_chart(
  series: Sequence[Series],
  *,
  label: str,
  x_label: str = 'step',
  y_label: str = '',
  log_y: bool = False,
  y_range=None,
  width: int = 720,
  height: int = 300,
) -> str:
  """An <svg> element.

  Args:
    label: what the chart shows, for people who do not see it.
    log_y: logarithmic y axis; values that are not positive are left out.
    y_range: (low, high) of the y axis; default: all there is.
  """
  clean = [dataclasses.replace(s, points=_thin(list(s.points))) for s in series]
  shown = [(x, y) for s in clean for x, y in s.points if _usable(y, log_y)]
  if not shown:
    return '<p class="empty">no numbers yet</p>'
  xs, ys = zip(*shown)
  x0, x1 = _spread(min(xs), max(xs))
  low, high = y_range or (min(ys), max(ys))
  if log_y:
    low, high = math.log10(low), math.log10(high)
  low, high = _spread(low, high)
  if y_range is None:
    pad = 0.05 * (high - low)
    low, high = low - pad, high + pad
  plot_w = width - MARGIN['left'] - MARGIN['right']
  plot_h = height - MARGIN['top'] - MARGIN['bottom']

  def px(x: float) -> float:
    return MARGIN['left'] + plot_w * (x - x0) / (x1 - x0)

  def py(y: float) -> float:
    y = math.log10(y) if log_y else y
    return MARGIN['top'] + plot_h * (high - y) / (high - low)

  clip = 'clip-' + re.sub(r'\W+', '-', label)
  parts = [
    f'<svg viewBox="0 0 {width} {height}" role="img" '
    f'aria-label="{html.escape(label)}">',
    f'<clipPath id="{clip}"><rect x="{MARGIN["left"]}" y="{MARGIN["top"]}" '
    f'width="{plot_w}" height="{plot_h}"/></clipPath>',
  ]
  ticks_y = _log_ticks(low, high) if log_y else nice_ticks(low, high, 6)
  for value in ticks_y:
    y = py(value)
    parts.append(
      f'<line class="grid" x1="{MARGIN["left"]}" '
      f'x2="{width - MARGIN["right"]}" '
      f'y1="{y:.1f}" y2="{y:.1f}"/><text class="tick" text-anchor="end" '
      f'x="{MARGIN["left"] - 7}" y="{y + 4:.1f}">{number(value)}</text>'
    )
  bottom = MARGIN['top'] + plot_h
  for value in nice_ticks(x0, x1, 8):
    parts.append(
      f'<text class="tick" text-anchor="middle" x="{px(value):.1f}" '
      f'y="{bottom + 18}">{number(value)}</text>'
    )
  parts.append(
    f'<text class="axis" text-anchor="middle" '
    f'x="{MARGIN["left"] + plot_w / 2:.0f}"'
    f' y="{height - 6}">{html.escape(x_label)}</text>'
    f'<text class="axis" text-anchor="middle" transform="translate(14 '
    f'{MARGIN["top"] + plot_h / 2:.0f}) rotate(-90)">{html.escape(y_label)}'
    '</text>'
  )
  parts.append(f'<g clip-path="url(#{clip})">')
  for s in clean:
    path = _path(s.points, px, py, log_y)
    kind = 'faint' if s.style == 'faint' else 'line'
    parts.append(
      f'<path class="{kind}" style="stroke:var(--c{s.color})" d="{path}"/>'
    )
    if s.style == 'dots':
      parts += [
        f'<circle class="dot" style="fill:var(--c{s.color})" '
        f'cx="{px(x):.1f}" cy="{py(y):.1f}" r="2.6"><title>'
        f'{html.escape(x_label)} {number(x)}: {html.escape(s.name)} {y:.5g}'
        '</title></circle>'
        for x, y in s.points
        if _usable(y, log_y)
      ]
  parts.append('</g></svg>')
  return ''.join(parts) + _legend(clean)


def _legend(series) -> str:
  """Names of the lines, as text beside the picture; '' for a single one."""
  named = [s for s in series if s.name]
  if len(named) < 2:
    return ''
  return (
    '<p class="legend">'
    + ''.join(
      f'<span><i style="background:var(--c{s.color})"></i>'
      f'{html.escape(s.name)}</span>'
      for s in named
    )
    + '</p>'
  )


def _usable(y, log_y: bool) -> bool:
  return y is not None and math.isfinite(y) and (y > 0 or not log_y)


def _spread(low: float, high: float) -> tuple[float, float]:
  """An interval of some width around what may be one number."""
  if high > low:
    return low, high
  half = abs(low) / 2 or 0.5
  return low - half, high + half


def _path(points, px, py, log_y: bool) -> str:
  out, pen_up = [], True
  for x, y in points:
    if not _usable(y, log_y):
      pen_up = True
      continue
    out.append(f'{"M" if pen_up else "L"}{px(x):.1f} {py(y):.1f}')
    pen_up = False
  return ''.join(out)


def _thin(points, limit: int = MAX_POINTS):
  """At most about `limit` points: the extremes of each piece, in order."""
  if len(points) <= limit:
    return points
  size = -(-2 * len(points) // limit)
  kept = []
  for i in range(0, len(points), size):
    piece = points[i : i + size]
    usable = [p for p in piece if _usable(p[1], False)]
    if usable:
      ends = {min(usable, key=lambda p: p[1]), max(usable, key=lambda p: p[1])}
      kept += sorted(ends)
    else:
      kept.append(piece[0])
  return kept


def smooth(points, weight: float | None = None):
  """Exponential moving average, corrected for its start (as Adam does).

  Args:
    weight: of what was before; default: a 15th of the points, 33 at most.
  """
  if weight is None:
    weight = min(0.97, max(0.0, 1 - 15 / max(len(points), 1)))
  mean, total, out = 0.0, 0.0, []
  for x, y in points:
    if y is None or not math.isfinite(y):
      out.append((x, None))
      continue
    mean = weight * mean + (1 - weight) * y
    total = weight * total + (1 - weight)
    out.append((x, mean / total))
  return out


def loss_range(train, val):
  """The y axis of a loss chart, without the first steep steps.

  Curves fall from ln V within a few percent of the steps and then move little;
  what is above the largest value after the first 5 % is cut off.
  """
  points = [(x, y) for x, y in [*train, *val] if y is not None]
  if len(points) < 20:
    return None
  last = max(x for x, _ in points)
  later = [y for x, y in points if x >= 0.05 * last]
  low, high = min(later), max(later)
  pad = 0.06 * (high - low) or 0.1
  return low - pad, high + pad


def nice_ticks(low: float, high: float, count: int) -> list[float]:
  """About `count` round numbers inside [low, high]."""
  raw = (high - low) / max(count, 1)
  unit = 10.0 ** math.floor(math.log10(raw))
  step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw)
  first = math.ceil(low / step - 1e-9)
  last = math.floor(high / step + 1e-9)
  return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
  """Powers of ten between two exponents; with 2 and 5 where they are few."""
  digits = (1, 2, 5) if high - low < 2.5 else (1,)
  ticks = [
    m * 10.0**e
    for e in range(math.floor(low), math.ceil(high) + 1)
    for m in digits
    if low <= math.log10(m * 10.0**e) <= high
  ]
  return ticks if len(ticks) > 1 else [10**low, 10**high]


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
