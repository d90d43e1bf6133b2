"""Inline SVG: well-formed, themed by the page, and points at their numbers."""

import math
import pathlib
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from gpt.reports import charts, plots

ROOT = pathlib.Path(__file__).parents[2]


def chart(points, hover=(), label='a chart', log_y=False, **style) -> str:
  def draw(axes):
    plots.line(axes, points, **{'color': charts.COLORS[0]} | style)
    charts.short_numbers(axes, log_y)

  return charts.svg(draw, label, hover=hover, width=400, height=200)


def data_path(svg: str) -> str:
  """The `d` of the line in the first colour."""
  return re.search(r'd="([^"]+)"[^>]*stroke:var\(--c0\)', svg)[1]


def test_a_chart_is_well_formed_and_equal_bytes_for_equal_data():
  svg = chart([(1, 2.0), (2, 1.0)], label='a <b> & "c"')
  root = ElementTree.fromstring(svg)
  assert root.get('viewBox') == '0 0 400 200'
  assert root.get('aria-label') == 'a <b> & "c"'
  assert svg == chart([(1, 2.0), (2, 1.0)], label='a <b> & "c"')


def test_a_chart_takes_colours_and_fonts_from_the_page():
  svg = chart([(1, 2.0), (2, 1.0)])
  assert 'stroke:var(--c0)' in svg and 'fill:var(--soft)' in svg
  assert not re.findall(r'#[0-9a-f]{6}\b|DejaVu|<style', svg)
  assert re.search(r'<text[^>]*>1</text>', svg)  # Text as text.


def test_a_users_matplotlib_style_does_not_change_a_chart():
  import matplotlib

  with matplotlib.rc_context({'lines.linewidth': 9, 'font.size': 30}):
    changed = chart([(1, 2.0), (2, 1.0)])
  assert changed == chart([(1, 2.0), (2, 1.0)])


def test_ids_of_two_charts_on_a_page_do_not_collide():
  ids = [
    set(re.findall(r' id="([^"]+)"', chart([(1, 2.0), (2, 1.0)], label=label)))
    for label in ('first', 'second')
  ]
  assert ids[0] and not ids[0] & ids[1]
  svg = chart([(1, 2.0), (2, 1.0)], marker='o')
  known = set(re.findall(r' id="([^"]+)"', svg))
  used = re.findall(r'(?:href="|url\()#([^")]+)', svg)
  assert used and set(used) <= known


def test_values_that_are_no_numbers_interrupt_a_line():
  points = [(1, 2.0), (2, None), (3, math.nan), (4, 1.0), (5, 0.5), (6, 'x')]
  path = data_path(chart(points))
  assert path.count('M') == 2 and path.count('L') == 1


def test_points_under_the_mouse_lie_on_the_markers():
  points = [(0, 1.0), (4, 2.5), (10, 3.0)]
  hover = [(x, y, f'loss {y} <') for x, y in points]
  svg = chart(points, [*hover, (5, 99.0, 'outside')], marker='o')
  root = ElementTree.fromstring(svg)
  markers = [
    (float(use.get('x')), float(use.get('y')))
    for use in root.iter('use')
    if 'var(--c0)' in use.get('style')
  ]
  circles = [
    (float(c.get('cx')), float(c.get('cy'))) for c in root.iter('circle')
  ]
  assert len(circles) == 3
  for circle, marker in zip(circles, markers, strict=True):
    assert circle == pytest.approx(marker, abs=0.06)
  titles = [c.find('title').text for c in root.iter('circle')]
  assert titles == ['loss 1.0 <', 'loss 2.5 <', 'loss 3.0 <']


def test_a_long_series_stays_small_and_keeps_its_extremes():
  points = [(i, math.sin(i)) for i in range(100_000)]
  points[54_321] = (54_321, 99.0)
  svg = chart(points)
  assert len(svg) < 80_000
  ys = [float(y) for y in re.findall(r'[ML] [\d.]+ ([\d.]+)', data_path(svg))]
  assert min(ys) < 20 < 150 < max(ys)  # 99 at the top, the rest far below.


@pytest.mark.parametrize('y', [0.0, 2.0, -3.0, 1e9, 1e-9])
def test_a_single_and_a_constant_value_can_be_drawn(y):
  assert '<path' in chart([(3, y)])
  assert '<path' in chart([(1, y), (2, y)])


@pytest.mark.parametrize(
  'values', [(0.45, 0.55), (0.02, 5.0), (1e-6, 1e3), (1.0, 1.0)]
)
def test_a_logarithmic_axis_has_ticks_for_any_range(values):
  svg = chart(list(enumerate(values)), log_y=True)
  ticks = re.findall(r'id="a-chart-ytick.*?<text[^>]*>([^<]+)<', svg)
  assert 2 <= len(set(ticks)) <= 12, ticks


def test_only_reports_use_matplotlib():
  """Importing it takes a second, which no other command should pay."""
  users = {
    str(path.relative_to(ROOT))
    for package in ('gpt', 'launch', 'serving', 'configs')
    for path in (ROOT / package).rglob('*.py')
    if re.search(r'^\s*(?:import|from) matplotlib', path.read_text(), re.M)
  }
  assert users == {'gpt/reports/charts.py', 'gpt/reports/plots.py'}
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      'import sys, gpt.reports.html; sys.exit("matplotlib" in sys.modules)',
    ],
    cwd=ROOT,
  )
  assert done.returncode == 0


def test_numbers_are_short():
  numbers = (0, 3e-4, 1.25, 1200, 20480, 2.5e6)
  assert [charts.number(x) for x in numbers] == [
    '0',
    '3e-4',
    '1.25',
    '1200',
    '20.48k',
    '2.5M',
  ]
